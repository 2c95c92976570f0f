"""The stream between reader and cache: overlap, bounds, and what a failure leaves."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedding_assets.embeddings.stream import Embedded, Pace, embed_stream, model_calls, texts_of
from resources.embedders.base import EmbeddingBatch, Role
from resources.errors import EmbedderUnavailableError, EmbeddingError
from tests.support.fakes import POISON, CountingEmbedder, fake_vector


class Meeting(CountingEmbedder):
    """Two calls of `embed` must be under way at once, or it times out."""

    @property
    def concurrency(self) -> int:
        return 2

    def embed(self, texts: Sequence[str], role: Role = "document") -> EmbeddingBatch:
        _barrier.wait(timeout=10)
        return super().embed(texts, role)


_barrier = threading.Barrier(2)


class Refusing(CountingEmbedder):
    """Fails for a text "stop", as a provider without quota does, before "good" is embedded."""

    @property
    def concurrency(self) -> int:
        return 2

    def embed(self, texts: Sequence[str], role: Role = "document") -> EmbeddingBatch:
        if texts[0] == "stop":
            threading.Timer(0.2, _stopped.set).start()  # by then the failure is known
            raise EmbedderUnavailableError("no more of it")
        _stopped.wait(timeout=10)
        return super().embed(texts, role)


_stopped = threading.Event()


def stream(embedder: CountingEmbedder, items: Iterator[list[str]]) -> Iterator[Any]:
    return embed_stream(embedder, items, lambda item: item)


def test_as_many_calls_are_under_way_at_once_as_the_embedder_wants():
    results = list(stream(Meeting(), iter([["a"], ["b"], ["c"], ["d"]])))
    assert sorted(result.item[0] for result in results) == ["a", "b", "c", "d"]
    for result in results:
        assert result.batch.vectors[0].tolist() == fake_vector(result.item[0], 32).tolist()


def test_no_more_is_read_than_can_be_under_way():
    read = []

    def reader() -> Iterator[list[str]]:
        for number in range(10):
            read.append(number)
            yield [f"text {number}"]

    results = stream(CountingEmbedder(), reader())
    next(results)
    assert read == [0]
    next(results)
    assert read == [0, 1]


def test_a_failure_of_the_embedder_stops_reading_but_not_what_is_under_way():
    _stopped.clear()
    read = []

    def reader() -> Iterator[list[str]]:
        for text in ("good", "stop", "never read"):
            read.append(text)
            yield [text]

    results = stream(Refusing(), reader())
    assert next(results).item == ["good"]
    with pytest.raises(EmbeddingError, match="no more of it"):
        next(results)
    assert read == ["good", "stop"]


def test_a_failure_of_the_reader_is_raised_after_what_is_under_way():
    def reader() -> Iterator[list[str]]:
        yield ["good"]
        raise OSError("the disk is gone")

    class Two(CountingEmbedder):
        @property
        def concurrency(self) -> int:
            return 2

    results = stream(Two(), reader())
    assert next(results).item == ["good"]
    with pytest.raises(OSError, match="the disk is gone"):
        next(results)


def test_a_caller_that_fails_leaves_no_thread_behind():
    def embedding() -> set[str]:
        return {thread.name for thread in threading.enumerate() if "embed" in thread.name}

    results = stream(CountingEmbedder(), iter([["a"], ["b"]]))
    next(results)
    assert embedding()
    results.close()  # type: ignore[attr-defined]
    assert not embedding()


def test_a_bad_text_fails_alone_and_the_others_of_its_call_do_not():
    (result,) = stream(CountingEmbedder(), iter([["a", POISON, "c"]]))
    assert [error is None for error in result.errors] == [True, False, True]
    assert not result.batch.vectors[1].any()


# --- calls of the model


def rows_of(texts: list[str]) -> pa.RecordBatch:
    return pa.record_batch({"number": [int(text.split()[0]) for text in texts], "text": texts})


def test_texts_of_like_length_share_a_call_and_none_is_lost():
    lengths = np.random.default_rng(0).permutation(100)
    texts = [f"{number} {'x' * length}" for number, length in enumerate(lengths.tolist())]
    rows = [rows_of(texts[start : start + 10]) for start in range(0, 100, 10)]
    calls = list(model_calls(CountingEmbedder(), iter(rows), most=10))
    assert [len(call) for call in calls] == [10] * 10
    assert sorted(t for call in calls for t in texts_of(call)) == sorted(texts)
    for call in calls:
        for number, text in zip(call["number"].to_pylist(), texts_of(call), strict=True):
            assert text == texts[number]
    # Sorted in windows of four calls: within the first, no text is longer than one before it.
    first = [len(text) for call in calls[:4] for text in texts_of(call)]
    assert first == sorted(first, reverse=True)
    assert sorted(first) == sorted(len(text) for text in texts[:40])


def test_no_more_long_texts_are_held_than_a_few_megabytes():
    read = []

    def rows() -> Iterator[pa.RecordBatch]:
        for number in range(40):
            read.append(number)
            yield rows_of([f"{number} {'x' * 5_000_000}"])

    calls = model_calls(CountingEmbedder(), rows(), most=100)
    assert len(next(calls)) == 2
    assert read == [0, 1]


def test_calls_are_as_large_as_a_model_of_its_speed_can_do_in_a_few_seconds() -> None:
    def sizes(characters_per_second: float, texts: int = 3_000) -> list[int]:
        """Of the calls, when each takes as long as it does at that speed."""
        pace, found = Pace(4.0), []
        rows = [rows_of([f"{n} {'x' * 795}"[:800] for n in range(texts)])]
        for call in model_calls(CountingEmbedder(), iter(rows), most=1_000, pace=pace):
            found.append(len(call))
            characters = sum(map(len, texts_of(call)))
            batch = EmbeddingBatch(np.zeros((0, 1)), np.zeros(0), np.zeros(0))
            pace.learn(Embedded(call, batch, [], characters / characters_per_second))
        assert sum(found) == texts
        return found

    assert sizes(100 * 800) == [25, 400, 400, 400, 400, 400, 400, 400, 175]
    assert sizes(100_000 * 800)[1:] == [1_000, 1_000, 975], "never more than may be lost"
    assert set(sizes(2 * 800, texts=100)[1:]) == {8, 3}
    assert set(sizes(0.1 * 800, texts=30)[1:]) == {1}, "a text takes longer: it goes alone"
    pace = Pace(None)
    assert pace.rows(np.full(1_000, 800)) == 1_000
