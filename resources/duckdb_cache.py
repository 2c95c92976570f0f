"""The embedding cache in one DuckDB file: no server, safe for several processes in turn."""

import glob
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import dagster as dg
import duckdb
import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from pydantic import Field

from resources.embedding_cache import (
    CachedVectors,
    EmbeddingCache,
    SpaceStatistics,
    decode_vectors,
    encode_vectors,
    valid_vectors,
)
from resources.embedding_space import EmbeddingSpace


class CacheLockedError(RuntimeError):
    """Another process held the cache file for longer than the deadline."""


# The buffer pool is empty at each opening, so a larger one would only cost memory.
_MEMORY_LIMIT = "256MB"
# A checkpoint now and then rewrites row groups that are not full, and a put of whole ones does
# not pass through the log: half of the default halves the time and the size after large puts.
_ROW_GROUP = 65_536
# Binary columns of one Arrow batch hold at most 2 GiB.
_ROWS_PER_BATCH = 16_384
_SIGNS_OF_DAMAGE = (
    "corrupt", "checksum", "not a valid duckdb", "could not read enough bytes", "replaying wal",
)  # fmt: skip

_Result = TypeVar("_Result")


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
        if len(content_hashes):
            rows, _ = self._act(lambda database: _held(database, space, content_hashes))
            found[rows] = True
        return found

    def get(self, space: EmbeddingSpace, content_hashes: pa.Array) -> CachedVectors:
        if not len(content_hashes):
            return self._none_found(space, 0)
        return self._act(lambda database: self._get(database, space, content_hashes))

    def put(self, space: EmbeddingSpace, content_hashes: pa.Array, vectors: np.ndarray) -> None:
        if vectors.shape != (len(content_hashes), space.dimension):
            raise ValueError(
                f"{len(content_hashes)} hashes of a space of dimension {space.dimension} came with "
                f"vectors of shape {vectors.shape}."
            )
        if len(content_hashes):
            self._act(lambda database: _put(database, space, content_hashes, vectors))

    def statistics(self) -> list[SpaceStatistics]:
        return self._act(_statistics) if Path(self.path).exists() else []

    def _get(
        self, database: duckdb.DuckDBPyConnection, space: EmbeddingSpace, content_hashes: pa.Array
    ) -> CachedVectors:
        answer = self._none_found(space, len(content_hashes))
        rows, row_ids = _held(database, space, content_hashes)
        rejected = 0
        for fetched, decoded, valid in _fetch(database, space, row_ids):
            asked = rows[np.searchsorted(row_ids, fetched)]
            answer.vectors[asked[valid]] = decoded[valid]
            answer.found[asked[valid]] = True
            rejected += int(np.count_nonzero(~valid))
        return replace(answer, rejected=rejected)

    @staticmethod
    def _none_found(space: EmbeddingSpace, count: int) -> CachedVectors:
        vectors = np.zeros((count, space.dimension), dtype=np.float32)
        return CachedVectors(np.zeros(count, dtype=bool), vectors, 0)

    def _act(self, action: Callable[[duckdb.DuckDBPyConnection], _Result]) -> _Result:
        """Opens the file, acts and closes; if the file is damaged, does so with a new one."""
        path = Path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self.lock_timeout
        try:
            lock = FileLock(f"{path}.lock").acquire(self.lock_timeout, poll_interval=0.01)
        except Timeout as error:
            raise self._locked(_opening_error(path)) from error
        with lock:
            try:
                with self._open(path, deadline) as database:
                    return action(database)
            except duckdb.Error as error:
                if not _says_damaged(error):
                    raise  # permissions, a full disk: renaming the file would not help
                _set_aside(path, error)
            with self._open(path, deadline) as database:
                return action(database)

    @contextmanager
    def _open(self, path: Path, deadline: float) -> Iterator[duckdb.DuckDBPyConnection]:
        database = None
        while database is None:
            try:
                database = _connected(path)
            except duckdb.IOException as error:
                if "could not set lock" not in str(error).lower():
                    raise
                if time.monotonic() > deadline:
                    raise self._locked(str(error)) from error
                time.sleep(random.uniform(0.01, 0.1))
        try:
            yield database
        finally:
            database.close()

    def _locked(self, reason: str) -> CacheLockedError:
        return CacheLockedError(
            f"The embedding cache {self.path} was in use by another process for "
            f"{self.lock_timeout:.0f} s. Stop that process, or raise 'lock_timeout' "
            f"of the embedding_cache resource. DuckDB said: {reason}"
        )


