"""What every embedder promises; a new embedder is one row of `KINDS`."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resources.embedders.base import Embedder
from resources.embedders.local import LocalEmbedder
from resources.embedders.local_model import model_compiler, openvino_model
from resources.embedders.openai.embedder import OpenAIEmbedder
from tests.support.fakes import CountingEmbedder
from tests.support.models import SENTENCES, compile_here, cosines, embed_in_threads, save_model
from tests.support.openai_server import MODEL, OpenAIServer

TEXTS = [text for text in SENTENCES if text.strip()]


@contextmanager
def fake(_: Path) -> Iterator[Embedder]:
    yield CountingEmbedder()


@contextmanager
def local(folder: Path, refuse: bool = False) -> Iterator[Embedder]:
    prompts = {"query": "the question: ", "document": "a text: "}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_model, "_run_compiler", compile_here)
        if refuse:
            patch.setattr(model_compiler, "_convert", _refuse)
        yield LocalEmbedder(
            model=str(save_model(folder / "model", prompts=prompts)),
            model_cache=str(folder / "cache"),
            device="cpu",
            precision="fp32",
        )


def torch(folder: Path) -> AbstractContextManager[Embedder]:
    return local(folder, refuse=True)


def _refuse(*_: Any) -> None:
    raise model_compiler.UnsupportedModelError("an operation nobody knows")


@contextmanager
def openai(folder: Path) -> Iterator[Embedder]:
    with OpenAIServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("PLANTED_KEY", "sk-planted")
        yield OpenAIEmbedder(
            model=MODEL,
            dimensions=16,
            base_url=server.url,
            api_key_env="PLANTED_KEY",
            rate_limits=str(folder / "rate_limits"),
        )


KINDS: list[Callable[[Path], AbstractContextManager[Embedder]]] = [fake, local, torch, openai]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def embedder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Embedder]:
    with request.param(tmp_path_factory.mktemp("embedder")) as made:
        yield made


def test_vectors_are_finite_rows_of_the_space_and_tokens_are_counted(embedder: Embedder) -> None:
    space, batch = embedder.space, embedder.embed(TEXTS)
    assert batch.vectors.shape == (len(TEXTS), space.dimension)
    assert batch.vectors.dtype == np.float32
    assert np.isfinite(batch.vectors).all()
    if space.normalized:
        assert np.allclose(np.linalg.norm(batch.vectors, axis=1), 1, atol=1e-3)
    for counted in (batch.tokens, batch.truncated_tokens):
        assert counted.shape == (len(TEXTS),)
        assert counted.dtype == np.int32
    assert batch.tokens.min() >= 0
    assert batch.tokens.sum() >= len(TEXTS)
    assert batch.tokens.max() <= space.max_tokens
    assert "\n" not in embedder.describe()


def test_no_texts_give_no_vectors(embedder: Embedder) -> None:
    batch = embedder.embed([])
    assert batch.vectors.shape == (0, embedder.space.dimension)
    assert batch.vectors.dtype == np.float32
    assert len(batch.tokens) == len(batch.truncated_tokens) == 0


def test_a_vector_depends_on_its_text_alone_not_on_order_or_batch(embedder: Embedder) -> None:
    together = embedder.embed(TEXTS + TEXTS[::-1]).vectors
    alone = np.concatenate([embedder.embed([text]).vectors for text in TEXTS])
    assert cosines(together[: len(TEXTS)], alone).min() >= 1 - 1e-6
    assert cosines(together, together[::-1]).min() >= 1 - 1e-6
    for first, second in ((0, 1), (3, 8)):
        assert cosines(alone[first : first + 1], alone[second : second + 1]).max() < 0.999


def test_what_is_cut_at_the_limit_is_counted_and_what_fits_is_whole(embedder: Embedder) -> None:
    over = "word " * (2 * embedder.max_text_tokens)
    batch = embedder.embed(["word", over, over + "and what nobody reads"])
    assert (batch.truncated_tokens > 0).tolist() == [False, True, True]
    assert batch.truncated_tokens[2] > batch.truncated_tokens[1]
    assert batch.tokens[1] == batch.tokens[2] <= embedder.space.max_tokens
    assert cosines(batch.vectors[1:2], batch.vectors[2:]).min() >= 1 - 1e-6


def test_the_tokenizer_neither_cuts_nor_pads_and_the_limit_leaves_room(embedder: Embedder) -> None:
    tokenizer = embedder.new_tokenizer()
    assert tokenizer is not embedder.new_tokenizer()
    counts = [len(e) for e in tokenizer.encode_batch(["word", "word " * 9_000])]
    assert counts[0] < 20
    assert counts[1] >= 9_000
    assert 0 < embedder.max_text_tokens <= embedder.space.max_tokens - embedder.special_tokens


def test_a_prompt_goes_before_the_texts_of_its_role(embedder: Embedder) -> None:
    documents, queries = embedder.embed(TEXTS, "document"), embedder.embed(TEXTS, "query")
    assert queries.vectors.shape == documents.vectors.shape
    has_prompts = isinstance(embedder, LocalEmbedder)
    differ = cosines(queries.vectors, documents.vectors).min() < 0.999
    assert differ == has_prompts
    assert bool((queries.tokens != documents.tokens).any()) == has_prompts


def test_threads_may_share_an_embedder(embedder: Embedder) -> None:
    expected = embedder.embed(TEXTS).vectors
    for number, batch in enumerate(embed_in_threads(embedder.embed, TEXTS)):
        assert cosines(batch.vectors, expected[number:]).min() >= 1 - 1e-6


def test_calls_hold_every_text_once_in_order(embedder: Embedder) -> None:
    texts = TEXTS * 200
    calls = embedder.batches(texts)
    assert [text for call in calls for text in texts[call]] == texts
    assert embedder.concurrency >= 1
