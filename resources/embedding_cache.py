"""The cache of vectors: (embedding space, content hash) -> vector, shared by all collections."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import dagster as dg
import numpy as np
import pyarrow as pa

from resources.content_identity import HASH_BYTES
from resources.embedding_space import EmbeddingSpace

NORM_TOLERANCE = 1e-3
"""How far the norm of a vector of a normalised space may be from 1."""

CONTENT_HASH_TYPE = pa.binary(HASH_BYTES)


@dataclass(frozen=True)
class CachedVectors:
    """The answer to one look-up.

    Attributes:
        found: shape (n,), bool; which of the n hashes asked for the cache holds.
        vectors: shape (n, dimension), float32; rows that were not found are zero.
        rejected: entries that were there but no valid vector of the space: treated as not found.
    """

    found: np.ndarray
    vectors: np.ndarray
    rejected: int


@dataclass(frozen=True)
class SpaceStatistics:
    """What the cache holds of one embedding space."""

    space_id: str
    model: str
    dimension: int
    entries: int


class EmbeddingCache(dg.ConfigurableResource, ABC):
    """An acknowledged `put` survives a killed process; `get` never returns a broken vector."""

    @abstractmethod
    def contains(self, space: EmbeddingSpace, content_hashes: pa.Array) -> np.ndarray:
        """Says which hashes are held, without reading vectors.

        Args:
            space: the embedding space.
            content_hashes: n values of `CONTENT_HASH_TYPE`.

        Returns:
            Shape (n,), bool.
        """

    @abstractmethod
    def get(self, space: EmbeddingSpace, content_hashes: pa.Array) -> CachedVectors:
        """Reads vectors; each was checked with `valid_vectors`.

        Args:
            space: the embedding space.
            content_hashes: n distinct values of `CONTENT_HASH_TYPE`.
        """

    @abstractmethod
    def put(self, space: EmbeddingSpace, content_hashes: pa.Array, vectors: np.ndarray) -> None:
        """Stores vectors durably before it returns; what is there already is kept if valid.

        Args:
            space: the embedding space.
            content_hashes: n distinct values of `CONTENT_HASH_TYPE`.
            vectors: shape (n, dimension), float32.
        """

    @abstractmethod
    def statistics(self) -> list[SpaceStatistics]: ...


def valid_vectors(space: EmbeddingSpace, vectors: np.ndarray) -> np.ndarray:
    """Says which rows can be vectors of the space: finite, and of norm 1 where it is normalised.

    Args:
        space: the embedding space.
        vectors: shape (n, dimension), float32.

    Returns:
        Shape (n,), bool.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
        if space.normalized:
            return np.abs(np.sqrt(squares) - 1) <= NORM_TOLERANCE  # false for NaN
        return np.isfinite(squares) & (squares > 0)


def encode_vectors(vectors: np.ndarray) -> pa.Array:
    """Raw little-endian float32 bytes, one binary value a row.

    Args:
        vectors: shape (n, dimension), float32.
    """
    contiguous = np.ascontiguousarray(vectors, dtype="<f4")
    size = contiguous.shape[1] * 4
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(size), len(contiguous), [None, pa.py_buffer(contiguous)]
    )


def decode_vectors(values: pa.Array, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `encode_vectors`, for bytes that nobody vouches for.

    Args:
        values: n binary values.
        dimension: the dimension that each should have.

    Returns:
        Vectors, shape (n, dimension), float32, and shape (n,), bool: whether the size was right.
        Rows of a wrong size are zero.
    """
    if not pa.types.is_large_binary(values.type):
        values = values.cast(pa.large_binary())
    offsets = np.frombuffer(values.buffers()[1], dtype=np.int64)[
        values.offset : values.offset + len(values) + 1
    ]
    right_size = np.diff(offsets) == dimension * 4
    if values.null_count:  # what a null's bytes are, Arrow does not say
        right_size &= values.is_valid().to_numpy(zero_copy_only=False)
    data = values.buffers()[2]
    if right_size.all() and len(values):
        flat = np.frombuffer(data, dtype="<f4", count=len(values) * dimension, offset=offsets[0])
        return flat.reshape(len(values), dimension), right_size
    vectors = np.zeros((len(values), dimension), dtype=np.float32)
    for row in np.flatnonzero(right_size):
        vectors[row] = np.frombuffer(data, dtype="<f4", count=dimension, offset=offsets[row])
    return vectors, right_size
