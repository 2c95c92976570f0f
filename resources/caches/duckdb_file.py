"""One DuckDB file, opened by one process at a time; set aside if it is damaged."""

import glob
import logging
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from resources.duckdb_engine import IdleDuckDB, duckdb
from resources.errors import EmbeddingAssetsError
from resources.machine import machine

_log = logging.getLogger(__name__)


class CacheLockedError(EmbeddingAssetsError):
    """Another process held the cache file for longer than the deadline."""


# The buffer pool is empty at each opening: more makes neither puts nor look-ups faster.
_MEMORY_MB = 64
_ROWS_PER_VECTOR = 2_048  # what each of DuckDB's threads holds at a time, several times over
# A checkpoint rewrites row groups that are not full, and by default every closing is one. Small
# groups, and a checkpoint only where the log has grown, write each vector about twice; with the
# defaults a run of small puts wrote each eight times. But to open the file takes time for each
# group, so groups of short vectors have more rows, up to DuckDB's own default.
_BYTES_PER_ROW_GROUP = 12 << 20
_ROWS_PER_ROW_GROUP = (2_048, 122_880)  # at least and at most; only multiples of the first
_USUAL_DIMENSION = 384
_LOG_BEFORE_CHECKPOINT = "16MB"
_SIGNS_OF_DAMAGE = (
    "corrupt", "checksum", "not a valid duckdb", "could not read enough bytes", "replaying wal",
)  # fmt: skip


class DuckDBEngine:
    """DuckDB without a file: to start it takes longer than to open one and look up some keys.

    So the last one stays, idle and with no file open, for the next use of the same file. Whoever
    has a file open holds its lock file.
    """

    _idle: ClassVar = IdleDuckDB()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._purpose = path, machine().cache_threads
        self._duckdb = self._idle.take(self._purpose, self._start)

    def _start(self) -> duckdb.DuckDBPyConnection:
        engine = duckdb.connect(
            config={
                "python_enable_replacements": "false",
                "threads": str(machine().cache_threads),
                "allocator_background_threads": "true",
                "temp_directory": f"{self._path}.tmp",
                # Vectors do not compress; trying costs half of the append speed.
                "force_compression": "uncompressed",
                "checkpoint_threshold": _LOG_BEFORE_CHECKPOINT,
            }
        )
        engine.execute("PRAGMA disable_checkpoint_on_shutdown")
        return engine

    def open(self, dimension: int) -> duckdb.DuckDBPyConnection:
        # A log that a killed process left is replayed in memory.
        self._duckdb.execute(f"SET memory_limit = '{machine().memory // 4}B'")
        attach(self._duckdb, self._path, "cache", dimension)
        database = self._duckdb.cursor()  # what is registered with a cursor is forgotten with it
        database.execute("USE cache")
        database.execute("SET TimeZone = 'UTC'")
        limit_memory(database, 0)
        return database

    def close_file(self) -> None:
        """The file is free for others; this object belongs to whoever opens it next."""
        self._duckdb.execute("DETACH DATABASE IF EXISTS cache")
        self._idle.keep(self._purpose, self._duckdb)

    def close(self) -> None:
        self._duckdb.close()


def limit_memory(database: duckdb.DuckDBPyConnection, dimension: int) -> None:
    """Takes what vectors of a dimension need, and no more."""
    rows = machine().cache_threads * 8 * _ROWS_PER_VECTOR
    megabytes = _MEMORY_MB + rows * 4 * dimension // 1_000_000
    database.execute(f"SET memory_limit = '{megabytes}MB'")


def attach(database: duckdb.DuckDBPyConnection, path: Path, name: str, dimension: int) -> None:
    """Opens or makes a file; what is written now goes into row groups as they suit a dimension."""
    quoted = str(path).replace("'", "''")
    least, most = _ROWS_PER_ROW_GROUP
    rows = _BYTES_PER_ROW_GROUP // (4 * (dimension or _USUAL_DIMENSION)) // least * least
    database.execute(
        f"ATTACH '{quoted}' AS {name} (TYPE duckdb, ROW_GROUP_SIZE {max(least, min(most, rows))})"
    )


def remove_unfinished_copy(path: Path) -> None:
    """Removes what a killed process left of a smaller file. The caller holds the lock file."""
    for left in (smaller_file(path), log_of(smaller_file(path))):
        left.unlink(missing_ok=True)


def smaller_file(path: Path) -> Path:
    """Where the file is written anew."""
    return path.with_name(f"{path.name}.compact")


def log_of(path: Path) -> Path:
    """DuckDB's write-ahead log of a file."""
    return path.with_name(f"{path.name}.wal")


def opening_error(path: Path) -> str:
    """What DuckDB says to somebody who opens the file: it names the process that holds it."""
    try:
        duckdb.connect(str(path)).close()
    except duckdb.Error as error:
        return str(error)
    return "nothing; it has just become free."


def says_damaged(error: duckdb.Error) -> bool:
    if isinstance(error, duckdb.SerializationException | duckdb.InternalException):
        return True
    message = str(error).lower()
    return any(sign in message for sign in _SIGNS_OF_DAMAGE)


def set_aside(path: Path, error: duckdb.Error) -> None:
    """A cache can be made again, so a damaged one must not stop anybody: it is renamed.

    The caller holds the lock file, so nobody has replaced the file that was found damaged.
    """
    aside = f"{path.name}.damaged-{datetime.now():%Y%m%d-%H%M%S-%f}"
    # The write-ahead log goes first: a new file must never meet an old log.
    for part in (*path.parent.glob(f"{glob.escape(path.name)}.wal*"), path):
        part.rename(path.with_name(aside + part.name.removeprefix(path.name)))
    _log.warning(
        f"The embedding cache {path} is damaged ({error}). It was renamed to "
        f"{aside} and a new one is started: its texts will be embedded again."
    )
