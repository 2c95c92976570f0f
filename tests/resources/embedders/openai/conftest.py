"""A server that does as it is told, and the key that it may be asked with."""

from collections.abc import Iterator

import pytest

from tests.support.openai_server import KEY, OpenAIServer


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_KEY", KEY)
    monkeypatch.delenv("EMBEDDING_RATE_LIMITER", raising=False)
    monkeypatch.delenv("EMBEDDING_PRICES", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server
