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
        patched.setattr("embedding_assets.service.readiness._SECONDS_OF_PARTS", 0.0)
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


def fallback_part(running: RunningService) -> tuple[int, dict[str, object]]:
    """Of /ready: its status, and what it says of the fallback's model."""
    answer = running.client.get("/ready")
    parts = answer.json()["parts"]
    (told,) = [part for name, part in parts.items() if name.startswith("model paid ")]
    return answer.status_code, told


def test_a_fallback_is_asked_nothing_until_somebody_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fallback = CountingEmbedder(model="paid", fails_always=True)
    made = pipeline(tmp_path, embedder=CountingEmbedder(), fallback=fallback)
    made.run()
    monkeypatch.setattr("embedding_assets.service.readiness._SECONDS_OF_PARTS", 0.0)
    monkeypatch.setattr("embedding_assets.service.service._SECONDS_BETWEEN_LOADS", 0.05)
    with RunningService(made.opened, folder=tmp_path) as running:
        assert running.post("/search", query="a").status_code == 200
        status, told = fallback_part(running)
        assert (status, told["ok"], told["needed"]) == (200, True, False)
        assert "no index has rows" in str(told["reason"])
        # It does not answer: that is said, and is no reason to send nobody here.
        assert running.post("/embed", text="a", model="paid").status_code == 503
        wait_until(lambda: "cannot embed" in str(fallback_part(running)[1].get("reason")))
        status, told = fallback_part(running)
        assert (status, told["ok"], told["needed"]) == (200, False, False)
        assert not fallback.texts
        monkeypatch.setitem(fallback.__dict__, "fails_always", False)
        wait_until(lambda: fallback_part(running)[1].get("reason") is None)
        assert running.post("/embed", text="a", model="paid").status_code == 200
        assert fallback.texts[-1] == "a"


def test_a_fallback_that_an_index_has_rows_of_is_loaded_at_the_start_and_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, fallback = CountingEmbedder(), CountingEmbedder(model="paid")
    # As a run leaves it in which the primary did not serve.
    made = pipeline(tmp_path, embedder=fallback)
    made.run()
    made = pipeline(tmp_path, embedder=primary, fallback=fallback)
    monkeypatch.setattr("embedding_assets.service.readiness._SECONDS_OF_PARTS", 0.0)
    monkeypatch.setattr("embedding_assets.service.service._SECONDS_BETWEEN_LOADS", 0.05)
    monkeypatch.setitem(fallback.__dict__, "fails_always", True)
    with RunningService(made.opened, folder=tmp_path) as running:
        space = fallback.space.id
        wait_until(lambda: "cannot embed" in running.service.failures.get(space, ""))
        status, told = fallback_part(running)
        assert (status, told["ok"], told["needed"]) == (503, False, True)
        monkeypatch.setitem(fallback.__dict__, "fails_always", False)
        wait_until(lambda: running.client.get("/ready").status_code == 200)
        assert running.post("/search", query="a").json()["spaces"] == [
            {"id": space, "model": "paid"}
        ]


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
