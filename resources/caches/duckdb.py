"""The embedding cache in one DuckDB file: no server, safe for several processes in turn."""

import atexit
import glob
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import ClassVar, TypeVar

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout
from pydantic import Field

from resources.caches.base import (
    CONTENT_HASH_TYPE,
    CachedVectors,
    EmbeddingCache,
    FoundVectors,
    Limits,
    Lookups,
    Removed,
    SpaceStatistics,
    check_shape,
    decode_vectors,
    encode_vectors,
    no_vectors,
    valid_vectors,
)
from resources.duckdb_engine import duckdb
from resources.identity.content_hash import HASH_BYTES
from resources.identity.embedding_space import EmbeddingSpace


class CacheLockedError(RuntimeError):
    """Another process held the cache file for longer than the deadline."""


# The buffer pool is empty at each opening: more makes neither puts nor look-ups faster. A log that
# a killed process left is replayed in memory.
_MEMORY_MB = 64
_MEMORY_MB_TO_OPEN = 1024
_THREADS = min(4, os.cpu_count() or 1)
_ROWS_PER_VECTOR = 2_048  # what each of DuckDB's threads holds at a time, several times over
# A checkpoint rewrites row groups that are not full, and by default every closing is one. Small
# groups, and a checkpoint only where the log has grown, write each vector about twice; with the
# defaults a run of small puts wrote each eight times. But to open the file takes time for each
# group, so groups of short vectors have more rows, up to DuckDB's own default.
_BYTES_PER_ROW_GROUP = 12 << 20
_ROWS_PER_ROW_GROUP = (2_048, 122_880)  # at least and at most; only multiples of the first
_USUAL_DIMENSION = 384
_LOG_BEFORE_CHECKPOINT = "16MB"
# What is read at a time must fit into the memory limit, however long the vectors are.
_ROWS_PER_BATCH = 16_384
_BYTES_PER_BATCH = 8 << 20
_HASHES_PER_SLICE = 262_144
_NOTHING_HELD = pa.table({"number": pa.array([], pa.int64()), "row_id": pa.array([], pa.int64())})
_SIGNS_OF_DAMAGE = (
    "corrupt", "checksum", "not a valid duckdb", "could not read enough bytes", "replaying wal",
)  # fmt: skip

_Result = TypeVar("_Result")
_Item = TypeVar("_Item")


