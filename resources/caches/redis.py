"""The embedding cache in Redis: one for several machines, and never a reason for a run to fail."""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import date
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import pyarrow as pa
from pydantic import Field, PrivateAttr

from resources.caches.base import (
    CachedVectors,
    EmbeddingCache,
    Lookups,
    Removed,
    Retention,
    SpaceStatistics,
    no_vectors,
)
from resources.caches.entry import HEADER, Storage, decode_entries, encode_entries, entry_type
from resources.caches.vectors import check_shape, hash_array, hash_bytes
from resources.errors import InvalidInputError
from resources.identity.content_hash import HASH_BYTES
from resources.identity.embedding_space import EmbeddingSpace

if TYPE_CHECKING:
    import redis
from resources.caches.redis_server import RedisServer, without_credentials

# Commands are short, so that other clients are served in between and a time limit means something.
_BYTES_PER_COMMAND = 1 << 20
_KEYS_PER_COMMAND = 4_096

# 0 where there is nothing, and where there is something else than a string.
_STORED_BYTES = """
local sizes = {}
for i, key in ipairs(KEYS) do
  local size = redis.pcall('STRLEN', key)
  sizes[i] = type(size) == 'number' and size or 0
end
return sizes
"""
_HEADERS = """
local headers, sizes = {}, {}
for i, key in ipairs(KEYS) do
  local header = redis.pcall('GETRANGE', key, 0, ARGV[1] - 1)
  if type(header) == 'string' then
    headers[i], sizes[i] = header, redis.call('STRLEN', key)
  else
    headers[i], sizes[i] = '', 0
  end
end
return {headers, sizes}
"""


