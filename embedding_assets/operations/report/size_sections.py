"""How much a collection holds, how old that is, and what it takes."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone

import numpy as np
import pyarrow.parquet as pq

from embedding_assets.artifacts.keys import chunks_key
from embedding_assets.collection.collection import CollectionResources
from embedding_assets.collection.settings import CollectionSettings
from embedding_assets.operations.report.page import Section
from embedding_assets.operations.report.plots import bars_plot, histogram_plot
from embedding_assets.operations.report.sample import IndexCounts, VectorSample
from embedding_assets.operations.report.svg import Drawing
from embedding_assets.runs.history import PartitionNumbers

_BARS = 80
_BINS = 32
_FILES = 200
"""Of chunks that are read at most."""
_AGES = (
    ("years", 31_556_952), ("months", 2_629_746), ("days", 86_400), ("h", 3600), ("min", 60),
)  # fmt: skip


def figures(
    collection: str,
    resources: CollectionResources,
    counts: IndexCounts,
    history: Sequence[PartitionNumbers],
    now: float,
) -> Iterator[tuple[str, str]]:
    """The numbers at the top of the page: each with its name."""
    yield "documents", f"{counts.documents.total():,}"
    yield "chunks", f"{counts.chunks.total():,}"
    yield "partitions", f"{len(counts.chunks):,}"
    for name, time in (("oldest document", counts.oldest), ("newest document", counts.newest)):
        if time is not None:
            yield name, f"{time:%Y-%m-%d}"
    if history:
        newest = {entry.partition: entry.time for entry in reversed(history)}
        yield "last run", ago(now - history[0].time)
        yield "least recent partition", ago(now - min(newest.values()))
    taken = (
        ("index", resources.store.bytes_used(collection, resources.embedder.space)),
        ("cache, all collections", resources.cache.bytes_used()),
        ("artifacts", resources.artifacts.bytes_used(f"{collection}/")),
    )
    for name, size in taken:
        if size is not None:
            yield name, megabytes(size)


def moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M}"


def ago(seconds: float) -> str:
    """How long ago something was."""
    for unit, size in _AGES:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now"


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


def size_sections(
    settings: CollectionSettings,
    resources: CollectionResources,
    counts: IndexCounts,
    sample: VectorSample,
) -> Iterator[Section]:
    """Documents by partition, and the sizes of chunks."""
    if len(counts.documents) > 1:
        yield Section("Documents by partition", picture=_documents_by_partition(counts))
    tokens = _chunk_tokens(settings.name, resources, sample)
    if len(tokens):
        yield Section(
            "Sizes of chunks",
            f"{len(tokens):,} chunks, half of them with {np.median(tokens):,.0f} tokens or more.",
            picture=_histogram(tokens, settings.chunking.max_tokens),
        )


def _documents_by_partition(counts: IndexCounts) -> Drawing:
    partitions = sorted(counts.documents)
    together = math.ceil(len(partitions) / _BARS)
    bars: Counter[str] = Counter()
    for number, partition in enumerate(partitions):
        bars[partitions[number // together * together]] += counts.documents[partition]
    below = "partitions" if together == 1 else f"{together} partitions a bar, by the first of them"
    return bars_plot("documents", list(bars.items()), below)


def _chunk_tokens(
    collection: str, resources: CollectionResources, sample: VectorSample
) -> np.ndarray:
    """The tokens of the chunks of some partitions, shape (n,)."""
    found = [np.zeros(0, np.int64)]
    for partition in sample.partitions[:_FILES]:
        key = chunks_key(collection, partition)
        if resources.artifacts.exists(key):
            with resources.artifacts.reading(key) as path:
                found.append(pq.read_table(path, columns=["tokens"])["tokens"].to_numpy())
    return np.concatenate(found)


def _histogram(tokens: np.ndarray, limit: int) -> Drawing:
    end = max(limit, int(tokens.max()))
    width = math.ceil(end / _BINS)
    counts = np.bincount((tokens - 1).clip(0) // width, minlength=math.ceil(end / width)).tolist()
    return histogram_plot("chunks", counts, len(counts) * width, "tokens in a chunk", limit)