class DuckDBEmbeddingCache(EmbeddingCache):
    """One table a space. DuckDB lets one process at a time open a file, so: open, act, close.

    Whoever uses the file first takes `<path>.lock`: threads, resources of the same process, and
    processes take turns, and nobody creates, opens or renames the file at the same time.
    """

    path: str = Field(default="data/cache.duckdb", description="The DuckDB file.")
    lock_timeout: float = Field(
        default=60.0, description="Seconds to wait while another process holds the file."
    )

    def contains(self, space: EmbeddingSpace, content_hashes: pa.Array) -> np.ndarray:
        found = np.zeros(len(content_hashes), dtype=bool)
        if len(content_hashes) and self._is_there():
            held = self._act(lambda database: _held(database, space, content_hashes), space)
            found[held["number"]] = True
        return found

    def get(self, space: EmbeddingSpace, content_hashes: pa.Array) -> CachedVectors:
        if not len(content_hashes):
            return no_vectors(space, 0)
        answer = no_vectors(space, len(content_hashes))
        rejected = 0
        with closing(self.find(space, content_hashes)) as parts:
            for part in parts:
                answer.vectors[part.numbers] = part.vectors
                answer.found[part.numbers] = True
                rejected += part.rejected
        return replace(answer, rejected=rejected)

    def find(
        self, space: EmbeddingSpace, content_hashes: pa.Array
    ) -> Generator[FoundVectors, None, None]:
        # One look at the file however many are asked for: each reads all keys, and where the
        # vectors lie scattered most of those too.
        found = np.zeros(len(content_hashes), dtype=bool)
        if len(content_hashes) and self._is_there():
            with self._turn() as deadline:
                try:
                    with self._open(space.dimension, deadline) as database:
                        for part in _find(database, space, content_hashes):
                            found[part.numbers] = True
                            yield part
                except duckdb.Error as error:
                    self._set_aside_if_damaged(error)  # what was not found by then is not there
        if len(content_hashes):
            self.count_lookup(space, found)

    def put(self, space: EmbeddingSpace, content_hashes: pa.Array, vectors: np.ndarray) -> None:
        check_shape(space, content_hashes, vectors)
        if len(content_hashes):
            self._act(lambda database: _put(database, space, content_hashes, vectors), space)

    def statistics(self) -> list[SpaceStatistics]:
        self.save_lookups()
        return self._act_if_there(_statistics)

    def lookups(self) -> list[Lookups]:
        self.save_lookups()
        return self._act_if_there(_lookups)

    def _save_lookups(self, counted: Sequence[Lookups]) -> None:
        try:
            self._act_if_there(lambda database: _save_lookups(database, counted))
        except (duckdb.Error, OSError, CacheLockedError) as error:
            dg.get_dagster_logger().warning(f"Look-ups of the cache were not counted: {error}")

    def prune(
        self, limits: Limits, space_id: str | None = None, *, dry_run: bool = False
    ) -> list[Removed]:
        removed = self._act_if_there(
            lambda database: _prune(database, limits, space_id, dry_run=dry_run)
        )
        return self._smaller(removed, dry_run)

    def invalidate(
        self,
        content_hashes: pa.Array | None = None,
        space_id: str | None = None,
        *,
        dry_run: bool = False,
    ) -> list[Removed]:
        if content_hashes is None and space_id is None:
            raise ValueError("Say what to invalidate: content hashes, a space, or both.")
        removed = self._act_if_there(
            lambda database: _invalidate(database, content_hashes, space_id, dry_run=dry_run)
        )
        return self._smaller(removed, dry_run)

    def spaces(self) -> list[EmbeddingSpace]:
        return self._act_if_there(_spaces)

    def scan(self, space: EmbeddingSpace) -> Iterator[tuple[pa.Array, np.ndarray]]:
        # The file is free for others after each page, and the hashes of one slice of all possible
        # ones are listed at a time: whatever others write or remove, no entry is shown twice.
        (count,) = [s.entries for s in self.statistics() if s.space_id == space.id] or [0]
        step = max(1, 256 * _HASHES_PER_SLICE // max(1, count))
        for first in range(0, 256, step):
            for listed in self._act_if_there(
                lambda database, first=first: [_hashes(database, space, first, first + step)]
            ):
                for start in range(0, len(listed), _ROWS_PER_BATCH):
                    page = listed.slice(start, _ROWS_PER_BATCH)
                    answer = self._act(
                        lambda database, page=page: list(_find(database, space, page)), space
                    )
                    for part in answer:
                        yield page.take(pa.array(part.numbers)), part.vectors

    def _act_if_there(
        self, action: Callable[[duckdb.DuckDBPyConnection], list[_Item]]
    ) -> list[_Item]:
        return self._act(action) if self._is_there() else []

    def _is_there(self) -> bool:
        """Whether there is a file: who only asks makes none."""
        return Path(self.path).exists()

    def _smaller(self, removed: list[Removed], dry_run: bool) -> list[Removed]:
        """Gives the room of removed entries back to the file system."""
        if removed and not dry_run:
            self._act(lambda database: _compact(database, Path(self.path)))
        return removed

    def _act(
        self,
        action: Callable[[duckdb.DuckDBPyConnection], _Result],
        space: EmbeddingSpace | None = None,
    ) -> _Result:
        """Opens the file, acts and closes; if the file is damaged, does so with a new one.

        Args:
            action: what to do.
            space: where it may write or let the log be written; None: nowhere, or everywhere.
        """
        dimension = space.dimension if space else 0
        with self._turn() as deadline:
            try:
                with self._open(dimension, deadline) as database:
                    return action(database)
            except duckdb.Error as error:
                self._set_aside_if_damaged(error)
            with self._open(dimension, deadline) as database:
                return action(database)

    @contextmanager
    def _turn(self) -> Iterator[float]:
        """Waits until nobody else uses the file; yields the time until which may be waited."""
        path = Path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self.lock_timeout
        try:
            lock = FileLock(f"{path}.lock").acquire(self.lock_timeout, poll_interval=0.01)
        except Timeout as error:
            raise self._locked(_opening_error(path)) from error
        with lock:
            _remove_leftovers(path)
            yield deadline

    def _set_aside_if_damaged(self, error: duckdb.Error) -> None:
        if not _says_damaged(error):
            raise error  # permissions, a full disk: renaming the file would not help
        _set_aside(Path(self.path), error)

    @contextmanager
    def _open(self, dimension: int, deadline: float) -> Iterator[duckdb.DuckDBPyConnection]:
        """Opens the file, in a turn that began before; see `_act` for the dimension."""
        engine = _Engine.for_file(Path(self.path))
        database = None
        try:
            while database is None:
                try:
                    database = engine.open(dimension)
                except duckdb.IOException as error:
                    if "could not set lock" not in str(error).lower():
                        raise
                    if time.monotonic() > deadline:
                        raise self._locked(str(error)) from error
                    time.sleep(random.uniform(0.01, 0.1))
            yield database
            database.close()
            engine.close_file()
        except BaseException:
            if database is not None:
                database.close()
            engine.close()
            raise

    def _locked(self, reason: str) -> CacheLockedError:
        return CacheLockedError(
            f"The embedding cache {self.path} was in use by another process for "
            f"{self.lock_timeout:.0f} s. Stop that process, or raise 'lock_timeout' "
            f"of the embedding_cache resource. DuckDB said: {reason}"
        )


class _Engine:
    """DuckDB without a file: to start it takes longer than to open one and look up some keys.

    So the last one stays, idle and with no file open, for the next use of the same file. Whoever
    has a file open holds its lock file.
    """

    _idle: ClassVar[list["_Engine"]] = []  # at most one; list operations are atomic

    def __init__(self, path: Path) -> None:
        self._path = path
        self._duckdb = duckdb.connect(
            config={
                "python_enable_replacements": "false",
                "threads": str(_THREADS),
                "allocator_background_threads": "true",
                "temp_directory": f"{path}.tmp",
                # Vectors do not compress; trying costs half of the append speed.
                "force_compression": "uncompressed",
                "checkpoint_threshold": _LOG_BEFORE_CHECKPOINT,
            }
        )
        self._duckdb.execute("PRAGMA disable_checkpoint_on_shutdown")

    @classmethod
    def for_file(cls, path: Path) -> "_Engine":
        idle = cls._take_idle()
        if idle is None or idle._path == path:
            return idle or cls(path)
        idle.close()
        return cls(path)

    @classmethod
    def _take_idle(cls) -> "_Engine | None":
        try:
            return cls._idle.pop()
        except IndexError:
            return None

    @classmethod
    def close_idle(cls) -> None:
        if idle := cls._take_idle():
            idle.close()

    def open(self, dimension: int) -> duckdb.DuckDBPyConnection:
        self._duckdb.execute(f"SET memory_limit = '{_MEMORY_MB_TO_OPEN}MB'")
        _attach(self._duckdb, self._path, "cache", dimension)
        database = self._duckdb.cursor()  # what is registered with a cursor is forgotten with it
        database.execute("USE cache")
        database.execute("SET TimeZone = 'UTC'")
        _limit_memory(database, 0)
        return database

    def close_file(self) -> None:
        """The file is free for others; this object belongs to whoever opens it next."""
        self._duckdb.execute("DETACH DATABASE IF EXISTS cache")
        self.close_idle()
        self._idle.append(self)

    def close(self) -> None:
        self._duckdb.close()


# A forked process has none of DuckDB's threads, and waits for them for ever.
os.register_at_fork(before=_Engine.close_idle)
atexit.register(_Engine.close_idle)


def _limit_memory(database: duckdb.DuckDBPyConnection, dimension: int) -> None:
    """Takes what vectors of a dimension need, and no more."""
    megabytes = _MEMORY_MB + _THREADS * 8 * _ROWS_PER_VECTOR * 4 * dimension // 1_000_000
    database.execute(f"SET memory_limit = '{megabytes}MB'")


def _attach(database: duckdb.DuckDBPyConnection, path: Path, name: str, dimension: int) -> None:
    """Opens or makes a file; what is written now goes into row groups as they suit a dimension."""
    quoted = str(path).replace("'", "''")
    least, most = _ROWS_PER_ROW_GROUP
    rows = _BYTES_PER_ROW_GROUP // (4 * (dimension or _USUAL_DIMENSION)) // least * least
    database.execute(
        f"ATTACH '{quoted}' AS {name} (TYPE duckdb, ROW_GROUP_SIZE {max(least, min(most, rows))})"
    )


def _remove_leftovers(path: Path) -> None:
    """Removes what a killed process left of a smaller file. The caller holds the lock file."""
    for left in (_smaller_file(path), _log(_smaller_file(path))):
        left.unlink(missing_ok=True)


def _smaller_file(path: Path) -> Path:
    """Where the file is written anew."""
    return path.with_name(f"{path.name}.compact")


def _log(path: Path) -> Path:
    """DuckDB's write-ahead log of a file."""
    return path.with_name(f"{path.name}.wal")


def _opening_error(path: Path) -> str:
    """What DuckDB says to somebody who opens the file: it names the process that holds it."""
    try:
        duckdb.connect(str(path)).close()
    except duckdb.Error as error:
        return str(error)
    return "nothing; it has just become free."


def _says_damaged(error: duckdb.Error) -> bool:
    if isinstance(error, duckdb.SerializationException | duckdb.InternalException):
        return True
    message = str(error).lower()
    return any(sign in message for sign in _SIGNS_OF_DAMAGE)


def _set_aside(path: Path, error: duckdb.Error) -> None:
    """A cache can be made again, so a damaged one must not stop anybody: it is renamed.

    The caller holds the lock file, so nobody has replaced the file that was found damaged.
    """
    aside = f"{path.name}.damaged-{datetime.now():%Y%m%d-%H%M%S-%f}"
    # The write-ahead log goes first: a new file must never meet an old log.
    for part in (*path.parent.glob(f"{glob.escape(path.name)}.wal*"), path):
        part.rename(path.with_name(aside + part.name.removeprefix(path.name)))
    dg.get_dagster_logger().warning(
        f"The embedding cache {path} is damaged ({error}). It was renamed to "
        f"{aside} and a new one is started: its texts will be embedded again."
    )


def _held(
    database: duckdb.DuckDBPyConnection, space: EmbeddingSpace, content_hashes: pa.Array
) -> pa.Table:
    """The rows that hold the hashes asked for, as far as the first eight bytes tell.

    Only these are read: numbers are compared twice as fast as strings, and the vectors are some
    hundred times as large. Two hashes agree in them with a probability of 2^-64, so whoever takes a
    vector compares the whole hash, as `_fetch` does.

    Returns:
        Columns number (which of those asked for), content_hash and row_id.
    """
    numbers = np.arange(len(content_hashes))
    asked = {"number": numbers, "prefix": _prefixes(content_hashes)}
    database.register("asked", pa.table(asked))
    held = (
        database.sql(
            f"SELECT number, held.rowid AS row_id FROM asked JOIN {_table(space)} held "
            "USING (prefix)"
        ).to_arrow_table()
        if _has_table(database, space)
        else _NOTHING_HELD
    )
    return held.append_column("content_hash", content_hashes.take(held["number"]))


def _prefixes(content_hashes: pa.Array) -> np.ndarray:
    """The first eight bytes of each hash, big-endian; shape (n,), uint64."""
    start = content_hashes.offset * HASH_BYTES
    data = np.frombuffer(content_hashes.buffers()[1], np.uint8)[start:]
    rows = data[: len(content_hashes) * HASH_BYTES].reshape(-1, HASH_BYTES)
    return np.ascontiguousarray(rows[:, :8]).view(">u8").ravel().astype(np.uint64)


def _fetch(
    database: duckdb.DuckDBPyConnection, space: EmbeddingSpace, held: pa.Table
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Reads what `_held` found, as far as the whole hashes agree.

    Yields:
        Numbers, row ids, their vectors, and whether each is a valid vector of the space.
    """
    if not len(held):
        return
    _limit_memory(database, space.dimension)
    database.register("wanted", held)
    bounds = pc.call_function("min_max", [held["row_id"]]).as_py()
    fetched = database.sql(
        f"SELECT number, stored.rowid AS row_id, vector FROM {_table(space)} stored "
        "JOIN wanted ON stored.rowid = wanted.row_id "
        "WHERE stored.rowid BETWEEN ? AND ? AND stored.content_hash = wanted.content_hash",
        params=[bounds["min"], bounds["max"]],
    ).to_arrow_reader(max(1, min(_ROWS_PER_BATCH, _BYTES_PER_BATCH // (4 * space.dimension))))
    for batch in _batches(fetched):
        decoded, right_size = decode_vectors(batch["vector"], space.dimension)
        valid = right_size & valid_vectors(space, decoded)
        yield batch["number"].to_numpy(), batch["row_id"].to_numpy(), decoded, valid


def _batches(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """Arrow reports as its own what DuckDB met while it read on."""
    try:
        yield from reader
    except (pa.ArrowException, OSError) as error:
        raise duckdb.IOException(str(error)) from error


def _find(
    database: duckdb.DuckDBPyConnection, space: EmbeddingSpace, content_hashes: pa.Array
) -> Iterator[FoundVectors]:
    held = _held(database, space, content_hashes)
    for numbers, _, decoded, valid in _fetch(database, space, held):
        rejected = int(np.count_nonzero(~valid))
        if rejected:
            numbers, decoded = numbers[valid], decoded[valid]
        yield FoundVectors(numbers, decoded, rejected)


def _put(
    database: duckdb.DuckDBPyConnection,
    space: EmbeddingSpace,
    content_hashes: pa.Array,
    vectors: np.ndarray,
) -> None:
    _limit_memory(database, space.dimension)
    _create_table(database, space)
    database.execute("BEGIN")
    # The only writer looks before it inserts: that keeps hashes unique without an index, which
    # would make appending several times slower.
    fresh = np.ones(len(content_hashes), dtype=bool)
    # Entries that `get` rejects must give way, or they would be embedded again each time.
    broken = [np.zeros(0, dtype=np.int64)]
    for numbers, row_ids, _, valid in _fetch(
        database, space, _held(database, space, content_hashes)
    ):
        fresh[numbers[valid]] = False
        broken.append(row_ids[~valid])
    broken_ids = np.concatenate(broken)
    if len(broken_ids):
        database.register("broken", pa.table({"row_id": broken_ids}))
        database.execute(f"DELETE FROM {_table(space)} WHERE rowid IN (SELECT row_id FROM broken)")
    if fresh.any():
        kept = content_hashes.filter(pa.array(fresh))
        incoming = {
            "content_hash": kept,
            "prefix": _prefixes(kept),
            "vector": encode_vectors(vectors[fresh]),
        }
        database.register("incoming", pa.table(incoming))
        database.execute(
            f"INSERT INTO {_table(space)} BY NAME "
            "SELECT content_hash, prefix, vector, now()::TIMESTAMP AS created FROM incoming"
        )
    database.execute("COMMIT")


def _spaces(database: duckdb.DuckDBPyConnection) -> list[EmbeddingSpace]:
    _create_own_tables(database)
    rows = database.execute("SELECT space FROM spaces ORDER BY id").fetchall()
    return [EmbeddingSpace.from_json(serialised) for (serialised,) in rows]


def _statistics(database: duckdb.DuckDBPyConnection) -> list[SpaceStatistics]:
    hits: Counter[str] = Counter()
    misses: Counter[str] = Counter()
    for day in _lookups(database):
        hits[day.space_id] += day.hits
        misses[day.space_id] += day.misses
    result = []
    for space in _spaces(database):
        entries = _count(database, f"FROM {_table(space)}")
        result.append(
            SpaceStatistics(
                space.id,
                space.model,
                space.dimension,
                entries,
                entries * _entry_bytes(space),
                hits[space.id],
                misses[space.id],
            )
        )
    return result


def _lookups(database: duckdb.DuckDBPyConnection) -> list[Lookups]:
    _create_own_tables(database)
    rows = database.execute(
        "SELECT space, day, hits, misses FROM lookups ORDER BY day, space"
    ).fetchall()
    return [Lookups(*row) for row in rows]


def _save_lookups(database: duckdb.DuckDBPyConnection, counted: Sequence[Lookups]) -> list[Lookups]:
    _create_own_tables(database)
    database.execute("BEGIN")
    for one in counted:
        key = [one.space_id, one.day]
        database.execute(
            "INSERT INTO lookups SELECT ?, ?, 0, 0 WHERE NOT EXISTS "
            "(FROM lookups WHERE space = ? AND day = ?)",
            key * 2,
        )
        database.execute(
            "UPDATE lookups SET hits = hits + ?, misses = misses + ? WHERE space = ? AND day = ?",
            [one.hits, one.misses, *key],
        )
    database.execute("COMMIT")
    return []


def _prune(
    database: duckdb.DuckDBPyConnection, limits: Limits, space_id: str | None, *, dry_run: bool
) -> list[Removed]:
    spaces = [space for space in _spaces(database) if space_id in (None, space.id)]
    written, sizes = [np.zeros(0)], [np.zeros(0)]
    for space in spaces:
        counts = database.sql(
            f"SELECT epoch(created) AS written, count(*) AS entries FROM {_table(space)} "
            "GROUP BY created"
        ).fetchnumpy()
        written.append(np.asarray(counts["written"], dtype=np.float64))
        sizes.append(np.asarray(counts["entries"], dtype=np.float64) * _entry_bytes(space))
    oldest = limits.oldest_kept(np.concatenate(written), np.concatenate(sizes), time.time())
    return [
        removed
        for space in spaces
        for removed in _delete(database, space, "epoch(created) < ?", [oldest], dry_run)
    ]


def _invalidate(
    database: duckdb.DuckDBPyConnection,
    content_hashes: pa.Array | None,
    space_id: str | None,
    *,
    dry_run: bool,
) -> list[Removed]:
    spaces = [space for space in _spaces(database) if space_id in (None, space.id)]
    if content_hashes is not None:
        database.register("unwanted", pa.table({"content_hash": content_hashes}))
        condition = "content_hash IN (SELECT content_hash FROM unwanted)"
        return [r for s in spaces for r in _delete(database, s, condition, [], dry_run)]
    removed = [r for s in spaces for r in _delete(database, s, "true", [], dry_run=True)]
    if not dry_run:
        database.execute("BEGIN")
        for space in spaces:
            database.execute(f"DROP TABLE {_table(space)}")
            database.execute("DELETE FROM spaces WHERE id = ?", [space.id])
        database.execute("COMMIT")
    return removed


def _delete(
    database: duckdb.DuckDBPyConnection,
    space: EmbeddingSpace,
    condition: str,
    parameters: list[float],
    dry_run: bool,
) -> list[Removed]:
    source = f"FROM {_table(space)} WHERE {condition}"
    entries = _count(database, source, parameters)
    if entries and not dry_run:
        database.execute(f"DELETE {source}", parameters)
    return [Removed(space.id, entries, entries * _entry_bytes(space))] if entries else []


def _compact(database: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Writes the file anew if a quarter of it is unused. The caller holds the lock file."""
    spaces = _spaces(database)
    dimension = max((space.dimension for space in spaces), default=0)
    _limit_memory(database, dimension)
    database.execute("CHECKPOINT")
    kept = sum(_count(database, f"FROM {_table(s)}") * _entry_bytes(s) for s in spaces)
    if kept > 0.75 * path.stat().st_size:
        return
    smaller = _smaller_file(path)
    logs = (_log(path), _log(smaller))
    try:
        _attach(database, smaller, "smaller", dimension)
        database.execute("COPY FROM DATABASE cache TO smaller")
        database.execute("CHECKPOINT smaller")
        database.execute("USE memory")
        database.execute("DETACH smaller")
        database.execute("DETACH cache")
        if not any(log.exists() and log.stat().st_size for log in logs):
            smaller.replace(path)
    finally:
        smaller.unlink(missing_ok=True)
        logs[1].unlink(missing_ok=True)


def _hashes(
    database: duckdb.DuckDBPyConnection, space: EmbeddingSpace, first: int, last: int
) -> pa.Array:
    """The hashes held whose first byte is `first` or more, and less than `last`."""
    if not _has_table(database, space):
        return pa.array([], CONTENT_HASH_TYPE)
    bounds = [bytes([first]), bytes([last]) if last < 256 else b"\xff" * (HASH_BYTES + 1)]
    held = database.sql(
        f"SELECT DISTINCT content_hash FROM {_table(space)} "
        "WHERE content_hash >= ?::BLOB AND content_hash < ?::BLOB "
        f"AND octet_length(content_hash) = {HASH_BYTES}",
        params=bounds,
    ).to_arrow_table()
    return held["content_hash"].combine_chunks().cast(CONTENT_HASH_TYPE)


def _count(
    database: duckdb.DuckDBPyConnection, source: str, parameters: Sequence[float] = ()
) -> int:
    ((count,),) = database.execute(f"SELECT count(*) {source}", [*parameters]).fetchall()
    return count


def _entry_bytes(space: EmbeddingSpace) -> int:
    return HASH_BYTES + 8 + 4 * space.dimension + 8


def _table(space: EmbeddingSpace) -> str:
    return f'"vectors_{space.id}"'


def _has_table(database: duckdb.DuckDBPyConnection, space: EmbeddingSpace) -> bool:
    try:  # the list of all tables would take some milliseconds; within a transaction this fails
        database.execute(f"SELECT prefix FROM {_table(space)} LIMIT 0").fetchall()
    except duckdb.CatalogException:
        return False
    except duckdb.BinderException:
        _add_prefixes(database, space)
    return True


def _add_prefixes(database: duckdb.DuckDBPyConnection, space: EmbeddingSpace) -> None:
    """Completes a table that was made before it had prefixes."""
    database.execute("BEGIN")
    database.execute(f"ALTER TABLE {_table(space)} ADD COLUMN prefix UBIGINT")
    database.execute(
        f"UPDATE {_table(space)} SET prefix = TRY_CAST('0x' || hex(content_hash[1:8]) AS UBIGINT)"
    )
    database.execute("COMMIT")


def _create_own_tables(database: duckdb.DuckDBPyConnection) -> None:
    database.execute("CREATE TABLE IF NOT EXISTS spaces (id VARCHAR, space VARCHAR)")
    database.execute(
        "CREATE TABLE IF NOT EXISTS lookups (space VARCHAR, day DATE, hits BIGINT, misses BIGINT)"
    )


def _create_table(database: duckdb.DuckDBPyConnection, space: EmbeddingSpace) -> None:
    if _has_table(database, space):
        return
    database.execute("BEGIN")
    _create_own_tables(database)
    database.execute("INSERT INTO spaces VALUES (?, ?)", [space.id, space.to_json()])
    database.execute(
        f"CREATE TABLE {_table(space)} "
        "(content_hash BLOB, prefix UBIGINT, vector BLOB, created TIMESTAMP)"
    )
    database.execute("COMMIT")
