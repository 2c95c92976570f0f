"""The vector store in a LanceDB folder: embedded, one commit a replacement.

A merge of LanceDB can also delete what its source does not name, but then it reads the vectors of
the whole table into memory. So the rows to remove are named in the source too, with their columns
but the key null: the commit that brings the new rows takes the old ones out of every search and
scan. Such remains are deleted in a second commit; if it fails, a later one does it.
"""

import contextvars
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
from filelock import FileLock
from pydantic import Field

from resources.disk_usage import bytes_in
from resources.identity.content_hash import chunk_id
from resources.identity.embedding_space import EmbeddingSpace
from resources.lean_imports import import_lancedb
from resources.machine import machine
from resources.urls import as_uri
from resources.vector_stores.base import (
    NoIndexError,
    SearchHit,
    StoreCapabilities,
    VectorStore,
    row_schema,
)
from resources.vector_stores.table_versions import readers_of, takes_too_much, tidy

_log = logging.getLogger(__name__)

# Without this declaration two processes that upsert the same new keys both insert them.
_KEY_METADATA = {"lance-schema:unenforced-primary-key": "true"}
_SPACE_METADATA = b"embedding_space"
# Every commit adds a fragment; merging them on each commit would cost more than it gains.
_SMALL_FRAGMENTS = 100
# Versions from one look at what the folder takes to the next: each is a file or three.
_VERSIONS_BETWEEN_LOOKS = 16
_VECTOR_INDEX = "vector_idx"
# Rows that the index does not know are compared one by one: so many are soon done.
_UNINDEXED_SHARE = 0.1
# Vectors for each cluster of the index. With the default of 256 it took 45 MB more to make one for
# 200,000 rows of 384 floats.
_SAMPLE_RATE = 64
# An index that was made for half the rows has too few, too large clusters.
_GROWTH_BEFORE_NEW_INDEX = 2.0
# Each update of the index adds a part of its own, and fragments of different parts are not merged.
_INDEX_PARTS = 20
# So many times k candidates, found by 8-bit vectors, are ranked by the vectors themselves: scores
# are exact, and entries of rows that were replaced since cannot surface.
_REFINE_FACTOR = 10
# Clusters in which candidates are sought, of some 8,000 rows each. Over a million rows LanceDB's
# default of 20 found 0.83 of the ten best, 40 found 0.96 and 80 all (`benchmarks.stores`).
_PROBES = 80
_REMOVALS_AT_A_TIME = 4096
# Each is a part of LanceDB's plan, and has k rows in memory.
_QUERIES_AT_ONCE = 64
# Rows that are to be removed have no partition, and no vector by which a search could find them.
_PRESENT, _REMOVED = "partition IS NOT NULL", "partition IS NULL"
_HIT_COLUMNS = [
    "chunk_id", "document_id", "chunk_number", "title", "text",
    "span_start", "span_end", "partition", "timestamp", "metadata",
]  # fmt: skip


_P = ParamSpec("_P")
_R = TypeVar("_R")


