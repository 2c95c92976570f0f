"""What the embedding cache saves: without it, cold, warm, and with a share of repeated texts."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.measure import in_turn, median, seconds, speedup, spread
from embedding_assets.embeddings.stream import embed_stream, model_calls, texts_of
from resources.caches.base import EmbeddingCache
from resources.caches.duckdb import DuckDBEmbeddingCache
from resources.caches.vectors import CONTENT_HASH_TYPE, hash_array
from resources.embedders.base import Embedder
from resources.identity.content_hash import content_hash

ONE_AT_A_TIME = "one text at a time, no cache"
BATCHED = "batched, no cache"
COLD = "cold cache: empty, 0 % repeats"
WARM = "warm cache: all texts are in it"


@dataclass(frozen=True)
class CacheRow:
    """One row of the table; medians over the rounds.

    Attributes:
        way: what was done.
        embedded: texts that went through the model.
        texts_per_second: vectors returned, and durable in the cache where there is one.
        against_one_at_a_time: how many times as fast as `ONE_AT_A_TIME`.
        against_batched: how many times as fast as `BATCHED`.
        spread: of the time over the rounds, (greatest − least) / median.
    """

    way: str
    embedded: int
    texts_per_second: float
    against_one_at_a_time: float
    against_batched: float
    spread: float


def embed_through_cache(
    embedder: Embedder, cache: EmbeddingCache, texts: Sequence[str], flush_size: int
) -> tuple[np.ndarray, int]:
    """What the assets do, for texts in memory: hash, drop duplicates, look up, embed, keep.

    Returns:
        Vectors, shape (n, dimension), float32, in the order of the texts; how many were embedded.
    """
    keys = [content_hash(text) for text in texts]
    distinct = dict(zip(keys, texts, strict=True))
    hashes = hash_array(list(distinct))
    answer = cache.get(embedder.space, hashes)
    vectors, missing = answer.vectors, np.flatnonzero(~answer.found)
    if len(missing):
        asked = pa.record_batch(
            {"row": missing, "text": pa.array(distinct.values(), pa.string()).take(missing)}
        )
        most = max(1, flush_size // embedder.concurrency)
        slices = (asked.slice(start, most) for start in range(0, len(asked), most))
        for done in embed_stream(embedder, model_calls(embedder, slices, most), texts_of):
            if any(done.errors):
                raise RuntimeError(f"a text could not be embedded: {done.errors}")
            rows = done.item["row"]
            vectors[rows] = done.batch.vectors
            cache.put(embedder.space, hashes.take(rows), done.batch.vectors)
    if len(distinct) < len(texts):
        rows = {key: row for row, key in enumerate(distinct)}
        vectors = vectors[[rows[key] for key in keys]]
    return vectors, len(missing)


def measure_cache(
    embedder: Embedder,
    texts: Sequence[str],
    shares: Sequence[int],
    flush_size: int,
    one_at_a_time: int,
    repeats: int,
    progress: Callable[[str], None] = print,
) -> list[CacheRow]:
    """Embeds as many texts in each way, in turn, `repeats` times.

    Args:
        embedder: what is measured; it is warmed up first.
        texts: distinct.
        shares: percentages of repeated texts: within the run (the cache is empty), and against a
            filled cache (the texts of the run are distinct).
        flush_size: maximum number of texts in work that are not yet durable in the cache.
        one_at_a_time: so many texts for the slowest way, which is then scaled to all.
        repeats: rounds.
        progress: called with a line for people, now and then.
    """
    known_vectors = embedder.embed(texts).vectors  # warms the model, too
    hashes = pa.array([content_hash(text) for text in texts], CONTENT_HASH_TYPE)
    embedded: dict[str, int] = {ONE_AT_A_TIME: len(texts), BATCHED: len(texts)}

    def singly() -> float:
        some = list(texts[:: max(1, len(texts) // one_at_a_time)])
        taken = sum(seconds(lambda t=text: embedder.embed([t])) for text in some)
        return taken * len(texts) / len(some)

    def batched() -> float:
        starts = range(0, len(texts), flush_size)
        return sum(seconds(lambda s=s: embedder.embed(texts[s : s + flush_size])) for s in starts)

    def through_cache(way: str, asked: Sequence[str], known: int) -> float:
        with _cache() as cache:
            if known:
                cache.put(embedder.space, hashes.slice(0, known), known_vectors[:known])

            def run() -> None:
                _, embedded[way] = embed_through_cache(embedder, cache, asked, flush_size)

            taken = seconds(run)
        progress(f"{way}: {len(asked) / taken:,.0f} texts/s")
        return taken

    ways: dict[str, Callable[[], float]] = {ONE_AT_A_TIME: singly, BATCHED: batched}
    ways[COLD] = partial(through_cache, COLD, texts, 0)
    ways[WARM] = partial(through_cache, WARM, texts, len(texts))
    for share in (share for share in shares if share > 0):
        way = f"{share} % repeats within the run, empty cache"
        ways[way] = partial(through_cache, way, with_repeats(texts, share), 0)
    for share in (share for share in shares if share < 100):
        way = f"{share} % of the texts in the cache"
        ways[way] = partial(through_cache, way, texts, len(texts) * share // 100)
    return _rows(in_turn(ways, repeats), embedded, len(texts))


def _rows(
    times: Mapping[str, Sequence[float]], embedded: Mapping[str, int], texts: int
) -> list[CacheRow]:
    return [
        CacheRow(
            way=way,
            embedded=embedded[way],
            texts_per_second=texts / median(rounds),
            against_one_at_a_time=speedup(rounds, times[ONE_AT_A_TIME]),
            against_batched=speedup(rounds, times[BATCHED]),
            spread=spread(rounds),
        )
        for way, rounds in times.items()
    ]


def with_repeats(texts: Sequence[str], share: int) -> list[str]:
    """As many texts, of which `share` percent repeat an earlier one; 100: all but the first.

    Equal texts are neighbours.
    """
    distinct = max(1, len(texts) * (100 - share) // 100)
    return [texts[number * distinct // len(texts)] for number in range(len(texts))]


@contextmanager
def _cache() -> Iterator[EmbeddingCache]:
    """An empty cache, removed afterwards; opened once, so that its schema is there."""
    with tempfile.TemporaryDirectory(prefix="benchmark-cache-") as folder:
        yield DuckDBEmbeddingCache(path=str(Path(folder) / "cache.duckdb"))


def plot_cache(rows: Sequence[CacheRow], title: str) -> bytes:
    """Texts per second of each way; a PNG."""
    from benchmarks.plots import figure, png

    plot = figure()
    axes = plot.subplots()
    names = [row.way for row in rows]
    bars = axes.barh(names, [row.texts_per_second for row in rows])
    axes.bar_label(bars, [f"{row.against_one_at_a_time:,.1f} ×" for row in rows], padding=3)
    axes.set(xlabel="texts per second (labels: against one text at a time)", xscale="log")
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    plot.suptitle(title)
    return png(plot)
