"""A throw-away DuckDB for sorts, joins and counts over Parquet files larger than memory."""

import glob
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from embedding_assets.artifacts.rows import to_arrow
from resources.duckdb_engine import IdleDuckDB, duckdb
from resources.leftovers import owner, remove_leftovers
from resources.machine import machine

_PREFIX = "embedding-assets-"
_OF_FILE = pa.schema([("path", pa.string()), ("partition", pa.string())])
_PARQUET = re.compile(r"read_parquet\(\$(\w+)")


def with_partition(parameter: str) -> str:
    """SQL: the rows of the Parquet files bound to a parameter as a list of paths.

    Each has the partition that `Scratch.name_partitions` told of its file.
    """
    return f"""(
        SELECT file.* EXCLUDE (filename), of_file.partition
        FROM read_parquet(${parameter}, filename = true) file
        JOIN of_file ON of_file.path = file.filename
    )"""


class Scratch:
    """SQL with bound parameters. Each call has a cursor to itself, so results may overlap.

    `read_parquet($name)` reads exactly the file at that path, or the files of a list of paths,
    whatever their folders are called.
    """

    _idle: ClassVar = IdleDuckDB()
    _as_sql: ClassVar[dict[pa.Schema, str]] = {}

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        here = machine()
        self._memory_limit = f"{here.sort_memory}B"
        self._purpose = self._memory_limit, here.data_threads, folder.parent
        self._engine = self._idle.take(self._purpose, self._start)
        self._engine.execute("ATTACH ':memory:' AS scratch")
        self._cursors: list[duckdb.DuckDBPyConnection] = []  # those that are free

    def _start(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB that outlives this object; it makes its folder when it spills."""
        memory_limit, threads, beside = self._purpose
        engine = duckdb.connect(
            ":memory:",
            config={
                "memory_limit": memory_limit,
                "threads": str(threads),
                # Else what is freed is kept in case that it is soon wanted again: 75 MB.
                "allocator_background_threads": "true",
                "temp_directory": str(beside / f"{self.folder.name}.spill"),
                "python_enable_replacements": "false",
                "preserve_insertion_order": "false",
            },
        )
        engine.execute("SET GLOBAL TimeZone = 'UTC'")
        return engine

    @contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        try:
            cursor = self._cursors.pop()
        except IndexError:
            cursor = self._engine.cursor()
            cursor.execute("USE scratch")
        try:
            yield cursor
        except BaseException:  # also of a stream that nobody reads to its end
            cursor.close()
            raise
        self._cursors.append(cursor)

    def execute(self, sql: str, **parameters: Any) -> None:
        with self._cursor() as cursor:
            cursor.execute(*_bound(sql, parameters))

    def changed(self, sql: str, **parameters: Any) -> int:
        """Executes an INSERT, UPDATE or DELETE and returns how many rows it changed."""
        return self.rows(sql, **parameters)[0][0]

    def rows(self, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
        with self._cursor() as cursor:
            return cursor.execute(*_bound(sql, parameters)).fetchall()

    def row(self, sql: str, **parameters: Any) -> tuple[Any, ...]:
        return self.rows(sql, **parameters)[0]

    def row_over(self, incoming: pa.RecordBatch, sql: str) -> tuple[Any, ...]:
        """The one row of a query over the table `incoming`, which is not copied."""
        with self._cursor() as cursor:
            cursor.register("incoming", _as_table(incoming))
            (row,) = cursor.execute(sql).fetchall()
            cursor.unregister("incoming")
            return row

    def stream(
        self, sql: str, batch_rows: int = 4096, **parameters: Any
    ) -> Iterator[pa.RecordBatch]:
        sql, bound = _bound(sql, parameters)
        with self._cursor() as cursor:
            yield from cursor.sql(sql, params=bound).to_arrow_reader(batch_rows)

    @contextmanager
    def spooled(
        self, schema: pa.Schema, batches: Iterable[pa.RecordBatch]
    ) -> Iterator[pa.RecordBatchReader]:
        """Yields batches of the schema from a file: all that made them is free by then."""
        path = self.folder / "spool.arrow"
        try:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
                yield reader
        finally:
            path.unlink(missing_ok=True)

    def create(self, table: str, schema: pa.Schema) -> None:
        """Creates an empty table, in the place of one of that name."""
        self.execute(f"CREATE OR REPLACE TABLE {table} ({self._columns(schema)})")

    def _columns(self, schema: pa.Schema) -> str:
        """The columns as DuckDB's SQL, which is asked once: to ask takes longer than to create."""
        if schema not in self._as_sql:
            with self._cursor() as cursor:
                cursor.register("incoming", schema.empty_table())
                columns = cursor.execute("DESCRIBE incoming").fetchall()
                cursor.unregister("incoming")
            quoted = ((name.replace('"', '""'), kind) for name, kind, *_ in columns)
            self._as_sql[schema] = ", ".join(f'"{name}" {kind}' for name, kind in quoted)
        return self._as_sql[schema]

    def insert(self, table: str, rows: pa.RecordBatch | pa.Table, only: str = "") -> None:
        """Inserts, column by name, those rows of `incoming` that the SQL after FROM leaves."""
        with self._cursor() as cursor:
            cursor.register("incoming", _as_table(rows))
            cursor.execute(f"INSERT INTO {table} BY NAME SELECT * FROM incoming {only}")
            cursor.unregister("incoming")

    def drop(self, *tables: str) -> None:
        """Drops tables, and gives the system all the memory that is not needed any more."""
        for table in tables:
            self.execute(f"DROP TABLE {table}")
        self._empty_allocator()

    def _empty_allocator(self) -> None:
        # Sets nothing new; but then DuckDB empties its allocator, which may hold 40 MB.
        self._engine.execute(f"SET memory_limit = '{self._memory_limit}'")

    def name_partitions(self, partitions: Mapping[str, str]) -> None:
        """Tells the partition of each path, in the place of what was told before."""
        self.create("of_file", _OF_FILE)
        self.insert("of_file", to_arrow([*partitions.items()], _OF_FILE))

    def finish(self) -> None:
        """Gives back all memory, and what else may serve the next scratch database."""
        for cursor in self._cursors:
            cursor.close()
        self._engine.execute("DETACH scratch")
        self._empty_allocator()
        spill = self._engine.execute("SELECT current_setting('temp_directory')").fetchall()[0][0]
        if Path(spill).exists():  # it would stay as long as the engine
            self.close()
        else:
            self._idle.keep(self._purpose, self._engine)

    def close(self) -> None:
        self._engine.close()


def _as_table(rows: pa.RecordBatch | pa.Table) -> pa.Table:
    return pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows


def _bound(sql: str, parameters: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """Statement and parameters for DuckDB, which takes [1] or * in a path for a pattern, and
    a folder called year=2024 for a column of what is in it."""
    paths = {
        name: [*map(glob.escape, value)] if isinstance(value, list) else glob.escape(value)
        for name in _PARQUET.findall(sql)
        for value in [parameters[name]]
    }
    sql = _PARQUET.sub(r"read_parquet($\1, hive_partitioning = false", sql)
    return sql, {**parameters, **paths} or None


@contextmanager
def scratch() -> Iterator[Scratch]:
    """Opens a scratch database with a folder of its own; both are gone afterwards."""
    remove_leftovers(Path(tempfile.gettempdir()), _PREFIX, ".*")
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{owner()}."))
    try:
        database = Scratch(folder)
        try:
            yield database
            database.finish()
        except BaseException:
            database.close()
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
