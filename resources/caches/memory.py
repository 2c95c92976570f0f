"""Recently used vectors in this process's memory, before a cache on disk or in Redis."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import compress, repeat

import dagster as dg
import numpy as np
import pyarrow as pa
from pydantic import Field

from resources.caches.base import (
    CachedVectors,
    EmbeddingCache,
    Lookups,
    Removed,
    Retention,
    SpaceStatistics,
)
from resources.caches.key_filter import KeyFilter
from resources.caches.vectors import hash_array, hash_bytes
from resources.identity.embedding_space import EmbeddingSpace

_ONE_FOUND = np.ones(1, dtype=bool)
_BYTES_BESIDES_VECTOR = 250
"""Of one entry, about: the key and a row's number as objects, and their places in tables."""


class MemoryEmbeddingCache(EmbeddingCache):
    """An LRU bounded in bytes, kept for the life of the process: runs and services share it.

    What other processes remove from the cache behind may still be answered from memory: the vector
    of a text in a space does not change.
    """

    behind: dg.ResourceDependency[EmbeddingCache]
    max_megabytes: int = Field(default=256, ge=1, description="Memory for vectors and keys.")

    @property
    def kind(self) -> str:
        return self.behind.kind

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
        asked = [hashes[row] for row in missing.tolist()]
        rest = self.behind.get(space, hash_array(asked))
        self._memory.put(
            space, list(compress(asked, rest.found.tolist())), rest.vectors[rest.found]
        )
        if len(missing) == len(hashes):
            return rest
        answer.vectors[missing] = rest.vectors
        answer.found[missing] = rest.found
        return CachedVectors(answer.found, answer.vectors, rest.rejected)

    def put(self, space: EmbeddingSpace, content_hashes: pa.Array, vectors: np.ndarray) -> None:
        # Not into memory: where the cache behind keeps what it has, both must give that.
        self.behind.put(space, content_hashes, vectors)

    def statistics(self) -> list[SpaceStatistics]:
        return self.behind.statistics()

    def lookups(self) -> list[Lookups]:
        return self.behind.lookups()

    def prune(
        self, retention: Retention, space_id: str | None = None, *, dry_run: bool = False
    ) -> list[Removed]:
        if not dry_run:
            self._memory.clear()
        return self.behind.prune(retention, space_id, dry_run=dry_run)

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

    def hasty(self) -> EmbeddingCache:
        return self.behind.hasty()

    def version(self) -> object:
        return self.behind.version()

    def key_filter(self, space: EmbeddingSpace) -> KeyFilter | None:
        return self.behind.key_filter(space)

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
    def _memory(self) -> "VectorMemory":
        return _memory_of(repr(self.behind), self.max_megabytes << 20)


class VectorMemory:
    """Vectors by space and content hash; the least recently used give way."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._of_space: OrderedDict[str, _SpaceMemory] = OrderedDict()  # the last used is the last
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        return sum(memory.size_bytes for memory in self._of_space.values())

    def contains(self, space: EmbeddingSpace, hashes: Sequence[bytes]) -> np.ndarray:
        with self._lock:
            return self._of(space).slots(hashes) >= 0

    def get(self, space: EmbeddingSpace, hashes: Sequence[bytes]) -> CachedVectors:
        with self._lock:
            return self._of(space).get(hashes)

    def put(self, space: EmbeddingSpace, hashes: Sequence[bytes], vectors: np.ndarray) -> None:
        with self._lock:
            self._of(space).put(hashes, vectors)
            while self.size_bytes > self.max_bytes:  # another space than this one has been idle
                self._of_space.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._of_space.clear()

    def _of(self, space: EmbeddingSpace) -> "_SpaceMemory":
        if space.id not in self._of_space:
            self._of_space[space.id] = _SpaceMemory(space.dimension, self.max_bytes)
        self._of_space.move_to_end(space.id)
        return self._of_space[space.id]


class _SpaceMemory:
    """The vectors of one space, in the rows of one array: many are found and copied at once."""

    def __init__(self, dimension: int, max_bytes: int) -> None:
        self._bytes_per_entry = 4 * dimension + _BYTES_BESIDES_VECTOR
        self._capacity = max(1, max_bytes // self._bytes_per_entry)
        # The system gives memory to those rows only that were written.
        self._vectors = np.empty((self._capacity, dimension), dtype=np.float32)
        self._used = np.zeros(self._capacity, dtype=np.int64)
        self._now = 0
        self._hashes: list[bytes] = []
        self._slot_of: dict[bytes, int] = {}

    @property
    def size_bytes(self) -> int:
        return len(self._hashes) * self._bytes_per_entry

    def slots(self, hashes: Sequence[bytes]) -> np.ndarray:
        """The row of each hash; -1: it is not here."""
        return np.fromiter(map(self._slot_of.get, hashes, repeat(-1)), np.int64, len(hashes))

    def get(self, hashes: Sequence[bytes]) -> CachedVectors:
        if len(hashes) == 1:  # as services ask
            slot = self._slot_of.get(hashes[0])
            if slot is not None:
                self._now += 1
                self._used[slot] = self._now
                return CachedVectors(_ONE_FOUND.copy(), self._vectors[slot : slot + 1].copy(), 0)
        slots = self.slots(hashes)
        found = slots >= 0
        self._touch(slots[found])
        if found.all():
            return CachedVectors(found, self._vectors[slots], 0)
        vectors = np.zeros((len(hashes), self._vectors.shape[1]), dtype=np.float32)
        vectors[found] = self._vectors[slots[found]]
        return CachedVectors(found, vectors, 0)

    def put(self, hashes: Sequence[bytes], vectors: np.ndarray) -> None:
        new = np.flatnonzero(self.slots(hashes) < 0)[: self._capacity]
        slots = self._free_slots(len(new))
        for slot, row in zip(slots.tolist(), new.tolist(), strict=True):
            self._slot_of[hashes[row]] = slot
            self._hashes[slot] = hashes[row]
        self._vectors[slots] = vectors[new]
        self._touch(slots)

    def _free_slots(self, count: int) -> np.ndarray:
        """Rows for so many entries, at most the capacity: new ones, then the longest unused."""
        first = len(self._hashes)
        last = min(first + count, self._capacity)
        self._hashes += [b""] * (last - first)
        fresh = np.arange(first, last)
        if len(fresh) == count:
            return fresh
        oldest = np.argsort(self._used[:first], kind="stable")[: count - len(fresh)]
        for slot in oldest.tolist():
            del self._slot_of[self._hashes[slot]]
        return np.concatenate([oldest, fresh])

    def _touch(self, slots: np.ndarray) -> None:
        self._now += 1
        self._used[slots] = self._now


_memories: dict[str, VectorMemory] = {}
_memories_lock = threading.Lock()


def _memory_of(cache: str, max_bytes: int) -> VectorMemory:
    """The memory before a cache: Dagster makes a copy of each resource for each run."""
    with _memories_lock:
        if cache not in _memories or _memories[cache].max_bytes != max_bytes:
            _memories[cache] = VectorMemory(max_bytes)
        return _memories[cache]
