"""Shortened vectors: only of models that are said to be able, and never stored as whole ones."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from resources.caches.vectors import hash_array
from resources.embedders.base import EmbeddingBatch, Role
from resources.identity.content_hash import content_hash
from tests.service.test_embeddings import pipeline
from tests.support.fakes import POISON, CountingEmbedder, fake_vector
from tests.support.pipeline import Pipeline
from tests.support.service import RunningService

HOLLOW = "nothing in the first values"


class MatryoshkaEmbedder(CountingEmbedder):
    """Its vectors may be cut to 16 or 8 values; of one text these are 0."""

    @property
    def shorter_dimensions(self) -> Sequence[int]:
        return (16, 8)

    def embed(self, texts: Sequence[str], role: Role = "document") -> EmbeddingBatch:
        batch = super().embed(texts, role)
        for row, text in enumerate(texts):
            if text == HOLLOW:
                batch.vectors[row] = np.eye(32, dtype=np.float32)[20]
        return batch


@pytest.fixture
def made(tmp_path: Path) -> Pipeline:
    return pipeline(tmp_path, embedder=MatryoshkaEmbedder())


@pytest.fixture
def running(made: Pipeline, tmp_path: Path) -> Iterator[RunningService]:
    with RunningService(made.opened, folder=tmp_path) as running:
        yield running


def cut(text: str, length: int) -> np.ndarray:
    vector = fake_vector(text, 32)[:length]
    return (vector / np.linalg.norm(vector.astype(np.float64))).astype(np.float32)


def test_the_whole_vector_is_asked_for_and_kept_whatever_is_answered(
    running: RunningService, made: Pipeline
) -> None:
    embedder = running.service.collections["corpus"].resources.embedder
    embedder.texts.clear()  # pyright: ignore[reportAttributeAccessIssue]
    lengths = (8, 32, 16, 8, None)
    answers = [running.post("/embed", text="a", dimensions=length).json() for length in lengths]
    for answer, length in zip(answers, lengths, strict=True):
        told = np.array(answer["embedding"], np.float32)
        assert (told == (cut("a", length) if length in (8, 16) else fake_vector("a", 32))).all()
        assert answer["dimensions"] == len(told)
    assert [answer["cached"] for answer in answers] == [False, True, True, True, True]
    assert embedder.texts == ["a"]  # pyright: ignore[reportAttributeAccessIssue]
    running.stop()
    space = made.embedder.space
    assert made.cache.spaces() == [space]
    stored = made.cache.get(space, hash_array([content_hash("a")]))
    assert (stored.vectors == fake_vector("a", 32)).all()


def test_each_length_is_a_space_of_its_own(running: RunningService, made: Pipeline) -> None:
    whole = made.embedder.space
    spaces = {
        length: running.post("/embed/batch", texts=["a"], dimensions=length).json()["space"]
        for length in (8, 16, 32)
    }
    assert spaces[32] == whole.id
    assert len({*spaces.values()}) == 3
    # Nor is it that of a model whose vectors are so long by themselves.
    assert spaces[8] not in {dataclasses.replace(whole, dimension=8).id, whole.id}
    lists = running.client.get("/v1/models").json()["data"]
    assert {one["id"]: one["dimensions"] for one in lists} == {
        "fake": [32, 16, 8],
        "corpus": [32, 16, 8],
    }


def test_a_text_of_which_nothing_is_left_fails_alone(running: RunningService) -> None:
    answer = running.post("/embed/batch", texts=["a", HOLLOW, POISON], dimensions=8).json()
    assert (np.array(answer["embeddings"][0], np.float32) == cut("a", 8)).all()
    assert answer["embeddings"][1:] == [None, None]
    assert [one["code"] for one in answer["errors"]] == ["zero_vector", "embedding_failed"]
    assert (answer["count"], answer["cached_count"]) == (1, 0)
    assert running.post("/embed", text=HOLLOW, dimensions=8).status_code == 422
    assert running.post("/embed", text=HOLLOW).status_code == 200
    openai = running.post("/v1/embeddings", model="corpus", input=HOLLOW, dimensions=8)
    assert (openai.status_code, openai.json()["error"]["code"]) == (400, "zero_vector")


def test_other_lengths_are_refused_with_those_that_there_are(
    running: RunningService, tmp_path: Path
) -> None:
    plain = pipeline(tmp_path / "plain", name="plain", embedder=CountingEmbedder(model="plain"))
    with RunningService(plain.opened, folder=tmp_path) as unable:
        for where, sentence in ((running, "32, 16, 8."), (unable, "matryoshka_dimensions")):
            (collection,) = where.service.collections
            for path, body in (
                ("/embed", {"text": "a"}),
                ("/embed/batch", {"texts": ["a"]}),
                ("/v1/embeddings", {"input": "a", "model": collection}),
            ):
                answer = where.post(path, **body, dimensions=12)
                assert answer.status_code == 400
                assert answer.json()["error"]["code"] == "dimensions_not_supported"
                assert sentence in answer.json()["error"]["message"]
