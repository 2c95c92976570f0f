"""Embeds a stream of texts: reader, model and cache work at once, within bounded memory."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa

from resources.caches.vectors import valid_vectors
from resources.embedders.base import HARMLESS_TEXT, Embedder, EmbeddingBatch, Role
from resources.errors import EmbeddingError

_DOUBT_AFTER = 8
"""At the first failure, and again after so many in a row, a harmless text tells whether the texts
are at fault or the embedder."""

_CALLS_PER_WINDOW = 4
_WINDOW_BYTES = 8_000_000
"""Texts are sorted in windows of so many calls of the model, or so many bytes if that is less."""

_FIRST_CHARACTERS = 20_000
"""Of the first call, while nothing is known of the speed: some two dozen chunks."""

NO_KNOWN_TOKEN = "no_known_token"
"""The reason of a text of which the model sees nothing."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Embedded(Generic[Item]):
    """What became of the texts of one item.

    Attributes:
        item: as the reader gave it.
        batch: the vectors of its n texts; rows of failed texts are zero.
        errors: for each text None, or the reason code and a sentence for the quarantine.
        seconds: how long the call took.
    """

    item: Item
    batch: EmbeddingBatch
    errors: list[tuple[str, str] | None]
    seconds: float


class Pace:
    """How much the next call may hold, so that calls take about as long as they should.

    A slow model then has something durable, and counted, every few seconds as a fast one has.

    Args:
        seconds: that a call should take; None: as long as it takes.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._characters = None if seconds is None else _FIRST_CHARACTERS

    def learn(self, embedded: "Embedded[pa.RecordBatch]") -> None:
        """Takes the speed of a call for that of the next."""
        if self._seconds is not None:
            characters = sum(map(len, texts_of(embedded.item)))
            self._characters = int(characters / max(embedded.seconds, 1e-3) * self._seconds)

    def rows(self, lengths: np.ndarray) -> int:
        """How many of n texts are enough for a call, at least one; `lengths` in characters."""
        if self._characters is None:
            return len(lengths)
        return max(1, int(np.searchsorted(np.cumsum(lengths), self._characters, side="right")))


def model_calls(
    embedder: Embedder, rows: Iterable[pa.RecordBatch], most: int, pace: Pace | None = None
) -> Iterator[pa.RecordBatch]:
    """Gathers rows into calls of the model, each of texts of like length, so that little is padded.

    Args:
        embedder: the model.
        rows: with a column `text`; at most `most` rows at a time.
        most: rows of a call.
        pace: how much less is enough; by default nothing is.

    Yields:
        The rows of one call.
    """
    pace = pace or Pace(None)
    for window in _windows(rows, most):
        lengths = np.array([len(text) for text in texts_of(window)])
        longest_first = np.argsort(-lengths, kind="stable")
        ordered, lengths = window.take(pa.array(longest_first)), lengths[longest_first]
        start = 0
        while start < len(ordered):
            some = ordered.slice(start, pace.rows(lengths[start : start + most]))
            start += len(some)
            for call in embedder.batches(texts_of(some)):
                yield some.slice(call.start, call.stop - call.start)


def _windows(rows: Iterable[pa.RecordBatch], most: int) -> Iterator[pa.RecordBatch]:
    waiting: list[pa.RecordBatch] = []
    for batch in rows:
        waiting.append(batch)
        if (
            sum(map(len, waiting)) >= _CALLS_PER_WINDOW * most
            or sum(some.nbytes for some in waiting) >= _WINDOW_BYTES
        ):
            window = pa.concat_batches(waiting)
            waiting.clear()
            yield window
    if waiting:
        yield pa.concat_batches(waiting)


def texts_of(rows: pa.RecordBatch) -> list[str]:
    return rows["text"].to_pylist()


def embed_stream(
    embedder: Embedder,
    items: Iterator[Item],
    texts: Callable[[Item], Sequence[str]],
    role: Role = "document",
) -> Iterator[Embedded[Item]]:
    """Embeds items as they come from a reader, `embedder.concurrency` of them at a time.

    What was read and not yet yielded is in memory, or lost by a crash: at most so many items. While
    the caller stores one, the next are with the model. After a failure nothing more is read, what
    was under way is still yielded, and then the failure is raised.

    Args:
        embedder: the model.
        items: the reader.
        texts: the texts of one item.
        role: which of the model's prompts goes before each text.

    Yields:
        The items, in the order in which they are finished.

    Raises:
        EmbeddingError: the embedder failed, and no text is at fault.
    """
    failures: list[BaseException] = []
    running: dict[Future[Embedded[Item]], None] = {}
    pool = ThreadPoolExecutor(embedder.concurrency, thread_name_prefix="embed")

    def embed(item: Item) -> Embedded[Item]:
        started = time.perf_counter()
        batch, errors = embed_each(embedder, texts(item), role)
        return Embedded(item, batch, errors, time.perf_counter() - started)

    def read() -> bool:
        try:
            item = next(items)
        except StopIteration:
            return False
        except Exception as error:
            failures.append(error)
            return False
        running[pool.submit(embed, item)] = None
        return True

    try:
        more = True
        while more or running:
            while more and not failures and len(running) < embedder.concurrency:
                more = read()
            if failures:
                more = False
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                error = future.exception()
                if error is None:
                    yield future.result()
                else:
                    failures.append(error)
    finally:
        if running:  # the caller failed, or the run was cancelled: nobody will store them
            embedder.give_up()
        pool.shutdown(cancel_futures=True)
    if failures:
        raise failures[0]


def embed_each(
    embedder: Embedder, texts: Sequence[str], role: Role = "document"
) -> tuple[EmbeddingBatch, list[tuple[str, str] | None]]:
    """Embeds texts; a text that cannot be embedded does not stop the others.

    Args:
        embedder: the model.
        texts: n texts.
        role: which of the model's prompts goes before each text.

    Returns:
        The batch (rows of failed texts are zero) and, for each text, None or the reason code and
        a sentence for the quarantine.

    Raises:
        EmbeddingError: the embedder also fails for a harmless text: then not these are at fault.
    """
    vectors = np.zeros((len(texts), embedder.space.dimension), dtype=np.float32)
    tokens, truncated, unknown = (np.zeros(len(texts), dtype=np.int32) for _ in range(3))
    errors: list[tuple[str, str] | None] = [None] * len(texts)
    dollars = 0.0
    failed_in_a_row = 0
    # A list of what is left, not a function that calls itself: such a closure refers to itself, and
    # so the vectors of each batch stayed until Python looked for cycles.
    spans = [(0, len(texts))] if len(texts) else []
    while spans:
        start, end = spans.pop()
        try:
            result = embedder.embed(texts[start:end], role=role)
        except EmbeddingError as error:
            dollars += error.dollars
            if not error.blames_text:
                error.dollars = dollars
                raise
            if end - start == 1:
                if failed_in_a_row % _DOUBT_AFTER == 0 and not error.proven:
                    dollars += _cost_of_doubt(embedder, dollars)
                failed_in_a_row += 1
                errors[start] = ("embedding_failed", str(error)[:200])
                continue
        else:
            failed_in_a_row = 0
            dollars += result.dollars
            vectors[start:end] = result.vectors
            tokens[start:end] = result.tokens
            truncated[start:end] = result.truncated_tokens
            if result.unknown_tokens is not None and result.known_tokens is not None:
                unknown[start:end] = result.unknown_tokens
                for row in np.flatnonzero(result.known_tokens == 0).tolist():
                    errors[start + row] = (NO_KNOWN_TOKEN, _nothing_known(result, row))
                    vectors[start + row] = 0
            continue
        # Halve outside the `except` block: the traceback would keep the batch's tensors alive.
        parts = embedder.batches(texts[start:end])
        if len(parts) == 1:  # else the embedder has learned meanwhile to take fewer at once
            middle = (end - start) // 2
            parts = [slice(0, middle), slice(middle, end - start)]
        spans += [(start + part.start, start + part.stop) for part in reversed(parts)]
    _refuse_invalid(embedder, vectors, errors)
    return EmbeddingBatch(vectors, tokens, truncated, dollars, unknown), errors


def _refuse_invalid(
    embedder: Embedder, vectors: np.ndarray, errors: list[tuple[str, str] | None]
) -> None:
    """Makes an error of each vector that is not one of the space, unless its text has one."""
    for row in np.flatnonzero(~valid_vectors(embedder.space, vectors)):
        if errors[row] is None:
            norm = float(np.linalg.norm(vectors[row]))
            errors[row] = ("invalid_vector", f"the model returned a vector of norm {norm}")
            vectors[row] = 0


def _nothing_known(batch: EmbeddingBatch, row: int) -> str:
    unknown = 0 if batch.unknown_tokens is None else int(batch.unknown_tokens[row])
    return (
        f"the model knows no token of the text ({unknown} are unknown to it): all such texts would "
        "have one vector; a model for the text's language or script is needed"
    )


def _cost_of_doubt(embedder: Embedder, spent: float) -> float:
    """Dollars of a harmless text; if it fails too, that error carries all that is spent."""
    try:
        return embedder.embed([HARMLESS_TEXT]).dollars
    except EmbeddingError as error:
        error.dollars += spent
        raise
