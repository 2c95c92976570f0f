"""Some vectors of an index, and a map of them."""

from collections import Counter
from dataclasses import dataclass
from random import Random

import numpy as np
import pyarrow as pa

from embedding_assets.collection.collection import CollectionResources

_ROWS_READ_PER_VECTOR = 10


@dataclass(frozen=True)
class VectorSample:
    """Some rows of the index, in random order.

    Attributes:
        of: how many rows the index has.
        vectors: shape (n, dimension), float32, all finite.
        titles: of the chunks' documents; the id of one that has none.
        documents: their ids.
        chunks: the chunks' ids.
        partitions: their partitions.
    """

    of: int
    vectors: np.ndarray
    titles: list[str]
    documents: list[str]
    chunks: list[str]
    partitions: list[str]

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def draw(cls, collection: str, resources: CollectionResources, size: int) -> "VectorSample":
        """The same sample for the same index, in whatever order its rows are.

        Of all rows only the partition is read, and the vectors only of some partitions: to read
        all vectors of a large index takes minutes.
        """
        store, space = resources.store, resources.embedder.space
        rows_of: Counter[str] = Counter()
        for batch in store.scan(collection, space, ["partition"]):
            rows_of.update(batch["partition"].to_pylist())
        partitions = sorted(rows_of)
        Random(collection).shuffle(partitions)
        chosen, rows = [], 0
        while partitions and rows < _ROWS_READ_PER_VECTOR * size:
            chosen.append(partitions.pop())
            rows += rows_of[chosen[-1]]
        columns = ["chunk_id", "document_id", "title", "partition", "vector"]
        kept = None
        for batch in store.scan(
            collection, space, columns, partitions=chosen if partitions else None
        ):
            table = pa.Table.from_batches([batch]).select(columns)
            table = table if kept is None else pa.concat_tables([kept, table])
            # Chunk ids are hashes: the smallest are a random sample.
            kept = table.sort_by("chunk_id").slice(0, size).combine_chunks()
        if kept is None:
            return cls(0, np.zeros((0, space.dimension), np.float32), [], [], [], [])
        vectors = kept["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors = vectors.reshape(len(kept), space.dimension)
        finite = np.isfinite(vectors).all(axis=1)  # the check `vector_integrity` tells of others
        kept = kept.filter(pa.array(finite))
        documents = kept["document_id"].to_pylist()
        return cls(
            rows_of.total(),
            vectors[finite],
            [title or id for title, id in zip(kept["title"].to_pylist(), documents, strict=True)],
            documents,
            kept["chunk_id"].to_pylist(),
            kept["partition"].to_pylist(),
        )


def principal_components(vectors: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Projects vectors on the two directions in which they vary most.

    Args:
        vectors: shape (n, dimension), float32, n >= 2.

    Returns:
        The points, shape (n, 2), float32, and the share of the variance along each axis. The
        signs are such that the same vectors in another order give the same map.
    """
    centred = vectors - vectors.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2][np.arange(2), np.abs(axes[:2]).argmax(axis=1)])[:, None]
    variance = singular**2
    first, second = variance[:2] / max(float(variance.sum()), np.finfo(np.float32).tiny)
    return centred @ axes.T, (float(first), float(second))


def spread(points: np.ndarray, count: int) -> list[int]:
    """Rows of points that are far from each other: each next is the farthest from those before.

    Args:
        points: shape (n, 2).
        count: how many rows at most.
    """
    chosen = [int(np.abs(points - np.median(points, axis=0)).sum(axis=1).argmin())]
    distance = np.full(len(points), np.inf)
    while len(chosen) < count:
        step = np.linalg.norm(points - points[chosen[-1]], axis=1)
        distance = np.minimum(distance, step)
        if not distance.max():
            break
        chosen.append(int(distance.argmax()))
    return chosen
