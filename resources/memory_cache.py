"""Recently used vectors in this process's memory, before a cache on disk or in Redis."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import dagster as dg
import numpy as np
import pyarrow as pa
from pydantic import Field

from resources.embedding_cache import (
    CachedVectors,
    EmbeddingCache,
    Limits,
    Lookups,
    Removed,
    SpaceStatistics,
    hash_bytes,
    no_vectors,
)
from resources.embedding_space import EmbeddingSpace

_BYTES_BESIDES_VECTOR = 300
"""Of one entry, about: the key, two Python objects, and its place in the dictionary."""


class MemoryEmbeddingCache(EmbeddingCache):
    """An LRU bounded in bytes, kept for the life of the process: runs and services share it.

    What other processes remove from the cache behind may still be answered from memory: the vector
    of a text in a space does not change.
    """

    behind: dg.ResourceDependency[EmbeddingCache]
    max_megabytes: int = Field(default=256, ge=1, description="Memory for vectors and keys.")

    def contains(self, space: EmbeddingSpace, content_hashes: pa.Array) -> np.ndarray:
        found = self._memory.contains(space, hash_bytes(content_hashes))
        missing = np.flatnonzero(~found)
        if len(missing):
            found[missing] = self.behind.contains(space, content_hashes.take(pa.array(missing)))
        return found

    def get(self, space: EmbeddingSpace, content_hashes: pa.Array) -> CachedVectors:
        hashes = hash_bytes(content_hashes)
        answer = self._memory.get(space, hashes)
        self.behind.count_lookup(space, answer.found[answer.found])
        missing = np.flatnonzero(~answer.found)
        if not len(missing):
            return answer
        rest = self.behind.get(space, content_hashes.take(pa.array(missing)))
        answer.vectors[missing] = rest.vectors
        answer.found[missing] = rest.found
        fetched = missing[rest.found]
        self._memory.put(space, [hashes[row] for row in fetched], answer.vectors[fetched])
        return CachedVectors(answer.found, answer.vectors, rest.rejected)

    def put(self, space: EmbeddingSpace, content_hashes: pa.Array, vectors: np.ndarray) -> None:
        # Not into memory: where the cache behind keeps what it has, both must give that.
        self.behind.put(space, content_hashes, vectors)

    def statistics(self) -> list[SpaceStatistics]:
        return self.behind.statistics()

    def lookups(self) -> list[Lookups]:
        return self.behind.lookups()

    def prune(
        self, limits: Limits, space_id: str | None = None, *, dry_run: bool = False
    ) -> list[Removed]:
        if not dry_run:
            self._memory.clear()
        return self.behind.prune(limits, space_id, dry_run=dry_run)

    def invalidate(
        self,
        content_hashes: pa.Array | None = None,
        space_id: str | None = None,
        *,
        dry_run: bool = False,
    ) -> list[Removed]:
        removed = self.behind.invalidate(content_hashes, space_id, dry_run=dry_run)
        if not dry_run:
            self._memory.clear()
        return removed

    def spaces(self) -> list[EmbeddingSpace]:
        return self.behind.spaces()

    def scan(self, space: EmbeddingSpace) -> Iterator[tuple[pa.Array, np.ndarray]]:
        return self.behind.scan(space)

    def faults(self) -> dict[str, int]:
        return self.behind.faults()

    def save_lookups(self) -> None:
        self.behind.save_lookups()

    def _save_lookups(self, counted: Sequence[Lookups]) -> None:
        self.behind._save_lookups(counted)

    @property
    def _memory(self) -> "_Memory":
        return _memory_of(repr(self.behind), self.max_megabytes << 20)


class _Memory:
    """Vectors by space and content hash; the least recently used give way."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._entries: OrderedDict[tuple[str, bytes], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def contains(self, space: EmbeddingSpace, hashes: Sequence[bytes]) -> np.ndarray:
        with self._lock:
            return np.fromiter(((space.id, h) in self._entries for h in hashes), bool, len(hashes))

    def get(self, space: EmbeddingSpace, hashes: Sequence[bytes]) -> CachedVectors:
        answer = no_vectors(space, len(hashes))
        rows, found = [], []
        with self._lock:
            for row, content_hash in enumerate(hashes):
                key = (space.id, content_hash)
                if (vector := self._entries.get(key)) is not None:
                    self._entries.move_to_end(key)
                    rows.append(row)
                    found.append(vector)
        if rows:
            answer.found[rows] = True
            answer.vectors[rows] = np.frombuffer(b"".join(found), np.float32).reshape(
                len(rows), space.dimension
            )
        return answer

    def put(self, space: EmbeddingSpace, hashes: Sequence[bytes], vectors: np.ndarray) -> None:
        data = np.ascontiguousarray(vectors, dtype=np.float32).tobytes()
        size = 4 * space.dimension
        with self._lock:
            for row, content_hash in enumerate(hashes):
                key = (space.id, content_hash)
                if key not in self._entries:
                    self.bytes += size + _BYTES_BESIDES_VECTOR
                self._entries[key] = data[row * size : (row + 1) * size]
                self._entries.move_to_end(key)
            while self.bytes > self.max_bytes:
                _, removed = self._entries.popitem(last=False)
                self.bytes -= len(removed) + _BYTES_BESIDES_VECTOR

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self.bytes = 0


_memories: dict[str, _Memory] = {}
_memories_lock = threading.Lock()


def _memory_of(cache: str, max_bytes: int) -> _Memory:
    """The memory before a cache: Dagster makes a copy of each resource for each run."""
    with _memories_lock:
        memory = _memories.setdefault(cache, _Memory(max_bytes))
        memory.max_bytes = max_bytes
        return memory