def _connected(path: Path) -> duckdb.DuckDBPyConnection:
    database = duckdb.connect(
        config={
            "python_enable_replacements": "false",
            "memory_limit": _MEMORY_LIMIT,
            "temp_directory": f"{path}.tmp",
        }
    )
    try:
        quoted = str(path).replace("'", "''")
        database.execute(f"ATTACH '{quoted}' AS cache (TYPE duckdb, ROW_GROUP_SIZE {_ROW_GROUP})")
        database.execute("USE cache")
        # Vectors do not compress; trying costs half of the append speed.
        database.execute("SET force_compression = 'uncompressed'")
        database.execute("SET TimeZone = 'UTC'")
    except duckdb.Error:
        database.close()
        raise
    return database


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
) -> tuple[np.ndarray, np.ndarray]:
    """Which of the hashes asked for are held, and where: two int64 arrays, sorted by the second.

    Only the column of hashes is read: the vectors are some hundred times as large.
    """
    if not _has_table(database, space):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    numbers = np.arange(len(content_hashes))
    database.register("asked", pa.table({"content_hash": content_hashes, "number": numbers}))
    held = database.sql(
        f"SELECT asked.number, held.rowid AS row_id FROM asked JOIN {_table(space)} held "
        "USING (content_hash)"
    ).to_arrow_table()
    rows, row_ids = held["number"].to_numpy(), held["row_id"].to_numpy()
    order = np.argsort(row_ids)
    return rows[order], row_ids[order]


def _fetch(
    database: duckdb.DuckDBPyConnection, space: EmbeddingSpace, row_ids: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields row ids, their vectors, and whether each is a valid vector of the space."""
    if not len(row_ids):
        return
    database.register("wanted", pa.table({"row_id": row_ids}))
    fetched = database.sql(
        f"SELECT rowid AS row_id, vector FROM {_table(space)} "
        "WHERE rowid BETWEEN ? AND ? AND rowid IN (SELECT row_id FROM wanted)",
        params=[int(row_ids[0]), int(row_ids[-1])],
    ).to_arrow_table(_ROWS_PER_BATCH)
    for batch in fetched.to_batches():
        decoded, right_size = decode_vectors(batch["vector"], space.dimension)
        yield batch["row_id"].to_numpy(), decoded, right_size & valid_vectors(space, decoded)


def _put(
    database: duckdb.DuckDBPyConnection,
    space: EmbeddingSpace,
    content_hashes: pa.Array,
    vectors: np.ndarray,
) -> None:
    database.execute("BEGIN")
    _create_table(database, space)
    # The only writer looks before it inserts: that keeps hashes unique without an index, which
    # would make appending several times slower.
    rows, row_ids = _held(database, space, content_hashes)
    fresh = np.ones(len(content_hashes), dtype=bool)
    fresh[rows] = False
    # Entries that `get` rejects must give way, or they would be embedded again each time.
    broken = [ids[~valid] for ids, _, valid in _fetch(database, space, row_ids)]
    broken_ids = np.concatenate([np.zeros(0, dtype=np.int64), *broken])
    if len(broken_ids):
        fresh[rows[np.isin(row_ids, broken_ids)]] = True
        database.register("broken", pa.table({"row_id": broken_ids}))
        database.execute(f"DELETE FROM {_table(space)} WHERE rowid IN (SELECT row_id FROM broken)")
    if fresh.any():
        incoming = {
            "content_hash": content_hashes.filter(pa.array(fresh)),
            "vector": encode_vectors(vectors[fresh]),
        }
        database.register("incoming", pa.table(incoming))
        database.execute(
            f"INSERT INTO {_table(space)} "
            "SELECT content_hash, vector, now()::TIMESTAMP FROM incoming"
        )
    database.execute("COMMIT")


def _statistics(database: duckdb.DuckDBPyConnection) -> list[SpaceStatistics]:
    _create_spaces_table(database)
    result = []
    for (serialised,) in database.execute("SELECT space FROM spaces ORDER BY id").fetchall():
        space = EmbeddingSpace.from_json(serialised)
        ((entries,),) = database.execute(f"SELECT count(*) FROM {_table(space)}").fetchall()
        result.append(SpaceStatistics(space.id, space.model, space.dimension, entries))
    return result


def _table(space: EmbeddingSpace) -> str:
    return f'"vectors_{space.id}"'


def _has_table(database: duckdb.DuckDBPyConnection, space: EmbeddingSpace) -> bool:
    return bool(
        database.execute(
            "SELECT 1 FROM duckdb_tables() WHERE table_name = ?", [f"vectors_{space.id}"]
        ).fetchall()
    )


def _create_spaces_table(database: duckdb.DuckDBPyConnection) -> None:
    database.execute("CREATE TABLE IF NOT EXISTS spaces (id VARCHAR, space VARCHAR)")


def _create_table(database: duckdb.DuckDBPyConnection, space: EmbeddingSpace) -> None:
    if _has_table(database, space):
        return
    _create_spaces_table(database)
    database.execute("INSERT INTO spaces VALUES (?, ?)", [space.id, space.to_json()])
    database.execute(
        f"CREATE TABLE {_table(space)} (content_hash BLOB, vector BLOB, created TIMESTAMP)"
    )
