"""What an index holds in all, and some of its chunks with their vectors."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding_assets.collection.collection import CollectionResources

_ROWS_READ_PER_VECTOR = 10


@dataclass
class IndexCounts:
    """What a table holds.

    Attributes:
        chunks: how many, by partition.
        documents: the same.
        oldest: the time of the oldest document; None: they have no times.
        newest: of the newest.
    """

    chunks: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)
    oldest: datetime | None = None
    newest: datetime | None = None

    @classmethod
    def of(cls, collection: str, resources: CollectionResources) -> "IndexCounts":
        """Reads three short columns of all rows."""
        counts = cls()
        columns = ["partition", "chunk_number", "timestamp"]
        for batch in resources.store.scan(collection, resources.embedder.space, columns):
            counts.chunks.update(_counts(batch["partition"]))
            first = batch.filter(pc.field("chunk_number") == 0)
            counts.documents.update(_counts(first["partition"]))
            times = pc.call_function("min_max", [batch["timestamp"]]).as_py()
            counts.oldest = min(filter(None, (counts.oldest, times["min"])), default=None)
            counts.newest = max(filter(None, (counts.newest, times["max"])), default=None)
        return counts


def _counts(column: pa.Array) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in column.value_counts().to_pylist()}


@dataclass(frozen=True)
class VectorSample:
    """Some rows of the index, in random order.

    Attributes:
        vectors: shape (n, dimension), float32, all finite.
        titles: of the chunks' documents; the id of one that has none.
        texts: the chunks' own.
        documents: the ids of their documents.
        partitions: of which any row was looked at, in random order.
    """

    vectors: np.ndarray
    titles: Sequence[str]
    texts: Sequence[str]
    documents: Sequence[str]
    partitions: Sequence[str]

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def draw(
        cls, collection: str, resources: CollectionResources, counts: IndexCounts, size: int
    ) -> "VectorSample":
        """The same sample for the same index, in whatever order its rows are.

        Vectors are read only of some partitions: to read all those of a large index takes minutes.
        """
        store, space = resources.store, resources.embedder.space
        partitions = sorted(counts.chunks)
        Random(collection).shuffle(partitions)
        chosen, rows = [], 0
        while partitions and rows < _ROWS_READ_PER_VECTOR * size:
            chosen.append(partitions.pop())
            rows += counts.chunks[chosen[-1]]
        columns = ["chunk_id", "document_id", "title", "text", "vector"]
        kept = None
        for batch in store.scan(
            collection, space, columns, partitions=chosen if partitions else None
        ):
            table = pa.Table.from_batches([batch]).select(columns)
            table = table if kept is None else pa.concat_tables([kept, table])
            # Chunk ids are hashes: the smallest are a random sample.
            kept = table.sort_by("chunk_id").slice(0, size).combine_chunks()
        if kept is None:
            return cls(np.zeros((0, space.dimension), np.float32), [], [], [], chosen)
        vectors = kept["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors = vectors.reshape(len(kept), space.dimension)
        finite = np.isfinite(vectors).all(axis=1)  # the check `vector_integrity` tells of others
        kept = kept.filter(pa.array(finite))
        documents = kept["document_id"].to_pylist()
        titles = kept["title"].to_pylist()
        return cls(
            vectors[finite],
            [title or id for title, id in zip(titles, documents, strict=True)],
            kept["text"].to_pylist(),
            documents,
            chosen,
        )
