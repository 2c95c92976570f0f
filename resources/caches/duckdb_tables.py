"""A cache's tables in DuckDB: one a space, vectors by content hash; and look-ups by day."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from resources.caches.base import FoundVectors, Lookups, Removed, Retention, SpaceStatistics
from resources.caches.duckdb_file import attach, limit_memory, log_of, smaller_file
from resources.caches.vectors import (
    CONTENT_HASH_TYPE,
    decode_vectors,
    encode_vectors,
    valid_vectors,
)
from resources.duckdb_engine import duckdb
from resources.identity.content_hash import HASH_BYTES
from resources.identity.embedding_space import EmbeddingSpace

# What is read at a time must fit into the memory limit, however long the vectors are.
ROWS_PER_BATCH = 16_384
_BYTES_PER_BATCH = 8 << 20
_HELD = pa.schema([("number", pa.int64()), ("row_id", pa.int64())])


def held_rows(
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
            f"SELECT number, held.rowid AS row_id FROM asked JOIN {table_of(space)} held "
            "USING (prefix)"
        ).to_arrow_table()
        if _has_table(database, space)
        else _HELD.empty_table()
    )
    return held.append_column("content_hash", content_hashes.take(held["number"]))


def held_prefixes(database: duckdb.DuckDBPyConnection, space: EmbeddingSpace) -> np.ndarray:
    """The first eight bytes of all hashes held, big-endian; shape (entries,), uint64."""
    if not _has_table(database, space):
        return np.zeros(0, np.uint64)
    found = database.sql(f"SELECT prefix FROM {table_of(space)} WHERE prefix IS NOT NULL")
    return found.to_arrow_table()["prefix"].to_numpy().astype(np.uint64, copy=False)


def _prefixes(content_hashes: pa.Array) -> np.ndarray:
    """The first eight bytes of each hash, big-endian; shape (n,), uint64."""
    start = content_hashes.offset * HASH_BYTES
    data = np.frombuffer(content_hashes.buffers()[1], np.uint8)[start:]
    rows = data[: len(content_hashes) * HASH_BYTES].reshape(-1, HASH_BYTES)
    return np.ascontiguousarray(rows[:, :8]).view(">u8").ravel().astype(np.uint64)


def _fetch(
    database: duckdb.DuckDBPyConnection, space: EmbeddingSpace, held: pa.Table
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Reads what `held_rows` found, as far as the whole hashes agree.

    Yields:
        Numbers, row ids, their vectors, and whether each is a valid vector of the space.
    """
    if not len(held):
        return
    limit_memory(database, space.dimension)
    database.register("wanted", held)
    bounds = pc.call_function("min_max", [held["row_id"]]).as_py()
    fetched = database.sql(
        f"SELECT number, stored.rowid AS row_id, vector FROM {table_of(space)} stored "
        "JOIN wanted ON stored.rowid = wanted.row_id "
        "WHERE stored.rowid BETWEEN ? AND ? AND stored.content_hash = wanted.content_hash",
        params=[bounds["min"], bounds["max"]],
    ).to_arrow_reader(max(1, min(ROWS_PER_BATCH, _BYTES_PER_BATCH // (4 * space.dimension))))
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


def find_vectors(
    database: duckdb.DuckDBPyConnection, space: EmbeddingSpace, content_hashes: pa.Array
) -> Iterator[FoundVectors]:
    held = held_rows(database, space, content_hashes)
    for numbers, _, decoded, valid in _fetch(database, space, held):
        rejected = int(np.count_nonzero(~valid))
        if rejected:
            numbers, decoded = numbers[valid], decoded[valid]
        yield FoundVectors(numbers, decoded, rejected)


def put_vectors(
    database: duckdb.DuckDBPyConnection,
    space: EmbeddingSpace,
    content_hashes: pa.Array,
    vectors: np.ndarray,
) -> None:
    limit_memory(database, space.dimension)
    _create_table(database, space)
    database.execute("BEGIN")
    # The only writer looks before it inserts: that keeps hashes unique without an index, which
    # would make appending several times slower.
    fresh = np.ones(len(content_hashes), dtype=bool)
    # Entries that `get` rejects must give way, or they would be embedded again each time.
    broken = [np.zeros(0, dtype=np.int64)]
    for numbers, row_ids, _, valid in _fetch(
        database, space, held_rows(database, space, content_hashes)
    ):
        fresh[numbers[valid]] = False
        broken.append(row_ids[~valid])
    broken_ids = np.concatenate(broken)
    if len(broken_ids):
        database.register("broken", pa.table({"row_id": broken_ids}))
        database.execute(
            f"DELETE FROM {table_of(space)} WHERE rowid IN (SELECT row_id FROM broken)"
        )
    if fresh.any():
        kept = content_hashes.filter(pa.array(fresh))
        incoming = {
            "content_hash": kept,
            "prefix": _prefixes(kept),
            "vector": encode_vectors(vectors[fresh]),
        }
        database.register("incoming", pa.table(incoming))
        database.execute(
            f"INSERT INTO {table_of(space)} BY NAME "
            "SELECT content_hash, prefix, vector, now()::TIMESTAMP AS created FROM incoming"
        )
    database.execute("COMMIT")


def list_spaces(database: duckdb.DuckDBPyConnection) -> list[EmbeddingSpace]:
    _create_own_tables(database)
    rows = database.execute("SELECT space FROM spaces ORDER BY id").fetchall()
    return [EmbeddingSpace.from_json(serialised) for (serialised,) in rows]


def read_statistics(database: duckdb.DuckDBPyConnection) -> list[SpaceStatistics]:
    hits: Counter[str] = Counter()
    misses: Counter[str] = Counter()
    for day in read_lookups(database):
        hits[day.space_id] += day.hits
        misses[day.space_id] += day.misses
    result = []
    for space in list_spaces(database):
        entries = count_rows(database, f"FROM {table_of(space)}")
        result.append(
            SpaceStatistics(
                space.id,
                space.model,
                space.dimension,
                entries,
                entries * entry_bytes(space),
                hits[space.id],
                misses[space.id],
            )
        )
    return result


def read_lookups(database: duckdb.DuckDBPyConnection) -> list[Lookups]:
    _create_own_tables(database)
    rows = database.execute(
        "SELECT space, day, hits, misses FROM lookups ORDER BY day, space"
    ).fetchall()
    return [Lookups(*row) for row in rows]


def add_lookups(database: duckdb.DuckDBPyConnection, counted: Sequence[Lookups]) -> list[Lookups]:
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


def prune_entries(
    database: duckdb.DuckDBPyConnection,
    retention: Retention,
    space_id: str | None,
    *,
    dry_run: bool,
) -> list[Removed]:
    spaces = [space for space in list_spaces(database) if space_id in (None, space.id)]
    written, sizes = [np.zeros(0)], [np.zeros(0)]
    for space in spaces:
        counts = database.sql(
            f"SELECT epoch(created) AS written, count(*) AS entries FROM {table_of(space)} "
            "GROUP BY created"
        ).fetchnumpy()
        written.append(np.asarray(counts["written"], dtype=np.float64))
        sizes.append(np.asarray(counts["entries"], dtype=np.float64) * entry_bytes(space))
    oldest = retention.oldest_kept(np.concatenate(written), np.concatenate(sizes), time.time())
    return [
        removed
        for space in spaces
        for removed in _delete(database, space, "epoch(created) < ?", [oldest], dry_run)
    ]


def invalidate_entries(
    database: duckdb.DuckDBPyConnection,
    content_hashes: pa.Array | None,
    space_id: str | None,
    *,
    dry_run: bool,
) -> list[Removed]:
    spaces = [space for space in list_spaces(database) if space_id in (None, space.id)]
    if content_hashes is not None:
        database.register("unwanted", pa.table({"content_hash": content_hashes}))
        condition = "content_hash IN (SELECT content_hash FROM unwanted)"
        return [r for s in spaces for r in _delete(database, s, condition, [], dry_run)]
    removed = [r for s in spaces for r in _delete(database, s, "true", [], dry_run=True)]
    if not dry_run:
        database.execute("BEGIN")
        for space in spaces:
            database.execute(f"DROP TABLE {table_of(space)}")
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
    source = f"FROM {table_of(space)} WHERE {condition}"
    entries = count_rows(database, source, parameters)
    if entries and not dry_run:
        database.execute(f"DELETE {source}", parameters)
    return [Removed(space.id, entries, entries * entry_bytes(space))] if entries else []


def listed_hashes(
    database: duckdb.DuckDBPyConnection, space: EmbeddingSpace, first: int, last: int
) -> pa.Array:
    """The hashes held whose first byte is `first` or more, and less than `last`."""
    if not _has_table(database, space):
        return pa.array([], CONTENT_HASH_TYPE)
    bounds = [bytes([first]), bytes([last]) if last < 256 else b"\xff" * (HASH_BYTES + 1)]
    held = database.sql(
        f"SELECT DISTINCT content_hash FROM {table_of(space)} "
        "WHERE content_hash >= ?::BLOB AND content_hash < ?::BLOB "
        f"AND octet_length(content_hash) = {HASH_BYTES}",
        params=bounds,
    ).to_arrow_table()
    return held["content_hash"].combine_chunks().cast(CONTENT_HASH_TYPE)


def count_rows(
    database: duckdb.DuckDBPyConnection, source: str, parameters: Sequence[float] = ()
) -> int:
    ((count,),) = database.execute(f"SELECT count(*) {source}", [*parameters]).fetchall()
    return count


def entry_bytes(space: EmbeddingSpace) -> int:
    return HASH_BYTES + 8 + 4 * space.dimension + 8


def table_of(space: EmbeddingSpace) -> str:
    return f'"vectors_{space.id}"'


def _has_table(database: duckdb.DuckDBPyConnection, space: EmbeddingSpace) -> bool:
    try:  # the list of all tables would take some milliseconds; within a transaction this fails
        database.execute(f"SELECT prefix FROM {table_of(space)} LIMIT 0").fetchall()
    except duckdb.CatalogException:
        return False
    except duckdb.BinderException:
        _add_prefixes(database, space)
    return True


def _add_prefixes(database: duckdb.DuckDBPyConnection, space: EmbeddingSpace) -> None:
    """Completes a table that was made before it had prefixes."""
    database.execute("BEGIN")
    database.execute(f"ALTER TABLE {table_of(space)} ADD COLUMN prefix UBIGINT")
    database.execute(
        f"UPDATE {table_of(space)} SET prefix = TRY_CAST('0x' || hex(content_hash[1:8]) AS UBIGINT)"
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
        f"CREATE TABLE {table_of(space)} "
        "(content_hash BLOB, prefix UBIGINT, vector BLOB, created TIMESTAMP)"
    )
    database.execute("COMMIT")


def compact(database: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Writes the file anew if a quarter of it is unused. The caller holds the lock file."""
    spaces = list_spaces(database)
    dimension = max((space.dimension for space in spaces), default=0)
    limit_memory(database, dimension)
    database.execute("CHECKPOINT")
    kept = sum(count_rows(database, f"FROM {table_of(s)}") * entry_bytes(s) for s in spaces)
    if kept > 0.75 * path.stat().st_size:
        return
    smaller = smaller_file(path)
    logs = (log_of(path), log_of(smaller))
    try:
        attach(database, smaller, "smaller", dimension)
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