def _in_empty_context(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Calls LanceDB without the caller's context variables.

    It may keep them until the process ends, and Dagster's hold everything of the run: memory that
    is never freed, and complaints of DuckDB at exit.
    """

    @wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return contextvars.Context().run(method, *args, **kwargs)

    return call


class LanceDBVectorStore(VectorStore):
    """Tables in a LanceDB folder, or in object storage."""

    capabilities: ClassVar[StoreCapabilities] = StoreCapabilities(atomic_replace=True)

    uri: str = Field(
        default="data/vectors", description="Folder or object storage URL (s3://, gs://, az://)."
    )
    keep_seconds: float = Field(
        default=3600.0,
        ge=0,
        description="How long older versions of a table are kept for those who read them on other "
        "machines; sooner removed where they take more than twice the room of the table itself. "
        "What a process of this machine reads stays as long as it does.",
    )
    commit_timeout: float = Field(
        default=120.0, description="Seconds to retry a commit that conflicts with other writers."
    )
    approximate_from_rows: int = Field(
        default=100_000,
        ge=1_000,
        description="Rows from which on search goes through an approximate index, which is kept up "
        "to date after each run; the vectors of fewer are compared one by one.",
    )

    @property
    def kind(self) -> str:
        return "lancedb"

    @property
    def address(self) -> str:
        return as_uri(self.uri)

    def table_name(self, collection: str, space: EmbeddingSpace) -> str:
        return _table_name(collection, space)

    @_in_empty_context
    def create_table(self, collection: str, space: EmbeddingSpace) -> None:
        if self._open(collection, space) is not None:
            return
        schema = row_schema(space)
        key = schema.field("chunk_id").with_metadata(_KEY_METADATA)
        schema = schema.set(0, key).with_metadata({_SPACE_METADATA: space.to_json()})
        name = _table_name(collection, space)
        with self._creating(name):
            self._database.create_table(name, schema=schema, exist_ok=True)

    def scan(
        self,
        collection: str,
        space: EmbeddingSpace,
        columns: Sequence[str],
        *,
        partitions: Sequence[str] | None = None,
        not_partitions: Sequence[str] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        if partitions is not None and not len(partitions):
            return
        with self._using(collection, space) as table:
            if table is not None:
                yield from _scanned(table, columns, partitions, not_partitions)

    @_in_empty_context
    def replace(
        self,
        collection: str,
        space: EmbeddingSpace,
        rows: pa.RecordBatchReader,
        *,
        remove_chunk_ids: Sequence[str] = (),
        remove_from_partitions: Sequence[str] | None = None,
    ) -> None:
        self.create_table(collection, space)
        with self._using(collection, space) as table:
            before = table.version
            condition = None
            if remove_from_partitions is not None:
                named = _literals(remove_from_partitions) or "NULL"
                condition = f"source.{_PRESENT} OR target.partition IN ({named})"
            (
                table.merge_insert("chunk_id")
                .when_matched_update_all(where=condition)
                .when_not_matched_insert_all()
                .execute(
                    pa.RecordBatchReader.from_batches(
                        rows.schema, _with_removals(rows, set(remove_chunk_ids))
                    ),
                    on_bad_vectors="null",  # those of rows to remove; there are no others
                    timeout=timedelta(seconds=self.commit_timeout),
                )
            )
            if remove_chunk_ids:
                table.delete(_REMOVED)
        if before // _VERSIONS_BETWEEN_LOOKS != table.version // _VERSIONS_BETWEEN_LOOKS:
            self._tidy_if_due(collection, space)

    @_in_empty_context
    def maintain(self, collection: str, space: EmbeddingSpace) -> None:
        table = self._open(collection, space)
        if table is None:
            return
        if table.count_rows(_REMOVED):
            table.delete(_REMOVED)
        indexed, unindexed, parts = _indexed_rows(table)
        rows = table.count_rows()
        outgrown = rows > _GROWTH_BEFORE_NEW_INDEX * indexed
        if rows >= self.approximate_from_rows and (outgrown or parts > _INDEX_PARTS):
            from lancedb.index import IvfSq

            # 8-bit scalars need no codebook, so they are soon made, and are near enough to choose
            # the candidates that are ranked by the vectors themselves.
            config = IvfSq(distance_type="cosine", sample_rate=_SAMPLE_RATE)
            table.create_index("vector", config=config, replace=True)
            unindexed = 0
        small = table.stats()["fragment_stats"]["num_small_fragments"]
        due = small > _SMALL_FRAGMENTS or (indexed and unindexed > _UNINDEXED_SHARE * rows)
        self._tidy_if_due(collection, space, due=bool(due))

    def _tidy_if_due(self, collection: str, space: EmbeddingSpace, *, due: bool = False) -> None:
        table, folder = self._open(collection, space), self._folder(collection, space)
        if not due and folder is not None and not takes_too_much(table, folder):
            return
        try:
            tidy(table, timedelta(seconds=self.keep_seconds), folder)
        except (OSError, RuntimeError) as error:  # what is written is written
            _log.warning(
                f"Old versions of the table {table.name} in {self.uri} were not removed; the next "
                f"run tries again. LanceDB said: {error}"
            )

    @_in_empty_context
    def search(
        self,
        collection: str,
        space: EmbeddingSpace,
        vector: np.ndarray,
        k: int,
        *,
        exact: bool = False,
        not_partitions: Sequence[str] = (),
    ) -> list[SearchHit]:

        def ask(table: Any) -> list[dict[str, Any]]:
            found = _nearest(
                table, vector, k, _HIT_COLUMNS, exact=exact, not_partitions=not_partitions
            )
            rows = found.to_pylist()
            _complete(table, collection, rows)
            return rows

        found = self._answer(collection, space, ask)
        if found is None:
            raise NoIndexError(collection, space)
        return [
            SearchHit(
                score=_score(row.pop("_distance")),
                collection=collection,
                metadata=json.loads(row.pop("metadata")),
                **row,
            )
            for row in found
        ]

    @_in_empty_context
    def nearest_documents(
        self,
        collection: str,
        space: EmbeddingSpace,
        vectors: np.ndarray,
        k: int,
        *,
        exact: bool = False,
    ) -> list[list[tuple[str, float]]]:
        ranked: list[list[tuple[str, float]]] = []
        for first in range(0, len(vectors), _QUERIES_AT_ONCE):
            asked = vectors[first : first + _QUERIES_AT_ONCE]
            found = self._answer(
                collection,
                space,
                lambda table, asked=asked: _nearest(
                    table, [*asked], k, ["document_id"], exact=exact
                ),
            )
            if found is None:
                raise NoIndexError(collection, space)
            ranked += _by_query(found, len(asked))
        return ranked

    @_in_empty_context
    def rows(
        self,
        collection: str,
        space: EmbeddingSpace,
        chunk_ids: Sequence[str],
        columns: Sequence[str],
    ) -> pa.Table:
        found = self._answer(collection, space, lambda table: _rows(table, chunk_ids, columns))
        if found is None:
            schema = row_schema(space)
            return pa.schema([schema.field(name) for name in columns]).empty_table()
        return found

    @_in_empty_context
    def count(self, collection: str, space: EmbeddingSpace) -> int:
        return self._answer(collection, space, lambda table: table.count_rows(_PRESENT)) or 0

    @_in_empty_context
    def collections(self) -> list[str]:
        return sorted({collection for collection, _ in self._tables()})

    @_in_empty_context
    def spaces(self, collection: str) -> list[EmbeddingSpace]:
        names = [name for owner, name in sorted(self._tables()) if owner == collection]
        tables = [table for name in names if (table := self._opened(name)) is not None]
        spaces = (table.schema.metadata[_SPACE_METADATA].decode() for table in tables)
        return [*map(EmbeddingSpace.from_json, spaces)]

    def _tables(self) -> Iterator[tuple[str, str]]:
        """The collection and the name of each table."""
        page = self._database.list_tables()
        while True:
            for name in page.tables:
                if match := _TABLE_NAME.fullmatch(name):
                    yield match[1], name
            if not page.page_token:
                return
            page = self._database.list_tables(page_token=page.page_token)

    @_in_empty_context
    def drop_table(self, collection: str, space: EmbeddingSpace) -> None:
        folder = self._folder(collection, space)
        with ExitStack() as stack:
            if folder is not None:
                with suppress(OSError):  # there is no such table, or there are no locks
                    stack.enter_context(readers_of(folder).nobody_begins())
            for attempts_left in (3, 2, 1, 0):
                try:
                    self._database.drop_table(_table_name(collection, space), ignore_missing=True)
                    return
                except RuntimeError as error:
                    # Who wants to read has put his file into the folder that is being removed.
                    if not attempts_left or "not empty" not in str(error):
                        raise

    @cached_property
    def _database(self) -> Any:
        return _connect(self.uri)

    def _creating(self, name: str) -> AbstractContextManager[Any]:
        """Lets one process at a time make a table, if the store is a folder.

        LanceDB looks first and then overwrites: a table that another process made in between, and
        what it had written to it, would be lost. An object storage has no locks. There it is the
        pool `vector_store_writer` alone that keeps two first runs of a collection apart.
        """
        folder = self._root
        if folder is None:
            return nullcontext()
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{name}.lock")

    @property
    def _root(self) -> Path | None:
        """The store's folder; None: it is in object storage."""
        scheme, _, path = self.uri.rpartition("://")
        return Path(path).expanduser() if scheme in ("", "file") else None

    def bytes_used(self, collection: str, space: EmbeddingSpace) -> int | None:
        folder = self._folder(collection, space)
        return None if folder is None else bytes_in(folder)

    def _folder(self, collection: str, space: EmbeddingSpace) -> Path | None:
        """The table's folder; None: it is in object storage."""
        return self._root and self._root / f"{_table_name(collection, space)}.lance"

    @contextmanager
    def _using(self, collection: str, space: EmbeddingSpace) -> Iterator[Any]:
        """The table at its newest version, or None; the version is kept until the end."""
        folder = self._folder(collection, space)
        if folder is None:
            yield self._open(collection, space)
            return
        with readers_of(folder).using(lambda: self._open(collection, space)) as table:
            yield table

    def _answer(
        self, collection: str, space: EmbeddingSpace, ask: Callable[[Any], _R]
    ) -> _R | None:
        """What the newest version of the table answers; None: there is no table, or no more.

        It is asked again if there is a newer one by then: another machine may have removed the one
        that was asked, or this one, where nobody can write down what is read. So may somebody who
        has dropped the table, and it was made anew.
        """
        for attempts_left in (3, 2, 1, 0):
            with self._using(collection, space) as table:
                if table is None:
                    break
                try:
                    return ask(table)
                except (OSError, RuntimeError, ValueError) as error:
                    newest = self._open(collection, space)
                    if newest is None:
                        break
                    is_same = newest.version == table.version and not _is_missing(error)
                    if is_same or not attempts_left:
                        raise
        return None

    @_in_empty_context
    def _open(self, collection: str, space: EmbeddingSpace) -> Any:
        """The table at its newest version, or None."""
        return self._opened(_table_name(collection, space))

    def _opened(self, name: str) -> Any:
        try:
            return self._database.open_table(name)
        except (ValueError, FileNotFoundError) as error:
            if not _is_missing(error):
                raise
            return None


def _is_missing(error: Exception) -> bool:
    return "not found" in str(error).lower()


def _connect(uri: str) -> Any:
    here = machine()
    # Read when a scan starts. Otherwise Lance reads 2 GiB ahead of whoever consumes a scan.
    os.environ.setdefault("LANCE_DEFAULT_IO_BUFFER_SIZE", str(here.index_cache // 2))
    # The newer way to make an index took 73 MB more for 200,000 rows.
    os.environ.setdefault("LANCE_LEGACY_SHUFFLER", "1")
    # Each thread that works on a merge holds rows of its own: 25 MB for 12,500 of them.
    for variable in ("TOKIO_WORKER_THREADS", "LANCE_CPU_THREADS"):
        os.environ.setdefault(variable, str(here.data_threads))
    lancedb = import_lancedb()
    # The defaults are gigabytes, and each commit is met once or twice only.
    session = lancedb.Session(
        index_cache_size_bytes=here.index_cache, metadata_cache_size_bytes=here.index_cache
    )
    return lancedb.connect(uri, session=session)


@_in_empty_context
def _scanned(
    table: Any,
    columns: Sequence[str],
    partitions: Sequence[str] | None,
    not_partitions: Sequence[str] | None,
) -> Iterable[pa.RecordBatch]:
    condition = _PRESENT
    if partitions is not None:
        condition = f"partition IN ({_literals(partitions)})"
    elif not_partitions is not None and len(not_partitions):
        condition = _outside(not_partitions)
    return table.search().select(list(columns)).where(condition).to_batches()


def _nearest(
    table: Any,
    vectors: np.ndarray | list[np.ndarray],
    k: int,
    columns: Sequence[str],
    *,
    exact: bool,
    not_partitions: Sequence[str] = (),
) -> pa.Table:
    """Columns and `_distance` of the k rows nearest to each vector, with `query_index` if many."""
    query = (
        table.search(np.asarray(vectors, dtype=np.float32), vector_column_name="vector")
        .distance_type("cosine")
        .select([*columns, "_distance"])
        .limit(k)
    )
    if not_partitions:
        query = query.where(_outside(not_partitions), prefilter=True)
    if exact:
        query = query.bypass_vector_index()
    else:
        query = query.refine_factor(_REFINE_FACTOR).nprobes(_PROBES)
    return query.to_arrow()


def _by_query(found: pa.Table, queries: int) -> list[list[tuple[str, float]]]:
    """Documents and scores of what `_nearest` found for several vectors."""
    of_query: list[list[tuple[str, float]]] = [[] for _ in range(queries)]
    for row in found.to_pylist():
        # To one query LanceDB answers without its number.
        of_query[row.get("query_index", 0)].append((row["document_id"], _score(row["_distance"])))
    return of_query


def _score(cosine_distance: float) -> float:
    """The cosine."""
    return 1.0 - cosine_distance


def _complete(table: Any, collection: str, rows: list[dict[str, Any]]) -> None:
    """Fills in large titles and metadata, which only a document's first chunk has."""
    first_chunks = {
        row["document_id"]: chunk_id(collection, row["document_id"], 0)
        for row in rows
        if row["metadata"] is None
    }
    if not first_chunks:
        return
    found = _rows(table, [*first_chunks.values()], ["chunk_id", "title", "metadata"])
    by_chunk = {row["chunk_id"]: row for row in found.to_pylist()}
    for row in rows:
        if row["metadata"] is None:
            # Nothing, if another run has just taken the document out.
            first = by_chunk.get(first_chunks[row["document_id"]], {})
            row["title"] = first.get("title") or ""
            row["metadata"] = first.get("metadata") or "{}"


def _rows(table: Any, chunk_ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
    asked = f"chunk_id IN ({_literals(chunk_ids) or 'NULL'}) AND {_PRESENT}"
    return table.search().select(list(columns)).where(asked).to_arrow()


def _with_removals(rows: pa.RecordBatchReader, removed: set[str]) -> Iterator[pa.RecordBatch]:
    """Yields rows, and then what remains of those to remove that were not among them.

    Raises:
        ValueError: a row has no vector, or one with a component that is no finite number.
    """
    for batch in rows:
        vectors = batch["vector"]
        if vectors.null_count or not np.isfinite(vectors.flatten()).all():
            raise ValueError("a row to write has no vector, or one that is not finite")
        if removed:
            removed.difference_update(batch["chunk_id"].to_pylist())
        yield batch
    chunk_ids = pa.array(sorted(removed), pa.string())
    for start in range(0, len(chunk_ids), _REMOVALS_AT_A_TIME):
        part = chunk_ids.slice(start, _REMOVALS_AT_A_TIME)
        columns = [
            part if field.name == "chunk_id" else pa.nulls(len(part), field.type)
            for field in rows.schema
        ]
        yield pa.record_batch(columns, schema=rows.schema)


def _indexed_rows(table: Any) -> tuple[int, int, int]:
    """Rows that the vector index knows, others, and of how many parts it is; 0 without an index."""
    statistics = table.index_stats(_VECTOR_INDEX)
    if statistics is None:
        return 0, 0, 0
    return statistics.num_indexed_rows, statistics.num_unindexed_rows, statistics.num_indices


_TABLE_NAME = re.compile("(.+)__[0-9a-f]{16}")


def _table_name(collection: str, space: EmbeddingSpace) -> str:
    return f"{collection}__{space.id}"


def _outside(partitions: Sequence[str]) -> str:
    """A condition, which is never true of null."""
    return f"partition NOT IN ({_literals(partitions)})"


def _literals(values: Sequence[str]) -> str:
    """SQL string literals; LanceDB has no bound parameters here."""
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)
