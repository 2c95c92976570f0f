"""Which way a request goes, and what of the environment goes with it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from resources.errors import EmbeddingError
from tests.support.openai_server import Answer, OpenAIServer, assert_right, embedder, error

TEXTS = ["The first text.", "A second one."]
NOBODY = "127.0.0.1:9"
"""Where no proxy listens."""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def proxy() -> Iterator[OpenAIServer]:
    """Answers what it is asked to pass on."""
    with OpenAIServer() as proxy:
        yield proxy


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_this_machine_is_asked_directly(
    host: str,
    variable: str,
    server: OpenAIServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, f"http://{NOBODY}")
    ours = embedder(server.url.replace("127.0.0.1", host), tmp_path)
    assert_right(ours.embed(TEXTS).vectors, TEXTS)
    assert len(server.requests) == 1


def test_another_server_is_asked_through_the_proxy(
    proxy: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
    assert_right(embedder("http://embeddings.invalid/v1", tmp_path).embed(TEXTS).vectors, TEXTS)
    assert len(proxy.requests) == 1


def test_an_error_names_the_proxy_but_not_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://user:planted-secret@{NOBODY}/")
    ours = embedder("http://embeddings.invalid/v1", tmp_path)
    with pytest.raises(EmbeddingError, match=f"through the proxy {NOBODY} that") as caught:
        ours.embed(TEXTS, "query")
    assert "planted-secret" not in str(caught.value)


@pytest.mark.parametrize("status", [407, 503])
def test_what_a_proxy_answers_itself_is_said_to_come_through_it(
    status: int, proxy: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
    proxy.always = lambda _: Answer(status, b"<html>Squid</html>")
    with pytest.raises(EmbeddingError, match=r"through the proxy 127\.0\.0\.1:"):
        embedder("http://embeddings.invalid/v1", tmp_path).embed(TEXTS, "query")


def test_a_server_that_fails_without_a_proxy_blames_none(
    server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://{NOBODY}")
    server.always = error(503)
    with pytest.raises(EmbeddingError, match="The server fails") as caught:
        embedder(server, tmp_path).embed(TEXTS, "query")
    assert "proxy" not in str(caught.value)


def test_nothing_that_is_meant_for_openai_is_sent_to_another_server(
    server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder(server, tmp_path).embed(TEXTS)
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "WEBHOOK_SECRET"):
        monkeypatch.setenv(f"OPENAI_{name}", "meant-for-openai")
    headers = "X-Gateway: meant-for-openai\nAuthorization: Bearer meant-for-openai"
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", headers)
    embedder(server, tmp_path).embed(TEXTS)
    before, after = (dict(request.headers) for request in server.requests)
    assert "meant-for-openai" not in str(after)
    assert after.keys() == before.keys()
    assert after["authorization"] == before["authorization"]


def test_organization_and_project_are_sent_to_openai_alone(
    server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-planted")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-planted")
    embedder(server, tmp_path).embed(TEXTS)
    assert "planted" not in str(server.requests[0].headers).replace("sk-planted", "")
    theirs = embedder("https://api.openai.com/v1", tmp_path)._requests._client.connected
    assert (theirs.organization, theirs.project) == ("org-planted", "proj-planted")
