"""One vector as bytes that describe themselves, for caches whose values anybody may overwrite.

An entry is little-endian: magic "EMBV", version, element type, two zero bytes, dimension (uint32),
space id (8 bytes), time written (uint32, seconds since 1970), norm (float32), the elements, and a
CRC-32 (ISO 3309) of the content hash and everything before it. The checksum covers the content
hash so that an entry copied to another key is found out.
"""

import time
import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from resources.caches.vectors import valid_vectors
from resources.identity.embedding_space import EmbeddingSpace

Storage = Literal["float32", "float16"]
"""How elements are stored.

float16 keeps unit vectors, and norms apart in float32: a relative rounding error of at most 2^-11
an element, so that the cosine with the original is at least 1 - 2^-23, about 1 - 1.2e-7.
"""

HEADER = np.dtype(
    [
        ("magic", "S4"),
        ("version", "u1"),
        ("storage", "u1"),
        ("reserved", "<u2"),
        ("dimension", "<u4"),
        ("space", "V8"),
        ("written", "<u4"),
        ("norm", "<f4"),
    ]
)
_MAGIC, _VERSION = b"EMBV", 1
_STORAGE: dict[Storage, tuple[int, str]] = {"float32": (1, "<f4"), "float16": (2, "<f2")}


def entry_type(dimension: int, storage: Storage) -> np.dtype:
    """The layout of one entry as a NumPy structured type without gaps."""
    elements = ("elements", _STORAGE[storage][1], (dimension,))
    return np.dtype([("header", HEADER), elements, ("checksum", "<u4")])


def encode_entries(
    space: EmbeddingSpace, content_hashes: Sequence[bytes], vectors: np.ndarray, storage: Storage
) -> list[memoryview]:
    """The entries of n vectors.

    Args:
        space: the embedding space.
        content_hashes: n content hashes.
        vectors: shape (n, dimension), float32.
        storage: the elements' type.
    """
    entries = np.zeros(len(vectors), entry_type(space.dimension, storage))
    header = entries["header"]
    header["magic"], header["version"] = _MAGIC, _VERSION
    header["storage"] = _STORAGE[storage][0]
    header["dimension"] = space.dimension
    header["space"] = np.void(bytes.fromhex(space.id))
    header["written"] = int(time.time())
    with np.errstate(all="ignore"):  # broken vectors are refused when they are read
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
        header["norm"] = norms
        if storage == "float16":
            entries["elements"] = vectors / np.where(norms > 0, norms, 1)[:, None]
        else:
            entries["elements"] = vectors
    size = entries.itemsize
    data = memoryview(entries.view(np.uint8).data).cast("B")
    checksums = entries["checksum"]
    for row, content_hash in enumerate(content_hashes):
        covered = data[row * size : (row + 1) * size - 4]
        checksums[row] = zlib.crc32(covered, zlib.crc32(content_hash))
    return [data[start : start + size] for start in range(0, len(data), size)]


def decode_entries(
    space: EmbeddingSpace, content_hashes: Sequence[bytes], values: Sequence[bytes | None]
) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `encode_entries`, for bytes that nobody vouches for.

    Args:
        space: the embedding space that the vectors must belong to.
        content_hashes: n content hashes.
        values: what stood under each; None: nothing.

    Returns:
        Vectors, shape (n, dimension), float32, and shape (n,), bool: which are valid entries of
        that hash and space. The others' rows are zero.
    """
    vectors = np.zeros((len(values), space.dimension), dtype=np.float32)
    valid = np.zeros(len(values), dtype=bool)
    for storage, (code, _) in _STORAGE.items():
        layout = entry_type(space.dimension, storage)
        size = layout.itemsize
        rows = [row for row, v in enumerate(values) if v is not None and len(v) == size]
        if not rows:
            continue
        data = b"".join(values[row] or b"" for row in rows)
        entries = np.frombuffer(data, layout)
        header = entries["header"]
        view = memoryview(data)
        checksums = np.fromiter(
            (
                zlib.crc32(view[i * size : (i + 1) * size - 4], zlib.crc32(content_hashes[row]))
                for i, row in enumerate(rows)
            ),
            np.uint32,
            len(rows),
        )
        decoded = entries["elements"].astype(np.float32)
        with np.errstate(all="ignore"):
            if storage == "float16":
                norms = np.linalg.norm(decoded.astype(np.float64), axis=1)
                decoded = (decoded * (header["norm"] / norms)[:, None]).astype(np.float32)
            right = (
                (header["magic"] == _MAGIC)
                & (header["version"] == _VERSION)
                & (header["storage"] == code)
                & (header["reserved"] == 0)
                & (header["dimension"] == space.dimension)
                & (header["space"] == np.void(bytes.fromhex(space.id)))
                & (checksums == entries["checksum"])
                & valid_vectors(space, decoded)
            )
        kept = np.array(rows)[right]
        vectors[kept] = decoded[right]
        valid[kept] = True
    return vectors, valid
