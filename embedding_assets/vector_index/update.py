"""Brings the rows of partitions in line with their documents, chunks and vectors."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedding_assets.artifacts.keys import (
    chunks_key,
    documents_key,
    embeddings_quarantine_key,
    fallback_vectors_key,
    vectors_key,
)
from embedding_assets.artifacts.parquet import uncompressed_bytes
from embedding_assets.artifacts.schemas import DOCUMENTS
from embedding_assets.artifacts.scratch import Scratch, with_partition
from embedding_assets.runs.grouping import group_small
from resources.artifact_stores.base import ArtifactStore
from resources.caches.vectors import decode_vectors
from resources.document_sources.base import Period
from resources.identity.embedding_space import EmbeddingSpace
from resources.vector_stores.base import ROW_IDENTITY, VectorStore, row_schema

_ROWS_PER_BATCH = 512


@dataclass(frozen=True)
class PartitionFiles:
    """A partition, and where its artifacts can be read."""

    partition: str
    documents: str
    chunks: str
    vectors: dict[int, str]
    """By the place of their space. The first space always has a file, the fallback's maybe."""

    def size(self) -> int:
        return uncompressed_bytes(self.documents) + uncompressed_bytes(self.chunks)


def replace_rows(
    updates: Sequence["IndexUpdate"], group: Sequence[PartitionFiles]
) -> dict[str, dict[str, Any]]:
    """Rows go into one table before they go out of the other: a crash in between loses none."""
    first, *others = updates
    numbers: dict[str, dict[str, Any]] = {}
    for towards_fallback, part in groupby(group, key=lambda own: len(own.vectors) > 1):
        part = list(part)
        replaced = {
            update: update.replace(part)
            for update in (reversed(updates) if towards_fallback else updates)
        }
        numbers |= replaced[first]
        if others:
            for partition in replaced[first]:
                rows = sum(replaced[update][partition]["rows"] for update in others)
                numbers[partition]["fallback_rows"] = rows
    return numbers


