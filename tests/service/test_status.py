"""Whether the service says rightly how it is, and counts exactly."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from embedding_assets.service.server import check_address
from resources.errors import InvalidInputError
from tests.service.test_embeddings import pipeline
from tests.support.fakes import CountingEmbedder
from tests.support.service import RunningService, wait_until


def test_ready_is_model_and_cache_and_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = CountingEmbedder(fails_always=True)
    made = pipeline(tmp_path, embedder=embedder)
    with monkeypatch.context() as patched:
        patched.setattr("embedding_assets.service.service._SECONDS_OF_PARTS", 0.0)
        patched.setattr("embedding_assets.service.service._SECONDS_BETWEEN_LOADS", 0.05)
        running = RunningService(made.opened, folder=tmp_path)
        running._thread.start()
        try:
            wait_until(lambda: running.client.get("/health").status_code == 200)
            wait_until(lambda: "cannot embed" in running.client.get("/ready").text)
            answer = running.client.get("/ready")
            parts = answer.json()["parts"]
            assert answer.status_code == 503
            assert [part["ok"] for part in parts.values()] == [False, True, True]
            assert parts["index corpus"]["reason"] == "It is not built yet."
            (server,) = running.service.servers.values()
            patched.setitem(server.embedder.__dict__, "fails_always", False)
            wait_until(lambda: running.client.get("/ready").status_code == 200)
        finally:
            running.__exit__(None, None, None)


def test_what_is_counted_is_what_was_asked(tmp_path: Path) -> None:
    made = pipeline(tmp_path, embedder=CountingEmbedder())
    made.opened.embed(["known"])
    with RunningService(made.opened, folder=tmp_path) as running:
        running.post("/embed/batch", texts=["known", "new", "new", "newer"])
        running.post("/embed", text="new")
        running.post("/embed", text="  ")
        metric = running.metric
        assert metric("texts_total", endpoint="/embed/batch", cached="true") == 1
        assert metric("texts_total", endpoint="/embed/batch", cached="false") == 3
        assert metric("texts_total", endpoint="/embed", cached="true") == 1
        assert metric("batch_texts_sum") == 2
        assert metric("cache_lookups_total", result="hit") == 1
        assert metric("cache_lookups_total", result="miss") == 2
        assert metric("http_requests_total", endpoint="/embed", status="200") == 1
        assert metric("http_requests_total", endpoint="/embed", status="422") == 1
        assert metric("queued_texts") == metric("queued_tokens") == metric("running_batches") == 0
        text = running.client.get("/metrics").text
        names = {family.name for family in text_string_to_metric_families(text)}
        assert "embedding_http_request_seconds" in names
        stats = running.client.get("/stats").json()
        assert stats["cache_hit_rate"] == 0.4  # of 5 texts that were answered


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_without_keys_this_machine_is_served(host: str) -> None:
    check_address(host, has_keys=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_without_keys_nobody_else_is_served(host: str) -> None:
    with pytest.raises(InvalidInputError, match="keys create"):
        check_address(host, has_keys=False)
    check_address(host, has_keys=True)
