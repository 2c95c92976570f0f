"""Whatever a client sends, the answer says what is wrong with it, and the service goes on."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from resources.limits.quota import MemoryQuotas
from tests.service.test_embeddings import pipeline
from tests.support.fakes import CountingEmbedder
from tests.support.service import RunningService, wait_until


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("requests")
    made = pipeline(folder, embedder=CountingEmbedder())
    with RunningService(
        made.opened,
        folder=folder,
        max_body=20_000,
        max_texts=10,
        max_characters=1_000,
        body_seconds=0.5,
    ) as running:
        yield running


def error(answer: httpx.Response) -> tuple[int, str, str | None]:
    told = answer.json()["error"]
    assert told["message"].strip()
    assert told["type"]
    return answer.status_code, told["code"], told["param"]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/embed", b"", (400, "invalid_json", None)),
        ("/embed", b"{", (400, "invalid_json", None)),
        ("/embed", b'{"text": "\xff"}', (400, "invalid_json", None)),
        ("/embed", b'{"text": "\\ud800"}', (400, "invalid_json", None)),
        ("/embed", b"[" * 10_000, (400, "invalid_json", None)),
        ("/embed", b"[]", (422, "invalid_request", None)),
        ("/embed", b"{}", (422, "invalid_request", "text")),
        ("/embed", b'{"text": 1}', (422, "invalid_request", "text")),
        ("/embed", b'{"text": "a", "roll": "query"}', (422, "invalid_request", "roll")),
        ("/embed", b'{"text": "a", "role": "poem"}', (422, "invalid_request", "role")),
        ("/embed", b'{"text": ""}', (422, "empty_text", "text")),
        ("/embed", b'{"text": "a", "model": "b"}', (404, "model_not_found", "model")),
        (
            "/embed",
            b'{"text": "a", "collection": "b"}',
            (404, "collection_not_found", "collection"),
        ),
        ("/embed/batch", b'{"texts": []}', (422, "invalid_request", "texts")),
        ("/embed/batch", b'{"texts": "a"}', (422, "invalid_request", "texts")),
        ("/embed/batch", b'{"texts": ["a", null]}', (422, "invalid_request", "texts.1")),
        (
            "/embed/batch",
            json.dumps({"texts": ["a"] * 11}).encode(),
            (422, "too_many_texts", "texts"),
        ),
        (
            "/embed/batch",
            json.dumps({"texts": ["a", "b" * 1001]}).encode(),
            (422, "text_too_long", "texts.1"),
        ),
        ("/v1/embeddings", b'{"model": "corpus", "input": {}}', (422, "invalid_request", "input")),
        ("/embed", b'{"text": "' + b"a" * 20_000 + b'"}', (413, "body_too_large", None)),
        ("/search", b'{"query": " "}', (404, "not_found", None)),
        ("/search", b'{"query": "a", "k": 0}', (422, "invalid_request", "k")),
        ("/search", b'{"query": "a", "k": 100000}', (422, "k_too_large", "k")),
        (
            "/search",
            b'{"query": "a", "collections": ["b"]}',
            (404, "collection_not_found", "collection"),
        ),
        ("/collections/b/search", b'{"query": "a"}', (404, "collection_not_found", "collection")),
        ("/collections/corpus/search", b'{"query": "a"}', (404, "not_found", None)),  # not built
        ("/nothing", b"", (404, "not_found", None)),
    ],
)
def test_what_is_wrong_with_a_request_is_said_by_code_and_field(
    running: RunningService, path: str, body: bytes, expected: tuple[int, str, str | None]
) -> None:
    assert error(running.client.post(path, content=body)) == expected


def test_an_answer_never_repeats_what_was_sent(running: RunningService) -> None:
    answer = running.client.post("/embed", content=b'{"text": ["a secret"], "secret": "secret"}')
    assert "a secret" not in answer.text


def test_a_body_without_a_length_is_measured_as_it_comes(running: RunningService) -> None:
    parts = (b" " * 1_000 for _ in range(1_000))
    assert error(running.client.post("/embed", content=parts))[:2] == (413, "body_too_large")


def test_a_body_that_does_not_come_is_not_waited_for(running: RunningService) -> None:
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b"408" in connection.recv(4096)
    assert running.post("/embed", text="a").status_code == 200


def test_the_wrong_method_names_the_right_one(running: RunningService) -> None:
    answer = running.client.get("/embed")
    assert error(answer)[:2] == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"


def test_a_name_with_a_line_end_makes_no_header(running: RunningService) -> None:
    answer = running.client.get("/collections/a%0d%0aX-Evil:%201/documents?id=%0d%0aX-Evil:%201")
    assert answer.status_code == 404
    assert "x-evil" not in answer.headers


def test_a_defect_is_an_error_without_details_and_the_next_request_is_served(
    running: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    (server,) = running.service.servers.values()

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("details")

    with monkeypatch.context() as patched:
        patched.setattr(server, "ask", fail)
        answer = running.post("/embed", text="a")
    assert error(answer)[:2] == (500, "internal")
    assert "details" not in answer.text
    assert running.post("/embed", text="a").status_code == 200
    assert running.metric("http_requests_total", endpoint="/embed", status="500") == 1


# --- Limits ---------------------------------------------------------------------------------------


def test_each_answer_says_what_is_left_and_who_is_over_a_limit_when_to_come_again(
    tmp_path: Path,
) -> None:
    clock = [1000.0]
    made = pipeline(tmp_path, embedder=CountingEmbedder())
    with RunningService(
        made.opened,
        folder=tmp_path,
        quotas=MemoryQuotas(clock=lambda: clock[0]),
        texts_per_minute=5,
    ) as running:
        left = [
            running.post("/embed/batch", texts=["a", "b"]).headers["X-RateLimit-Remaining"]
            for _ in range(2)
        ]
        assert left == ["3", "1"]
        assert running.post("/embed", text="a").headers["X-RateLimit-Limit"] == "5"
        refused = running.post("/embed", text="a")
        assert error(refused)[:2] == (429, "rate_limited")
        wait = refused.json()["error"]["retry_after"]
        assert 0 < wait <= 60.5
        assert int(refused.headers["Retry-After"]) >= wait
        assert refused.headers["X-RateLimit-Remaining"] == "0"
        assert running.metric("rate_limited_total", dimension="texts") == 1
        clock[0] += wait
        assert running.post("/embed", text="a").status_code == 200
        assert error(running.post("/embed/batch", texts=["a"] * 6))[:2] == (422, "over_limit")
        assert running.client.get("/health").status_code == 200


def test_a_connection_that_stays_silent_costs_nobody_else(running: RunningService) -> None:
    host, port = running.url.removeprefix("http://").split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(200)]
    try:
        assert running.post("/embed", text="a").status_code == 200
    finally:
        for one in silent:
            one.close()
    wait_until(lambda: running.client.get("/health").status_code == 200)