class IndexUpdate:
    """Brings one table's rows of some partitions in line with their documents, chunks and vectors.

    The artifacts say what ought to be in the store; only the difference is written. A document is
    in the table of the first space that has vectors for all its chunks, and in no other.
    """

    def __init__(
        self,
        collection: str,
        spaces: Sequence[EmbeddingSpace],
        place: int,
        artifacts: ArtifactStore,
        store: VectorStore,
        database: Scratch,
        period_of: Callable[[str], Period | None],
        all_partitions: Iterable[str],
        partition_for: Callable[[str, datetime | None], str | None],
    ) -> None:
        """Args:
        collection: the collection's name.
        spaces: the spaces in which its rows may be, in the order of preference.
        place: which of the spaces this table is for.
        artifacts: documents, chunks and vectors.
        store: the vector store.
        database: where differences are found; for this object alone.
        period_of: the only period whose runs read a file; None: every run reads it.
        all_partitions: every partition key of the collection.
        partition_for: the partition to which id and time of a document belong; None: nobody knows.
        """
        self.collection = collection
        self.space = spaces[place]
        self.store = store
        self.database = database
        self._spaces = spaces
        self._place = place
        self._period_of = period_of
        self._all_partitions = set(all_partitions)
        self._partition_for = partition_for
        self._vectors_keys = (vectors_key, fallback_vectors_key)[: len(spaces)]
        self._artifacts = artifacts
        self.partitions: Sequence[str] = ()
        self._expected, self._gaps = _RowSet(), 0
        self._partitions_elsewhere: set[str] = set()
        self.documents_missing = 0
        """Documents that are not in the index, and in no quarantine either."""

    def begin(self, partitions: Sequence[str]) -> None:
        """Finds the rows that are there, and documents that more than one partition claims."""
        self.partitions = partitions
        self.documents_missing = 0
        self.store.create_table(self.collection, self.space)
        self.database.create("stored", _stored_schema(self.space))
        self.insert_stored("stored", partitions)
        self._expected, self._gaps = _RowSet(), 0
        self._find_claims()

    @contextmanager
    def opened(self, partition: str) -> Iterator[PartitionFiles]:
        """Yields what `replace` needs of a partition, for all spaces."""
        with ExitStack() as stack:

            def reading(key: Callable[[str, str], str]) -> str:
                name = key(self.collection, partition)
                return str(stack.enter_context(self._artifacts.reading(name)))

            yield PartitionFiles(
                partition,
                reading(documents_key),
                reading(chunks_key),
                {
                    place: reading(key)
                    for place, key in enumerate(self._vectors_keys)
                    if place == 0 or self._artifacts.exists(key(self.collection, partition))
                },
            )

    def insert_stored(self, table: str, partitions: Sequence[str]) -> None:
        schema = _stored_schema(self.space)
        for batch in self.store.scan(
            self.collection, self.space, schema.names, partitions=partitions
        ):
            self.database.insert(table, pa.Table.from_batches([batch]).select(schema.names))

    def replace(self, group: Sequence[PartitionFiles]) -> dict[str, dict[str, Any]]:
        """Writes the difference for some partitions in one commit, if there is any.

        Returns:
            For each partition how many rows it has, and what became of them.
        """
        database = self.database
        for own in group:
            if self._place in own.vectors:
                self._check_space(own.vectors[self._place], own.partition)
        partitions = [own.partition for own in group]
        self._find_wanted(group)
        wanted = _RowSet(*database.row(_row_set("wanted")))
        self._expected += wanted
        self._gaps += self._count_gaps("wanted")
        rows, withheld = self._rows_by_partition("wanted"), self._rows_by_partition("withheld")
        if self._place == 0:
            self._count_unexplained(partitions)
        gone: list[tuple[str, str, str]] = []
        written: Counter[str] = Counter()
        if not self._is_stored(wanted, partitions):
            gone, written = self._write_differences(group)
        removed_of = Counter(of for _, _, of in gone)
        return {
            partition: {
                "rows": rows[partition],
                "rows_written": written[partition],
                "rows_removed": removed_of[partition],
                "documents_withheld": withheld[partition],
            }
            for partition in partitions
        }

    def _is_stored(self, wanted: "_RowSet", partitions: Sequence[str]) -> bool:
        """Whether the store holds exactly the wanted rows, and no other partition is concerned."""
        moves = self.database.row(
            "SELECT count(*) FROM (FROM claimants UNION ALL BY NAME FROM strays)"
        )
        if moves != (0,):
            return False
        stored = self.database.rows(
            f"{_row_set('stored')} WHERE partition IN (SELECT unnest($partitions))",
            partitions=partitions,
        )
        return _RowSet(*stored[0]) == wanted

    def _rows_by_partition(self, table: str) -> Counter[str]:
        rows = self.database.rows(f"SELECT partition, count(*) FROM {table} GROUP BY ALL")
        return Counter(dict(rows))

    def _write_differences(
        self, group: Sequence[PartitionFiles]
    ) -> tuple[list[tuple[str, str, str]], Counter[str]]:
        """Brings the store in line with the table `wanted`, which is gone then.

        Returns:
            Of each removed row the chunk, its partition, and the partition for which it counts; and
            the number of written rows by partition.
        """
        database = self.database
        partitions = [own.partition for own in group]
        identity = ", ".join(ROW_IDENTITY)
        database.execute(
            f"CREATE OR REPLACE TABLE new_rows AS "
            f"SELECT * FROM wanted ANTI JOIN stored USING ({identity})"
        )
        # A row counts for its own partition, else for the one that its document belongs to now.
        database.execute(
            """
            CREATE OR REPLACE TABLE settled AS
            SELECT s.chunk_id, s.partition, coalesce(g.partition, o.partition, t.home) AS settles
            FROM stored s
            LEFT JOIN (SELECT unnest($partitions) AS partition) g ON g.partition = s.partition
            LEFT JOIN owned o ON o.document_id = s.document_id
            LEFT JOIN strays t
              ON t.chunk_id = s.chunk_id AND t.home IN (SELECT unnest($partitions))
            WHERE settles IS NOT NULL
            """,
            partitions=partitions,
        )
        gone = database.rows(
            "SELECT chunk_id, partition, settles FROM settled "
            "WHERE chunk_id NOT IN (SELECT chunk_id FROM wanted)"
        )
        removed = {chunk: partition for chunk, partition, _ in gone}
        written = self._rows_by_partition("new_rows")
        if written or removed:
            self._commit(group, removed)
        # These rows are settled. Kept, they would be removed once more with the partition that
        # a document moved away from.
        database.execute("DELETE FROM stored WHERE chunk_id IN (SELECT chunk_id FROM settled)")
        return gone, written

    def repair(self, damaged_chunk_ids: Sequence[str]) -> None:
        """Writes rows again whose text or vector is not what was written."""
        self.begin(self.partitions)
        damaged = pa.table({"chunk_id": pa.array(damaged_chunk_ids, pa.string())})
        self.database.create("damaged", damaged.schema)
        self.database.insert("damaged", damaged)
        self.database.execute("DELETE FROM stored WHERE chunk_id IN (SELECT chunk_id FROM damaged)")
        for group in group_small(self.partitions, self.opened, PartitionFiles.size):
            self.replace(group)

    def _find_wanted(self, group: Sequence[PartitionFiles]) -> None:
        """Fills the tables `placed`, `withheld`, `owned` and `wanted` for some partitions."""
        database = self.database
        database.name_partitions(
            {
                path: own.partition
                for own in group
                for path in (own.documents, own.chunks, *own.vectors.values())
            }
        )
        partitions = [own.partition for own in group]
        documents = [own.documents for own in group]
        chunks = [own.chunks for own in group]
        self._place_documents(group)
        database.execute(
            f"""
            CREATE OR REPLACE TABLE withheld AS
            SELECT partition, document_id FROM {with_partition("chunks")}
            ANTI JOIN placed USING (partition, document_id)
            UNION SELECT partition, document_id FROM superseded
            WHERE partition IN (SELECT unnest($partitions))
            """,
            chunks=chunks,
            partitions=partitions,
        )
        # Those of these partitions, in the index or not: no older version of them may remain.
        database.execute(
            f"""
            CREATE OR REPLACE TABLE owned AS
            SELECT d.partition, d.id AS document_id FROM {with_partition("documents")} d
            ANTI JOIN superseded s ON s.partition = d.partition AND s.document_id = d.id
            """,
            documents=documents,
        )
        database.execute(
            f"""
            CREATE OR REPLACE TABLE wanted AS
            SELECT {", ".join(f"c.{name}" for name in ROW_IDENTITY)}
            FROM {with_partition("chunks")} c
            JOIN {with_partition("documents")} d
              ON d.partition = c.partition AND d.id = c.document_id
             AND d.version = c.document_version
            SEMI JOIN (FROM placed WHERE place = $place) p
              ON p.partition = c.partition AND p.document_id = c.document_id
            ANTI JOIN withheld w
              ON w.partition = c.partition AND w.document_id = c.document_id
            """,
            place=self._place,
            chunks=chunks,
            documents=documents,
        )

    def _place_documents(self, group: Sequence[PartitionFiles]) -> None:
        """Finds the space of each document: as a whole it is in one, or in none."""
        placed = [("partition", pa.string()), ("document_id", pa.string()), ("place", pa.int32())]
        self.database.create("placed", pa.schema(placed))
        for place in range(len(self._spaces)):
            holders = [own for own in group if place in own.vectors]
            if not holders:
                continue
            self.database.execute(
                f"""
                INSERT INTO placed
                SELECT c.partition, c.document_id, $place FROM {with_partition("chunks")} c
                LEFT JOIN {with_partition("vectors")} v USING (partition, content_hash)
                ANTI JOIN placed p
                  ON p.partition = c.partition AND p.document_id = c.document_id
                GROUP BY c.partition, c.document_id HAVING count(*) = count(v.content_hash)
                """,
                place=place,
                chunks=[own.chunks for own in holders],
                vectors=[own.vectors[place] for own in holders],
            )

    def _count_unexplained(self, partitions: Sequence[str]) -> None:
        """Counts documents that are in no index though no quarantine says why.

        That happens when an asset in between was not materialized after the documents.
        """
        self.database.create(
            "refused", pa.schema([("partition", pa.string()), ("document_id", pa.string())])
        )
        for partition in partitions:
            key = embeddings_quarantine_key(self.collection, partition)
            if self._artifacts.exists(key):
                with self._artifacts.reading(key) as quarantine:
                    self.database.execute(
                        "INSERT INTO refused "
                        "SELECT $partition, document_id FROM read_parquet($path)",
                        partition=partition,
                        path=str(quarantine),
                    )
        (documents,) = self.database.row(
            "SELECT count(*) FROM owned ANTI JOIN wanted USING (partition, document_id) "
            "ANTI JOIN (FROM placed WHERE place <> $place) USING (partition, document_id) "
            "ANTI JOIN refused USING (partition, document_id)",
            place=self._place,
        )
        self.documents_missing += documents

    def differences(self) -> tuple[int, int, int]:
        """Reads the partitions back from the store and compares them with what ought to be there.

        Returns:
            Chunks that are missing, chunks that should not be there, and documents whose chunk
            numbers are not 0..n-1.
        """
        found = _RowSet()
        for batch in self.store.scan(
            self.collection, self.space, ROW_IDENTITY, partitions=self.partitions
        ):
            rows = pa.Table.from_batches([batch])
            found += _RowSet(*self.database.row_over(rows, _row_set("incoming")))
        # Nearly always. Tables of all the rows, which tell what is wrong, are not made for that.
        if found == self._expected:
            return 0, 0, self._gaps
        return self._count_differences()

    def _count_differences(self) -> tuple[int, int, int]:
        self.database.create("found", _stored_schema(self.space))
        self.insert_stored("found", self.partitions)
        self.database.create("expected", _stored_schema(self.space))
        for group in group_small(self.partitions, self.opened, PartitionFiles.size):
            self._find_wanted(group)
            self.database.execute("INSERT INTO expected FROM wanted")
        missing, surplus = self.database.row(
            """
            SELECT count(*) FILTER (found.chunk_id IS NULL),
                   count(*) FILTER (expected.chunk_id IS NULL)
            FROM expected FULL JOIN found USING (chunk_id, document_version, content_hash)
            """
        )
        return missing, surplus, self._count_gaps("found")

    def _count_gaps(self, table: str) -> int:
        """Documents whose chunk numbers are not 0..n-1."""
        (gaps,) = self.database.row(
            f"""
            SELECT count(*) FROM (
                SELECT document_id FROM {table} GROUP BY document_id
                HAVING count(*) <> max(chunk_number) + 1 OR min(chunk_number) <> 0
                    OR count(DISTINCT chunk_number) <> count(*)
            )
            """
        )
        return gaps

    def _commit(self, group: Sequence[PartitionFiles], removed: dict[str, str]) -> None:
        """Args:
        group: the partitions whose rows are written.
        removed: the partition of each chunk to remove.
        """
        schema = row_schema(self.space)
        holders = [own for own in group if self._place in own.vectors]
        rows: Iterable[pa.RecordBatch] = ()
        if holders:
            rows = self.database.stream(
                f"""
                SELECT c.chunk_id, c.document_id, c.document_version, c.content_hash,
                       c.chunk_number, c.span_start, c.span_end, c.partition, d.title,
                       c.context, c.text, d.timestamp, d.metadata, v.vector
                FROM {with_partition("chunks")} c
                SEMI JOIN new_rows n
                  ON n.partition = c.partition AND n.chunk_id = c.chunk_id
                JOIN {with_partition("documents")} d
                  ON d.partition = c.partition AND d.id = c.document_id
                JOIN {with_partition("vectors")} v
                  ON v.partition = c.partition AND v.content_hash = c.content_hash
                """,
                batch_rows=_ROWS_PER_BATCH,
                chunks=[own.chunks for own in holders],
                documents=[own.documents for own in holders],
                vectors=[own.vectors[self._place] for own in holders],
            )
        ready = (_as_rows(batch, schema, self.space.dimension) for batch in rows)
        # The store holds batches several times over while it compares them with its own.
        with self.database.spooled(schema, ready) as reader:
            self.database.drop("new_rows", "owned", "placed", "wanted", "withheld")
            self.store.replace(
                self.collection,
                self.space,
                reader,
                remove_chunk_ids=[*removed],
                # Not where another run has put a document that moved, in the meantime.
                remove_from_partitions=sorted({*removed.values()}),
            )

    def _find_claims(self) -> None:
        """Decides about documents that more than one partition holds.

        Among the files that a run reads, `documents` keeps the latest record of an id. So if both
        partitions read the same files, the document moved: it belongs to the partition in which it
        was seen last. If not, the archive may hold it in both, and it belongs to the later period,
        whichever of them ran last.

        In other partitions of this run it is left out; its rows in partitions outside this run are
        removed with the commit of its own partition, and if it belongs to one of those, it is left
        out here.
        """
        database = self.database
        claims = pa.schema(
            [
                ("document_id", pa.string()),
                ("partition", pa.string()),
                *(DOCUMENTS.field(name) for name in ("file", "read_at")),
            ]
        )
        database.create("claims", claims)
        self._find_claimants()
        for partition in self.partitions:
            self._insert_claims(partition)
        others = database.rows(
            "SELECT DISTINCT e.partition FROM elsewhere e SEMI JOIN claims c USING (document_id)"
        )
        if others:
            others = [partition for (partition,) in others]
            for partition in others:
                if self._artifacts.exists(documents_key(self.collection, partition)):
                    self._insert_claims(partition)
            self.insert_stored("stored", others)
            database.execute(
                "DELETE FROM stored WHERE partition IN (SELECT unnest($others)) "
                "AND document_id NOT IN (SELECT document_id FROM claims "
                "WHERE partition IN (SELECT unnest($mine)))",
                others=others,
                mine=list(self.partitions),
            )
        self._insert_strays()
        self._insert_periods()
        database.execute(
            """
            CREATE OR REPLACE TABLE superseded AS
            SELECT document_id, partition FROM claims LEFT JOIN periods USING (file)
            QUALIFY row_number() OVER (
                PARTITION BY document_id
                ORDER BY period DESC NULLS LAST, read_at DESC, partition DESC
            ) > 1
            """
        )

    def _find_claimants(self) -> None:
        """Finds the documents of the run that may be in more than one partition: few, or none.

        Fills `claimants` with hashes of their ids, and `elsewhere` with those in the index under
        partitions outside the run. What is not among them needs no place in any table.
        """
        database = self.database
        database.create("documents", pa.schema([("hash", pa.uint64())]))
        for partition in self.partitions:
            with self._reading(documents_key, partition) as documents:
                database.execute(
                    "INSERT INTO documents SELECT hash(id) FROM read_parquet($path)",
                    path=str(documents),
                )
        elsewhere = pa.schema([("document_id", pa.string()), ("partition", pa.string())])
        database.create("elsewhere", elsewhere)
        self._partitions_elsewhere = set()
        for space in self._spaces:  # a document may have moved out of another space's table
            for batch in self.store.scan(
                self.collection, space, elsewhere.names, not_partitions=self.partitions
            ):
                self._partitions_elsewhere |= set(batch["partition"].unique().to_pylist())
                rows = pa.Table.from_batches([batch])
                database.insert(
                    "elsewhere",
                    rows.select(elsewhere.names),
                    "SEMI JOIN documents ON documents.hash = hash(incoming.document_id)",
                )
        database.execute(
            """
            CREATE OR REPLACE TABLE claimants AS
            SELECT hash FROM documents GROUP BY hash HAVING count(*) > 1
            UNION SELECT hash(document_id) FROM elsewhere
            """
        )
        database.drop("documents")

    def _insert_claims(self, partition: str) -> None:
        with self._reading(documents_key, partition) as documents:
            self.database.execute(
                "INSERT INTO claims SELECT id, $partition, file, read_at FROM read_parquet($path) "
                "WHERE hash(id) IN (SELECT hash FROM claimants)",
                partition=partition,
                path=str(documents),
            )

    def _insert_strays(self) -> None:
        """Finds rows under partitions that the collection had before its settings changed.

        Each goes, or moves, with the partition to which its document would belong now; so the index
        is never without what the new partitions have not brought yet. If that is no partition at
        all, it goes with the first one that runs.
        """
        strays = pa.schema([("chunk_id", pa.string()), ("home", pa.string())])
        self.database.create("strays", strays)
        gone = sorted(self._partitions_elsewhere - self._all_partitions)
        if not gone or not self.partitions:
            return
        identity, run = _stored_schema(self.space), set(self.partitions)
        for batch in self.store.scan(
            self.collection, self.space, [*identity.names, "timestamp"], partitions=gone
        ):
            homes = [
                self.partitions[0] if home and home not in self._all_partitions else home
                for home in map(
                    self._partition_for,
                    batch["document_id"].to_pylist(),
                    batch["timestamp"].to_pylist(),
                )
            ]
            rows = pa.Table.from_batches([batch]).append_column(
                "home", pa.array(homes, pa.string())
            )
            rows = rows.filter(pa.array([home in run for home in homes]))
            self.database.insert("stored", rows.select(identity.names))
            self.database.insert("strays", rows.select(strays.names))

    def _insert_periods(self) -> None:
        """When the period begins to which a file is limited, for those that hold a claimed id."""
        disputed = self.database.rows(
            "SELECT DISTINCT file FROM claims QUALIFY count(*) OVER (PARTITION BY document_id) > 1"
        )
        periods = [(file, p[0]) for (file,) in disputed if (p := self._period_of(file))]
        schema = pa.schema([("file", pa.string()), ("period", pa.timestamp("us", "UTC"))])
        columns = zip(*periods, strict=True) if periods else ([], [])
        arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
        self.database.create("periods", schema)
        self.database.insert("periods", pa.table(arrays, schema=schema))

    def _check_space(self, vectors: Any, partition: str) -> None:
        found = (pq.read_schema(vectors).metadata or {}).get(b"space", b"").decode()
        if found and EmbeddingSpace.from_json(found).id != self.space.id:
            raise ValueError(
                f"The vectors of partition '{partition}' of '{self.collection}' were made in "
                f"another embedding space ({EmbeddingSpace.from_json(found).model}) than the "
                f"embedder's ({self.space.model}, {self.space.id}). "
                f"Materialize '{self.collection}/embeddings' for this partition again."
            )

    def _reading(self, key: Any, partition: str) -> Any:
        return self._artifacts.reading(key(self.collection, partition))


