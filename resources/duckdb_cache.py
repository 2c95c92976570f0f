"""The embedding cache in one DuckDB file: no server, safe for several processes in turn."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import numpy as np
import pyarrow as pa
from pydantic import Field, PrivateAttr

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


class DuckDBEmbeddingCache(EmbeddingCache):
    """One table a space. DuckDB lets one process at a time open a file, so: open, act, close."""

    path: str = Field(default="data/cache.duckdb", description="The DuckDB file.")
    lock_timeout: float = Field(
        default=60.0, description="Seconds to wait while another process holds the file."
    )

    # Threads of one process share the file handle's lock, so they take turns here.
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def contains(self, space: EmbeddingSpace, content_hashes: pa.Array) -> np.ndarray:
        found = np.zeros(len(content_hashes), dtype=bool)
        with self._open() as database:
            if _has_table(database, space):
                database.register("asked", _numbered(content_hashes))
                held = database.sql(
                    f"SELECT row FROM asked SEMI JOIN {_table(space)} USING (content_hash)"
                ).to_arrow_table()
                found[held["row"].to_numpy()] = True
        return found

    def get(self, space: EmbeddingSpace, content_hashes: pa.Array) -> CachedVectors:
        found = np.zeros(len(content_hashes), dtype=bool)
        vectors = np.zeros((len(content_hashes), space.dimension), dtype=np.float32)
        rejected = 0
        with self._open() as database:
            if not _has_table(database, space):
                return CachedVectors(found, vectors, rejected)
            database.register("asked", _numbered(content_hashes))
            held = database.sql(
                f"SELECT row, vector FROM asked JOIN {_table(space)} USING (content_hash)"
            ).to_arrow_table()
        for batch in held.to_batches():
            rows = batch["row"].to_numpy()
            decoded, right_size = decode_vectors(batch["vector"], space.dimension)
            valid = right_size & valid_vectors(space, decoded)
            vectors[rows[valid]] = decoded[valid]
            found[rows[valid]] = True
            rejected += int(np.count_nonzero(~valid))
        return CachedVectors(found, vectors, rejected)

    def put(self, space: EmbeddingSpace, content_hashes: pa.Array, vectors: np.ndarray) -> None:
        if not len(content_hashes):
            return
        with self._open() as database:
            incoming = pa.table({"content_hash": content_hashes, "vector": encode_vectors(vectors)})
            database.register("incoming", incoming)
            database.execute("BEGIN")
            _create_table(database, space)
            # Entries that `get` rejects must give way, or they would be embedded again each time.
            held = database.sql(
                f"SELECT content_hash, vector FROM {_table(space)} SEMI JOIN incoming "
                "USING (content_hash)"
            ).to_arrow_table()
            broken = _broken_entries(space, held)
            if len(broken):
                database.register("broken", pa.table({"content_hash": broken}))
                database.execute(
                    f"DELETE FROM {_table(space)} "
                    "WHERE content_hash IN (SELECT content_hash FROM broken)"
                )
            # An anti-join by the only writer keeps hashes unique without an index, which would
            # make appending several times slower.
            database.execute(
                f"INSERT INTO {_table(space)} SELECT content_hash, vector, now()::TIMESTAMP "
                f"FROM incoming ANTI JOIN {_table(space)} USING (content_hash)"
            )
            database.execute("COMMIT")

    def statistics(self) -> list[SpaceStatistics]:
        if not Path(self.path).exists():
            return []
        with self._open() as database:
            _create_spaces_table(database)
            spaces = database.execute("SELECT space FROM spaces ORDER BY id").fetchall()
            result = []
            for (serialised,) in spaces:
                space = EmbeddingSpace.from_json(serialised)
                entries = database.execute(f"SELECT count(*) FROM {_table(space)}").fetchall()
                result.append(
                    SpaceStatistics(space.id, space.model, space.dimension, entries[0][0])
                )
            return result

    @contextmanager
    def _open(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._lock:
            database = self._connect()
            try:
                yield database
            finally:
                database.close()

    def _connect(self) -> duckdb.DuckDBPyConnection:
        path = Path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self.lock_timeout
        while True:
            try:
                return _connected(path)
            except duckdb.IOException as error:
                if _says_damaged(error):
                    _set_aside(path, error)
                elif "lock" not in str(error).lower():
                    raise  # permissions, a full disk: renaming the file would not help
                elif time.monotonic() > deadline:
                    raise CacheLockedError(
                        f"The embedding cache {path} was in use by another process for "
                        f"{self.lock_timeout:.0f} s. Stop that process, or raise 'lock_timeout' "
                        f"of the embedding_cache resource. DuckDB said: {error}"
                    ) from error
                else:
                    time.sleep(random.uniform(0.01, 0.1))
            except duckdb.Error as error:
                _set_aside(path, error)


def _connected(path: Path) -> duckdb.DuckDBPyConnection:
    database = duckdb.connect(str(path), config={"python_enable_replacements": "false"})
    # Vectors do not compress; trying costs half of the append speed.
    database.execute("SET force_compression = 'uncompressed'")
    database.execute("SET TimeZone = 'UTC'")
    return database


def _says_damaged(error: duckdb.Error) -> bool:
    message = str(error).lower()
    return any(word in message for word in ("corrupt", "checksum", "not a valid", "magic bytes"))


def _set_aside(path: Path, error: duckdb.Error) -> None:
    """A cache can be made again, so a damaged one must not stop anybody: it is renamed."""
    aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
    if not path.is_file():
        raise error
    path.rename(aside)
    write_ahead_log = path.with_name(f"{path.name}.wal")
    if write_ahead_log.exists():
        write_ahead_log.rename(aside.with_name(f"{aside.name}.wal"))
    dg.get_dagster_logger().warning(
        f"The embedding cache {path} could not be opened ({error}). It was renamed to "
        f"{aside.name} and a new one is started: its texts will be embedded again."
    )


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


def _numbered(content_hashes: pa.Array) -> pa.Table:
    return pa.table({"content_hash": content_hashes, "row": np.arange(len(content_hashes))})


def _broken_entries(space: EmbeddingSpace, held: pa.Table) -> pa.ChunkedArray:
    masks = [pa.array([], pa.bool_())]
    for batch in held.to_batches():
        decoded, right_size = decode_vectors(batch["vector"], space.dimension)
        masks.append(pa.array(~(right_size & valid_vectors(space, decoded))))
    return held["content_hash"].filter(pa.chunked_array(masks))
