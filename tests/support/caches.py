"""The kinds of caches, and content hashes, vectors and embedding spaces for their tests."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from resources.caches import entry as redis_entry
from resources.caches.base import CachedVectors, EmbeddingCache
from resources.caches.from_url import cache_from_url
from resources.caches.memory import MemoryEmbeddingCache
from resources.caches.vectors import CONTENT_HASH_TYPE, hash_bytes
from resources.identity.content_hash import content_hash
from resources.identity.embedding_space import EmbeddingSpace
from tests.support.fakes import fake_vector
from tests.support.redis_server import RedisServer

SPACE = EmbeddingSpace("fake", "a", "", 16, 256, True)
SAME_DIMENSION = dataclasses.replace(SPACE, model="b")
OTHER_DIMENSION = dataclasses.replace(SPACE, model="c", dimension=8)
PATIENT = 30.0
"""Redis' time limit where a test is not about it: the machine may be busy."""


def hashes(*numbers: int) -> pa.Array:
    return pa.array([content_hash(f"text {number}") for number in numbers], CONTENT_HASH_TYPE)


def vectors(*numbers: int, dimension: int = 16, tag: str = "") -> np.ndarray:
    made = [fake_vector(f"{tag}{number}", dimension) for number in numbers]
    return np.stack(made) if made else np.zeros((0, dimension), np.float32)


def put(cache: EmbeddingCache, numbers: Sequence[int], space: EmbeddingSpace = SPACE) -> None:
    cache.put(space, hashes(*numbers), vectors(*numbers, dimension=space.dimension))


def found(cache: EmbeddingCache, numbers: range, space: EmbeddingSpace = SPACE) -> int:
    """How many are found; each with the right bits, and what is not found is zero."""
    return int(_right_answer(cache, numbers, space).found.sum())


def held(cache: EmbeddingCache, numbers: range, space: EmbeddingSpace = SPACE) -> list[int]:
    """Which are found, also by `contains` and `find`."""
    answer = _right_answer(cache, numbers, space)
    assert np.array_equal(answer.found, cache.contains(space, hashes(*numbers)))
    streamed = {
        int(number): vector.tobytes()
        for part in cache.find(space, hashes(*numbers))
        for number, vector in zip(part.numbers, part.vectors, strict=True)
    }
    assert streamed == {int(n): answer.vectors[n].tobytes() for n in np.flatnonzero(answer.found)}
    return np.array(numbers)[answer.found].tolist()


def _right_answer(cache: EmbeddingCache, numbers: range, space: EmbeddingSpace) -> CachedVectors:
    answer = cache.get(space, hashes(*numbers))
    truth = vectors(*numbers, dimension=space.dimension)
    assert answer.vectors[answer.found].tobytes() == truth[answer.found].tobytes()
    assert not answer.vectors[~answer.found].any()
    return answer


def entries(cache: EmbeddingCache) -> dict[str, int]:
    """How many the cache holds, by the id of the space."""
    return {space.space_id: space.entries for space in cache.statistics()}


@dataclasses.dataclass
class CacheKind(ABC):
    """One kind of cache, and the way to what it holds that the cache itself does not offer."""

    folder: Path
    server: RedisServer

    @abstractmethod
    def url(self, name: str = "one") -> str: ...

    def new(self, name: str = "one") -> EmbeddingCache:
        """Of the same name is the same cache, in a resource of its own."""
        return cache_from_url(self.url(name))

    @abstractmethod
    def put_earlier(self, days: float, numbers: Sequence[int], space: EmbeddingSpace) -> None:
        """Stores vectors as if that had been some days ago."""

    @abstractmethod
    def plant(self, number: int, value: bytes) -> None:
        """Puts any bytes in the place of the vector of one text, which is held."""


class DuckDB(CacheKind):
    def url(self, name: str = "one") -> str:
        return str(self.folder / f"{name}.duckdb")

    def put_earlier(self, days: float, numbers: Sequence[int], space: EmbeddingSpace) -> None:
        put(self.new(), numbers, space)
        self._change(space, numbers, "created = created - to_seconds(?)", days * 86_400)

    def plant(self, number: int, value: bytes) -> None:
        self._change(SPACE, [number], "vector = ?", value)

    def _change(
        self, space: EmbeddingSpace, numbers: Sequence[int], change: str, value: Any
    ) -> None:
        with duckdb.connect(self.url()) as database:
            database.register("n", pa.table({"content_hash": hashes(*numbers)}))
            database.execute(
                f'UPDATE "vectors_{space.id}" SET {change} '
                "WHERE content_hash IN (SELECT content_hash FROM n)",
                [value],
            )


class Memory(DuckDB):
    def new(self, name: str = "one") -> EmbeddingCache:
        return MemoryEmbeddingCache(behind=super().new(name))


class Redis(CacheKind):
    def url(self, name: str = "one") -> str:
        return f"{self.server.url}?prefix=[{name}]*&timeout={PATIENT:.0f}"

    def put_earlier(self, days: float, numbers: Sequence[int], space: EmbeddingSpace) -> None:
        now = redis_entry.time.time() - days * 86_400
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(redis_entry.time, "time", lambda: now)
            put(self.new(), numbers, space)

    def plant(self, number: int, value: bytes) -> None:
        key = f"[one]*:vector:{SPACE.id}:".encode() + hash_bytes(hashes(number))[0]
        self.server.client().set(key, value)


KINDS: list[Callable[[Path, RedisServer], CacheKind]] = [DuckDB, Redis, Memory]