@dataclass(frozen=True)
class _RowSet:
    """Rows in any order: two sets are equal if and, but for one chance in 2^64, only if these are.

    Attributes:
        rows: how many.
        digest: the sum of the hashes of their identities.
    """

    rows: int = 0
    digest: int = 0

    def __add__(self, other: "_RowSet") -> "_RowSet":
        return _RowSet(self.rows + other.rows, self.digest + other.digest)


def _row_set(table: str) -> str:
    """SQL: the arguments of `_RowSet` for a table's rows."""
    return f"SELECT count(*), coalesce(sum(hash({', '.join(ROW_IDENTITY)})), 0) FROM {table}"


def _stored_schema(space: EmbeddingSpace) -> pa.Schema:
    schema = row_schema(space)
    return pa.schema([schema.field(name) for name in ROW_IDENTITY])


def _as_rows(batch: pa.RecordBatch, schema: pa.Schema, dimension: int) -> pa.RecordBatch:
    vectors, right_size = decode_vectors(batch["vector"], dimension)
    if not right_size.all():
        raise ValueError("a vector artifact holds vectors of another dimension than its space")
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(vectors)), dimension)
        if field.name == "vector"
        else pc.cast(batch[field.name], field.type)
        for field in schema
    ]
    return pa.record_batch(columns, schema=schema)
