"""Each documented server, with the YAML of docs/providers.md, against a fake of its answers."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from embedding_assets.collection.settings import CollectionSettings
from resources.embedders.openai.embedder import OpenAIEmbedder
from resources.errors import CredentialsError, ModelError
from tests.support.checkout import PROJECT
from tests.support.compatible_servers import SERVERS
from tests.support.fakes import fake_vector
from tests.support.openai_server import Answer, OpenAIServer, Request, embedder, error

PAGE = PROJECT / "docs" / "providers.md"
TEXTS = [f"Text {number}." for number in range(40)]


def documented() -> dict[str, dict[str, Any]]:
    """The YAML of each server on the page, by the name in its first line."""
    blocks = re.findall(r"```yaml\n# ([^\n:]+)[^\n]*\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    return {name: yaml.safe_load(block)["embedder"] for name, block in blocks}


def made(name: str, server: OpenAIServer, folder: Path) -> OpenAIEmbedder:
    """The embedder of the page's YAML; only where the server is and its key are ours."""
    collection = {"name": "corpus", "source": {"path": "x"}, "embedder": documented()[name]}
    settings = CollectionSettings.model_validate(collection).embedder
    given = settings.model_dump(exclude={"provider", "flush_size"})
    server.dimension = settings.build(folder).space.dimension
    server.always = lambda request: SERVERS[name].answer(server, request)
    return embedder(server, folder, **{**given, "base_url": server.url, "api_key_env": "THE_KEY"})


REQUESTS = {
    "LiteLLM": 3,  # base64, floats, and neither
    "vLLM": 2,
    "text-embeddings-inference": 3,  # all, then 32 and 8
    "Mistral": 3,
}


@pytest.mark.parametrize("name", SERVERS)
def test_a_documented_server_is_used_with_the_yaml_of_the_page_and_asked_rightly_from_then_on(
    name: str, server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "right")
    ours = made(name, server, tmp_path)
    expected = np.stack([fake_vector(ours.document_prompt + t, server.dimension) for t in TEXTS])
    np.testing.assert_allclose(ours.embed(TEXTS).vectors, expected, atol=1e-6)
    assert len(server.requests) == REQUESTS.get(name, 1)
    refused = REQUESTS.get(name, 1) - (2 if name == "text-embeddings-inference" else 1)
    del server.requests[:]
    next_run = made(name, server, tmp_path)
    np.testing.assert_allclose(next_run.embed(TEXTS).vectors, expected, atol=1e-6)
    assert len(server.requests) == REQUESTS.get(name, 1) - refused, "what it refuses is remembered"


@pytest.mark.parametrize("name", SERVERS)
def test_a_wrong_key_is_said_at_once_whatever_the_server_answers(
    name: str, server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "wrong")
    with pytest.raises(CredentialsError, match="Is the environment variable THE_KEY right"):
        made(name, server, tmp_path).embed(TEXTS)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("model", "answered"),
    [
        ("nomic-embed-text", "nomic-embed-text:latest"),
        ("nomic-embed-text:latest", "nomic-embed-text"),
        ("BAAI/bge-m3", "bge-m3"),
        ("bge-m3", "/models/BAAI/bge-m3/"),
        ("BAAI/bge-m3", "/root/.cache/huggingface/hub/models--BAAI--bge-m3/snapshots/5617a9f61b02"),
        ("gemini-embedding-001", "models/gemini-embedding-001"),
        ("text-embedding-ada-002", "text-embedding-ada-002-v2"),
    ],
)
def test_one_model_has_several_names(
    model: str, answered: str, server: OpenAIServer, tmp_path: Path
) -> None:
    server.always = lambda request: Answer(body=server.content(request, model=answered))
    assert embedder(server, tmp_path, model=model).embed(TEXTS).vectors.shape == (40, 16)


def test_the_advice_after_another_name_can_be_followed(
    server: OpenAIServer, tmp_path: Path
) -> None:
    server.always = lambda request: Answer(body=server.content(request, model="azure/their name"))
    with pytest.raises(ModelError, match="set answers_as: 'azure/their name'"):
        embedder(server, tmp_path, model="deployment").embed(TEXTS)
    ours = embedder(server, tmp_path, model="deployment", answers_as="azure/their name")
    assert ours.embed(TEXTS).vectors.shape == (40, 16)
    server.always = lambda request: Answer(body=server.content(request, model="another"))
    with pytest.raises(ModelError, match="of model 'deployment' or 'azure/their name', but"):
        ours.embed(TEXTS)


@pytest.mark.parametrize("other", ["bge-m3-large", "bge-m4", "m3", "bge-m3:q4"])
def test_another_model_is_no_other_name(other: str, server: OpenAIServer, tmp_path: Path) -> None:
    server.always = lambda request: Answer(body=server.content(request, model=other))
    with pytest.raises(ModelError, match="answers with"):
        embedder(server, tmp_path, model="bge-m3").embed(TEXTS)


def test_a_model_behind_another_name_has_its_own_length_and_price(tmp_path: Path) -> None:
    ours = embedder(
        "http://127.0.0.1:1/v1",
        tmp_path,
        model="deployment",
        answers_as="text-embedding-3-large",
        dimensions=None,
    )
    assert ours.space.dimension == 3072
    assert ours.price.dollars(1_000_000) == pytest.approx(0.13)


def test_a_length_that_the_server_does_not_have_is_said_with_the_one_that_it_has(
    server: OpenAIServer, tmp_path: Path
) -> None:
    def step(request: Request) -> Answer:
        if "dimensions" in request.body:
            return error(400, "This model does not support specifying dimensions.")(request)
        return server.embeddings(request)

    server.always = step
    with pytest.raises(ModelError, match=r"Expected vectors of 8 numbers, but the server .* 16"):
        embedder(server, tmp_path, dimensions=8).embed(TEXTS)
    assert len(server.requests) == 2
