"""Whatever a client sends, the answer says what is wrong with it, and the service goes on."""

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from embedding_assets.service.keys import create_key
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


JSON = {"Content-Type": "application/json"}


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
    assert error(running.client.post(path, content=body, headers=JSON)) == expected


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("Application/JSON;charset=UTF-8", 200),
        ("application/vnd.api+json", 200),
        ("text/plain", 415),  # a page of any site can have it sent
        ("text/plain; a=application/json", 415),
        ("application/x-www-form-urlencoded", 415),  # by default of curl
        ("application/jsonp", 415),
        ("", 415),
        (None, 415),
    ],
)
def test_a_body_has_to_be_sent_as_json(
    running: RunningService, kind: str | None, status: int
) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    for path, body in (
        ("/embed", b'{"text": "a"}'),
        ("/embed/batch", b'{"texts": ["a"]}'),
        ("/v1/embeddings", b'{"model": "corpus", "input": "a"}'),
        ("/search", b'{"query": "a"}'),
        ("/collections/corpus/search", b'{"query": "a"}'),
    ):
        answer = running.client.post(path, content=body, headers=headers)
        if status == 415:
            assert error(answer)[:2] == (415, "unsupported_media_type")
            assert "-H 'content-type: application/json'" in answer.text
        else:  # there is nothing to search in
            assert answer.status_code == (404 if "search" in path else 200)


# --- Pages of other sites, while there are no keys ------------------------------------------------

OWN = ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:8080", "127.9.9.9:1", "[::1]:8080"]
STRANGE = [
    "example.org",
    "localhost.example.org:8080",
    "127.0.0.1.example.org",
    "192.0.2.1:8080",
    "0.0.0.0:8080",
    "[2001:db8::1]:8080",
    "example.org@127.0.0.1",
    "127.0.0.1:8080@example.org",
    "127.0.0.1:example.org",
    "127.0.0.1, example.org",
    "::1",
    "",
]
ASKED = ["/", "/health", "/ready", "/openapi.json", "/nothing", "/metrics"]


@pytest.mark.parametrize("host", OWN)
def test_without_keys_this_machine_has_many_names(running: RunningService, host: str) -> None:
    for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
        answer = running.client.post("/embed", json={"text": "a"}, headers=headers)
        assert answer.status_code == 200


@pytest.mark.parametrize("host", STRANGE)
def test_without_keys_no_other_name_is_answered(running: RunningService, host: str) -> None:
    answers = [running.client.get(path, headers={"Host": host}) for path in ASKED]
    answers.append(running.client.post("/embed", json={"text": "a"}, headers={"Host": host}))
    for answer in answers:
        assert error(answer)[:2] == (421, "unknown_host")
        assert "127.0.0.1" in answer.json()["error"]["message"]
        assert "keys create" in answer.text


@pytest.mark.parametrize("origin", ["null", "", *(f"https://{host}" for host in STRANGE)])
def test_without_keys_no_page_of_another_host_is_answered(
    running: RunningService, origin: str
) -> None:
    headers = {"Origin": origin}
    answers = [running.client.get(path, headers=headers) for path in ASKED]
    answers.append(running.client.post("/embed", json={"text": "a"}, headers=headers))
    answers.append(running.client.options("/embed", headers=headers))
    for answer in answers:
        assert error(answer)[:2] == (403, "cross_origin")
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_with_keys_any_name_and_any_page_is_answered(tmp_path: Path) -> None:
    made = pipeline(tmp_path, embedder=CountingEmbedder())
    _, key = create_key(tmp_path / "api_keys.json", "proxied")
    with RunningService(made.opened, folder=tmp_path) as running:
        headers = {"Host": "search.example.org", "Origin": "https://example.org", "X-API-Key": key}
        answer = running.client.post("/embed", json={"text": "a"}, headers=headers)
        assert answer.status_code == 200
        assert running.client.get("/health", headers=headers).status_code == 200
        answer = running.client.post("/embed", content=b'{"text": "a"}', headers=headers)
        assert error(answer)[:2] == (415, "unsupported_media_type")


def test_an_answer_never_repeats_what_was_sent(running: RunningService) -> None:
    body = b'{"text": ["a secret"], "secret": "secret"}'
    answer = running.client.post("/embed", content=body, headers=JSON)
    assert answer.status_code == 422
    assert "a secret" not in answer.text