class RedisEmbeddingCache(EmbeddingCache):
    """One string a vector (see `entry.py`), under `<prefix>:vector:<space id>:<content hash>`.

    Whatever is wrong with the server or under a key is a miss: counted (`faults`), and warned of
    once. After a failure a circuit breaker spares the run further waiting, and asks again after a
    while. A put is as durable as the server: what Redis loses is embedded again.

    User and password stand in no field: those of `url` are taken out and remembered in this
    process; else EMBEDDING_CACHE_USERNAME and EMBEDDING_CACHE_PASSWORD hold them.
    """

    url: str = Field(
        default="redis://localhost:6379/0",
        description="redis://host:port/database, rediss:// for TLS, or unix://path. Put user and "
        "password into EMBEDDING_CACHE_USERNAME and EMBEDDING_CACHE_PASSWORD.",
    )
    key_prefix: str = Field(default="embeddings", description="The start of every key.")
    ttl_seconds: int | None = Field(
        default=None,
        ge=1,
        description="How long an entry lives; 86400 (24 h) is common. By default for ever.",
    )
    storage: Storage = Field(
        default="float32",
        description="'float16' halves the memory; the cosine with the original is 1 - 1.2e-7 or "
        "more. Both are read, whatever is written.",
    )
    timeout: float = Field(
        default=0.3, gt=0, description="Seconds to wait for the server in one command."
    )
    _server: "RedisServer" = PrivateAttr()

    def __init__(self, **fields: Any) -> None:
        url = fields.get("url")
        if isinstance(url, str) and not isinstance(url, dg.EnvVar):
            fields["url"] = without_credentials(url)
        super().__init__(**fields)
        self._server = RedisServer(self.url, self.timeout)

    @property
    def kind(self) -> str:
        return "redis"

    # --- look-up and storing: never fail

    def contains(self, space: EmbeddingSpace, content_hashes: pa.Array) -> np.ndarray:
        sizes = [entry_type(space.dimension, storage).itemsize for storage in _STORAGES]
        keys = self._keys(space.id, hash_bytes(content_hashes))
        found = np.zeros(len(keys), dtype=bool)
        for rows in slices(len(keys), _KEYS_PER_COMMAND):
            answer = self._server.ask(_sizes(keys[rows]))
            if answer is None:
                self._server.count("lookups_unanswered", len(keys) - rows.start)
                break
            found[rows] = np.isin(answer, sizes)
        return found

    def get(self, space: EmbeddingSpace, content_hashes: pa.Array) -> CachedVectors:
        answer = no_vectors(space, len(content_hashes))
        hashes = hash_bytes(content_hashes)
        rejected = 0
        for rows in self._slices(space, len(hashes)):
            keys = self._keys(space.id, hashes[rows])
            values = self._server.ask(_values(keys))
            if values is None:
                self._server.count("lookups_unanswered", len(hashes) - rows.start)
                break
            answer.vectors[rows], answer.found[rows] = decode_entries(space, hashes[rows], values)
            rejected += sum(value is not None for value in values) - int(answer.found[rows].sum())
        if rejected:
            self._server.warn(
                "rejected",
                f"{rejected} entries of the embedding cache {self.url} are no vectors of the space "
                f"{space.id}, or not those of their key: somebody else writes there, or they are "
                "damaged. They count as missing and will be replaced.",
            )
        self.count_lookup(space, answer.found)
        return CachedVectors(answer.found, answer.vectors, rejected)

    def put(self, space: EmbeddingSpace, content_hashes: pa.Array, vectors: np.ndarray) -> None:
        check_shape(space, content_hashes, vectors)
        hashes = hash_bytes(content_hashes)
        for rows in self._slices(space, len(hashes)):
            stored = self._put(space, hashes[rows], vectors[rows])
            if stored is None:
                self._server.count("vectors_not_stored", len(hashes) - rows.start)
                break
            self._server.count("vectors_not_stored", rows.stop - rows.start - stored)

    def _put(self, space: EmbeddingSpace, hashes: list[bytes], vectors: np.ndarray) -> int | None:
        """Returns how many are stored; None if the server cannot be asked."""
        keys = self._keys(space.id, hashes)
        entries = encode_entries(space, hashes, vectors, self.storage)
        # Described first: every entry's space is known, also after the server was flushed.
        describe = ("HSETNX", self._spaces_key, space.id, space.to_json())
        replies = self._server.write(
            [describe, *(self._set(*pair, "NX") for pair in zip(keys, entries, strict=True))]
        )
        if replies is None:
            return None
        states = replies[1:]
        there = [row for row, reply in enumerate(states) if reply is None]
        stored = sum(reply is True or reply == b"OK" for reply in states)
        if there:
            values = self._server.ask(_values([keys[row] for row in there]))
            if values is None:
                return stored
            _, valid = decode_entries(space, [hashes[row] for row in there], values)
            stored += int(valid.sum())
            broken = [row for row, is_valid in zip(there, valid, strict=True) if not is_valid]
            if broken:
                replies = self._server.write([self._set(keys[r], entries[r]) for r in broken])
                stored += sum(reply is True or reply == b"OK" for reply in replies or [])
        return stored

    def _set(self, key: bytes, entry: memoryview, *options: str) -> tuple[Any, ...]:
        expiry = () if self.ttl_seconds is None else ("EX", self.ttl_seconds)
        # Bytes: redis-py sends a memoryview by itself, and that costs a system call for each.
        return ("SET", key, bytes(entry), *options, *expiry)

    def faults(self) -> dict[str, int]:
        return self._server.counts()

    # --- operations: fail if the server cannot be reached

    def statistics(self) -> list[SpaceStatistics]:
        entries: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for keys, _, stored in self._walk(None):
            for key, size in zip(keys, stored, strict=True):
                entries[self._space_id(key)] += 1
                sizes[self._space_id(key)] += size
        described = {space.id: space for space in self._described()}
        hits: Counter[str] = Counter()
        misses: Counter[str] = Counter()
        for day in self.lookups():
            hits[day.space_id] += day.hits
            misses[day.space_id] += day.misses
        return [
            SpaceStatistics(
                space_id,
                described[space_id].model if space_id in described else "",
                described[space_id].dimension if space_id in described else 0,
                entries[space_id],
                sizes[space_id],
                hits[space_id],
                misses[space_id],
            )
            for space_id in sorted({*entries, *described, *hits})
        ]

    def lookups(self) -> list[Lookups]:
        self.save_lookups()
        stored = self._server.command("HGETALL", self._lookups_key)
        days: dict[tuple[date, str], Counter[str]] = defaultdict(Counter)
        for field, count in stored.items():
            with suppress(ValueError):  # not ours
                space_id, day, outcome = field.decode().split(" ")
                days[date.fromisoformat(day), space_id][outcome] = int(count)
        return [
            Lookups(space_id, day, counts["hits"], counts["misses"])
            for (day, space_id), counts in sorted(days.items())
        ]

    def _save_lookups(self, counted: Sequence[Lookups]) -> None:
        self._server.write(
            [
                ("HINCRBY", self._lookups_key, f"{one.space_id} {one.day} {outcome}", count)
                for one in counted
                for outcome, count in (("hits", one.hits), ("misses", one.misses))
            ]
        )

    def prune(
        self, retention: Retention, space_id: str | None = None, *, dry_run: bool = False
    ) -> list[Removed]:
        written, sizes = [np.zeros(0)], [np.zeros(0)]
        for _, headers, stored in self._walk(space_id):
            written.append(headers["written"].astype(np.float64))
            sizes.append(np.array(stored, dtype=np.float64))
        oldest = retention.oldest_kept(np.concatenate(written), np.concatenate(sizes), time.time())
        return self._remove(
            (
                (np.array(keys, dtype=object)[headers["written"] < oldest].tolist())
                for keys, headers, _ in self._walk(space_id)
            ),
            dry_run,
        )

    def invalidate(
        self,
        content_hashes: pa.Array | None = None,
        space_id: str | None = None,
        *,
        dry_run: bool = False,
    ) -> list[Removed]:
        if content_hashes is None:
            if space_id is None:
                raise InvalidInputError("Say what to invalidate: content hashes, a space, or both.")
            removed = self._remove((keys for keys, _, _ in self._walk(space_id)), dry_run)
            if not dry_run:
                self._server.command("HDEL", self._spaces_key, space_id)
            return removed
        spaces = [space.id for space in self._described()] if space_id is None else [space_id]
        hashes = hash_bytes(content_hashes)
        return self._remove(
            (self._keys(space, hashes[r]) for space in spaces for r in slices(len(hashes), 1024)),
            dry_run,
        )

    def _remove(self, pages: Iterator[list[bytes]], dry_run: bool) -> list[Removed]:
        entries: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for keys in pages:
            for rows in slices(len(keys), _KEYS_PER_COMMAND):
                some = keys[rows]
                for key, size in zip(some, self._server.ask_or_raise(_sizes(some)), strict=True):
                    entries[self._space_id(key)] += size > 0
                    sizes[self._space_id(key)] += size
                if not dry_run:
                    self._server.command("UNLINK", *some)
        return [Removed(s, entries[s], sizes[s]) for s in sorted(entries) if entries[s]]

    def spaces(self) -> list[EmbeddingSpace]:
        return self._described()

    def scan(self, space: EmbeddingSpace) -> Iterator[tuple[pa.Array, np.ndarray]]:
        for keys in self._key_pages(space.id):
            hashes = [self._content_hash(key) for key in keys]
            for rows in self._slices(space, len(keys)):
                values = self._server.ask_or_raise(_values(keys[rows]))
                vectors, valid = decode_entries(space, hashes[rows], values)
                if valid.any():
                    kept = [h for h, good in zip(hashes[rows], valid, strict=True) if good]
                    yield hash_array(kept), vectors[valid]

    # --- keys

    def _slices(self, space: EmbeddingSpace, count: int) -> Iterator[slice]:
        size = entry_type(space.dimension, "float32").itemsize
        return slices(count, max(1, min(_KEYS_PER_COMMAND, _BYTES_PER_COMMAND // size)))

    def _keys(self, space_id: str, content_hashes: list[bytes]) -> list[bytes]:
        prefix = f"{self.key_prefix}:vector:{space_id}:".encode()
        return [prefix + content_hash for content_hash in content_hashes]

    @property
    def _spaces_key(self) -> str:
        return f"{self.key_prefix}:spaces"

    @property
    def _lookups_key(self) -> str:
        return f"{self.key_prefix}:lookups"

    def _space_id(self, key: bytes) -> str:
        return key[len(f"{self.key_prefix}:vector:".encode()) :][:16].decode(errors="replace")

    def _content_hash(self, key: bytes) -> bytes:
        return key[len(f"{self.key_prefix}:vector:".encode()) + 17 :]

    def _described(self) -> list[EmbeddingSpace]:
        stored = self._server.command("HGETALL", self._spaces_key)
        spaces = []
        for space_id, text in sorted(stored.items()):
            try:
                space = EmbeddingSpace.from_json(text.decode())
            except ValueError:
                continue  # not ours
            if space.id.encode() == space_id:
                spaces.append(space)
        return spaces

    def _key_pages(self, space_id: str | None) -> Iterator[list[bytes]]:
        """The keys of entries, each at least once; what SCAN repeats in one page is left out."""
        start = f"{self.key_prefix}:vector:{space_id or ''}"
        pattern = re.sub(r"([*?\[\]\\^])", r"\\\1", start) + ("*" if space_id is None else ":*")
        right_size = len(self._keys(" " * 16, [bytes(HASH_BYTES)])[0])
        cursor = 0
        while True:
            cursor, keys = self._server.command(
                "SCAN", cursor, "MATCH", pattern, "COUNT", _KEYS_PER_COMMAND
            )
            if keys := [key for key in dict.fromkeys(keys) if len(key) == right_size]:
                yield keys
            if cursor == 0:
                return

    def _walk(self, space_id: str | None) -> Iterator[tuple[list[bytes], np.ndarray, list[int]]]:
        """Yields keys, their entries' headers (zeros where there is none), and sizes in bytes."""
        for keys in self._key_pages(space_id):
            headers, sizes = self._server.command(
                "EVAL", _HEADERS, len(keys), *keys, HEADER.itemsize
            )
            whole = b"".join(header.ljust(HEADER.itemsize, b"\0") for header in headers)
            yield keys, np.frombuffer(whole, HEADER), sizes


_STORAGES: tuple[Storage, ...] = ("float32", "float16")


def _values(keys: list[bytes]) -> "Callable[[redis.Redis], list[bytes | None]]":
    def action(server: "redis.Redis") -> list[bytes | None]:
        values = server.mget(keys)
        if not isinstance(values, list) or len(values) != len(keys):
            raise TypeError(f"MGET of {len(keys)} keys was not answered with as many values")
        return [value if isinstance(value, bytes) else None for value in values]

    return action


def _sizes(keys: list[bytes]) -> "Callable[[redis.Redis], list[int]]":
    def action(server: "redis.Redis") -> list[int]:
        sizes = server.eval(_STORED_BYTES, len(keys), *keys)
        if not isinstance(sizes, list) or len(sizes) != len(keys):
            raise TypeError(f"EVAL over {len(keys)} keys was not answered with as many values")
        return [int(size) for size in sizes]

    return action


def slices(count: int, size: int) -> Iterator[slice]:
    """Cuts 0..count into slices of at most `size`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
