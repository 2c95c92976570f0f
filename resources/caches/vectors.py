"""Vectors and content hashes as bytes, and which vectors can be of a space."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from resources.identity.content_hash import HASH_BYTES
from resources.identity.embedding_space import EmbeddingSpace

NORM_TOLERANCE = 1e-3
"""How far the norm of a vector of a normalised space may be from 1."""

CONTENT_HASH_TYPE = pa.binary(HASH_BYTES)


def check_shape(space: EmbeddingSpace, content_hashes: pa.Array, vectors: np.ndarray) -> None:
    """Raises ValueError unless there is one vector of the space's dimension for each hash."""
    if vectors.shape != (len(content_hashes), space.dimension):
        raise ValueError(
            f"{len(content_hashes)} hashes of a space of dimension {space.dimension} came with "
            f"vectors of shape {vectors.shape}."
        )


def hash_array(content_hashes: Sequence[bytes]) -> pa.Array:
    """Values of `CONTENT_HASH_TYPE` from bytes of that length."""
    return pa.FixedSizeBinaryArray.from_buffers(
        CONTENT_HASH_TYPE, len(content_hashes), [None, pa.py_buffer(b"".join(content_hashes))]
    )


def hash_bytes(content_hashes: pa.Array) -> list[bytes]:
    """The inverse of `hash_array`; several times as fast as `to_pylist`."""
    data = content_hashes.buffers()[1].to_pybytes()
    first = content_hashes.offset * HASH_BYTES
    last = first + len(content_hashes) * HASH_BYTES
    return [data[start : start + HASH_BYTES] for start in range(first, last, HASH_BYTES)]


def valid_vectors(space: EmbeddingSpace, vectors: np.ndarray) -> np.ndarray:
    """Says which rows can be vectors of the space: finite, and of norm 1 where it is normalised.

    Args:
        space: the embedding space.
        vectors: shape (n, dimension), float32.

    Returns:
        Shape (n,), bool.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors)
        if space.normalized:
            return np.abs(np.sqrt(squares) - 1) <= NORM_TOLERANCE  # false for NaN
        valid = np.isfinite(squares) & (squares > 0)
        # In float32 the squares of very long and very short vectors are infinite, or zero.
        doubtful = np.flatnonzero(~valid)
        squares = np.einsum("ij,ij->i", vectors[doubtful], vectors[doubtful], dtype=np.float64)
        valid[doubtful] = np.isfinite(squares) & (squares > 0)
        return valid


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