def test_a_body_without_a_length_is_measured_as_it_comes(running: RunningService) -> None:
    parts = (b" " * 1_000 for _ in range(1_000))
    answer = running.client.post("/embed", content=parts, headers=JSON)
    assert error(answer)[:2] == (413, "body_too_large")


def test_a_body_that_does_not_come_is_not_waited_for(running: RunningService) -> None:
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        assert b"408" in connection.recv(4096)
    assert running.post("/embed", text="a").status_code == 200


def raw(running: RunningService, content: bytes) -> bytes:
    """What is answered to bytes, after which the client sends nothing more."""
    host, port = running.url.removeprefix("http://").split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(content)
        with suppress(BrokenPipeError, ConnectionResetError):  # the server was the first to close
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(4096):
                answer += part
    return answer


BODY = b'{"text": "a"}'
HEAD = (
    b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n" % len(BODY)
)


@pytest.mark.parametrize("name", [b"X-Request-Timeout", b"X-API-Key", b"Authorization", b"Host"])
@pytest.mark.parametrize(
    "value",
    [b"1\rX-Evil: 1", b"1\nX-Evil: 1", b"1\r\n X-Evil: 1", b"1\0", b"\xff\xfe", b"9" * 5_000],
)
def test_whatever_a_header_holds_it_is_in_no_answer_and_breaks_nothing(
    running: RunningService, name: bytes, value: bytes
) -> None:
    answer = raw(running, HEAD + name + b": " + value + b"\r\n\r\n" + BODY)
    assert answer == b"" or answer.split()[1] in (b"200", b"400", b"421", b"422"), answer
    assert b"evil" not in answer.lower()


@pytest.mark.parametrize(
    "half",
    [
        b"",
        b"POST",
        HEAD,
        HEAD + b"\r\n",
        HEAD + b"\r\n" + BODY[:-1],
        b"\x16\x03\x01\0\xa5\x01\0",
        BODY,
    ],
)
def test_half_a_request_is_no_defect(running: RunningService, half: bytes) -> None:
    def defects() -> float:
        return running.metric("http_requests_total", endpoint="/embed", status="500")

    before = defects()
    answer = raw(running, half)
    assert answer == b"" or answer.split()[1].startswith(b"4"), answer
    assert running.post("/embed", text="a").status_code == 200
    assert defects() == before


@pytest.mark.parametrize("path", ["/embed", "/embed/batch", "/v1/embeddings", "/search"])
@pytest.mark.parametrize("value", ["%s", "[%s]"])
@pytest.mark.parametrize(
    "hostile",
    [b'"\xff"', b'"\\udc00"', b'"\xed\xa0\x80"', b"NaN", b"1e999", b"[" * 4_000 + b"]" * 4_000],
)
def test_no_endpoint_takes_bytes_that_are_no_text(
    running: RunningService, path: str, value: str, hostile: bytes
) -> None:
    field = {"/embed": "text", "/embed/batch": "texts", "/search": "query"}.get(path, "input")
    before, after = (value % "|").split("|")
    body = f'{{"model": "corpus", "{field}": {before}'.encode() + hostile + f"{after}}}".encode()
    answer = running.client.post(path, content=body, headers=JSON)
    assert error(answer)[0] in (400, 422)


@pytest.mark.slow
def test_by_default_too_the_largest_requests_are_refused(tmp_path: Path) -> None:
    made = pipeline(tmp_path, embedder=CountingEmbedder())
    with RunningService(made.opened, folder=tmp_path) as running:
        running.client.headers.update(JSON)
        post = running.client.post
        assert error(running.post("/embed/batch", texts=["a"] * 100_000))[1] == "too_many_texts"
        assert (
            error(running.post("/v1/embeddings", model="corpus", input=[[1]] * 100_000))[0] == 422
        )
        assert error(running.post("/embed", text="a" * 10_000_000))[1] == "body_too_large"
        assert error(running.post("/embed", text="a" * 5_000_000))[1] == "text_too_long"
        assert error(post("/embed", content=b"[" * 100_000 + b"]" * 100_000))[0] == 400
        deep = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        assert error(post("/embed", content=deep))[0] == 400
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
