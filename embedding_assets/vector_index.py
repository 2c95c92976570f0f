"""Asset `vector_index`: replace the partition's rows in the vector store, in one commit."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedding_assets import artifacts as files
from embedding_assets.checks import IndexChecks
from embedding_assets.collection import Collection
from embedding_assets.partitions import home_of
from embedding_assets.range_run import Progress, RangeRun
from embedding_assets.scratch import Scratch, scratch
from resources.artifact_store import ArtifactStore
from resources.document_source.files import Period
from resources.embedding_cache import decode_vectors
from resources.embedding_space import EmbeddingSpace
from resources.vector_store import ROW_IDENTITY, VectorStore, row_schema

_MAX_REMOVALS_BY_ID = 2_000
"""More removals than this are cheaper as a replacement of the whole partition."""


def vector_index_asset(collection: Collection) -> dg.AssetsDefinition:
    checks = IndexChecks(collection)

    @collection.asset(
        "vector_index",
        after="embeddings",
        description="The searchable index: one row a chunk, one table for each embedding "
        "space. New and changed rows go in, those of deleted documents go out.",
        kinds={"lancedb"},
        check_specs=checks.specs,
    )
    def vector_index(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        resources = collection.resources(context)
        spaces = [embedder.space for embedder in resources.embedders]
        with RangeRun(context) as run, ExitStack() as stack:
            updates = [
                IndexUpdate(
                    collection.name,
                    spaces,
                    place,
                    resources.artifacts,
                    resources.store,
                    stack.enter_context(scratch()),
                    resources.source.period_of,
                    collection.partitions.get_partition_keys(),
                    home_of(collection.settings.partitions),
                )
                for place in range(len(spaces))
            ]
            for update in updates:
                update.begin(run.partitions)
            progress = Progress(context.log, "partitions indexed", len(run.partitions))
            for partition in run.partitions:
                numbers = _replace(updates, partition)
                progress.advance()
                run.finish(partition, {**numbers, "embedding_space": spaces[0].id})
            for space in spaces:
                resources.store.maintain(collection.name, space)
            results = checks.results(context, resources, updates)
        return dg.MaterializeResult(check_results=results)

    return vector_index


def _replace(updates: Sequence["IndexUpdate"], partition: str) -> dict[str, Any]:
    """Rows go into one table before they go out of the other: a crash in between loses none."""
    towards_fallback = updates[-1].has_vectors(partition)
    numbers = {
        update: update.replace(partition)
        for update in (reversed(updates) if towards_fallback else updates)
    }
    first, *others = updates
    if others:
        numbers[first]["fallback_rows"] = sum(numbers[update]["rows"] for update in others)
    return numbers[first]


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
        home_of: Callable[[str, datetime | None], str | None],
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
        home_of: the partition to which id and time of a document belong; None: nobody knows.
        """
        self.collection = collection
        self.space = spaces[place]
        self.store = store
        self.database = database
        self._spaces = spaces
        self._place = place
        self._period_of = period_of
        self._all_partitions = set(all_partitions)
        self._home_of = home_of
        self._vectors_keys = (files.vectors_key, files.fallback_vectors_key)[: len(spaces)]
        self._artifacts = artifacts
        self.partitions: Sequence[str] = ()
        self.documents_missing = 0
        """Documents that are not in the index, and in no quarantine either."""

    def begin(self, partitions: Sequence[str]) -> None:
        """Finds the rows that are there, and documents that more than one partition claims."""
        self.partitions = partitions
        self.documents_missing = 0
        self.store.create_table(self.collection, self.space)
        self.database.create("stored", _stored_schema(self.space))
        self.insert_stored("stored", partitions)
        expected = pa.schema(
            [
                _stored_schema(self.space).field(name)
                for name in ("chunk_id", "document_version", "content_hash")
            ]
        )
        self.database.create("expected", expected)
        self._find_claims()

    def has_vectors(self, partition: str) -> bool:
        """Whether the partition has vectors in this table's space."""
        return self._artifacts.exists(self._vectors_keys[self._place](self.collection, partition))

    def insert_stored(self, table: str, partitions: Sequence[str]) -> None:
        schema = _stored_schema(self.space)
        for batch in self.store.scan(
            self.collection, self.space, schema.names, partitions=partitions
        ):
            self.database.insert(table, pa.Table.from_batches([batch]).select(schema.names))

    def replace(self, partition: str) -> dict[str, Any]:
        """Writes the difference for one partition in one commit, if there is any."""
        database = self.database
        with ExitStack() as stack:
            documents = stack.enter_context(self._reading(files.documents_key, partition))
            chunks = stack.enter_context(self._reading(files.chunks_key, partition))
            vectors = {
                place: stack.enter_context(self._reading(key, partition))
                for place, key in enumerate(self._vectors_keys)
                if place == 0 or self._artifacts.exists(key(self.collection, partition))
            }
            if self._place in vectors:
                self._check_space(vectors[self._place], partition)
            paths: dict[str, Any] = {
                "documents": str(documents),
                "chunks": str(chunks),
                "vectors": str(vectors.get(self._place, "")),
                "partition": partition,
            }
            self._place_documents(str(chunks), vectors)
            database.execute(
                """
                CREATE OR REPLACE TABLE withheld AS
                SELECT document_id FROM read_parquet($chunks)
                WHERE document_id NOT IN (SELECT document_id FROM placed)
                UNION SELECT document_id FROM superseded WHERE partition = $partition
                """,
                **{k: paths[k] for k in ("chunks", "partition")},
            )
            # Those of this partition, in the index or not: no older version of them may remain.
            database.execute(
                """
                CREATE OR REPLACE TABLE owned AS
                SELECT id AS document_id FROM read_parquet($documents)
                WHERE id NOT IN (SELECT document_id FROM superseded WHERE partition = $partition)
                """,
                **{k: paths[k] for k in ("documents", "partition")},
            )
            database.execute(
                f"""
                CREATE OR REPLACE TABLE wanted AS
                SELECT {", ".join(f"c.{name}" for name in ROW_IDENTITY if name != "partition")},
                       $partition AS partition
                FROM read_parquet($chunks) c
                JOIN read_parquet($documents) d
                  ON d.id = c.document_id AND d.version = c.document_version
                JOIN placed p ON p.document_id = c.document_id AND p.place = $place
                ANTI JOIN withheld w ON w.document_id = c.document_id
                """,
                place=self._place,
                **{k: paths[k] for k in ("chunks", "documents", "partition")},
            )
            identity = ", ".join(ROW_IDENTITY)
            database.execute(
                f"CREATE OR REPLACE TABLE new_rows AS "
                f"SELECT * FROM wanted ANTI JOIN stored USING ({identity})"
            )
            removed = dict(
                database.rows(
                    """
                    SELECT chunk_id, partition FROM stored
                    WHERE (partition = $partition
                           OR document_id IN (SELECT document_id FROM owned)
                           OR chunk_id IN (SELECT chunk_id FROM strays WHERE home = $partition))
                      AND chunk_id NOT IN (SELECT chunk_id FROM wanted)
                    """,
                    partition=partition,
                )
            )
            database.execute(
                "INSERT INTO expected SELECT chunk_id, document_version, content_hash FROM wanted"
            )
            (rows,) = database.row("SELECT count(*) FROM wanted")
            (written,) = database.row("SELECT count(*) FROM new_rows")
            (withheld,) = database.row("SELECT count(*) FROM withheld")
            if self._place == 0:
                self._count_unexplained(partition)
            if written or removed:
                self._commit(partition, removed, paths)
            # These rows are settled. Kept, they would be removed once more with the partition that
            # a document moved away from.
            database.execute(
                "DELETE FROM stored WHERE partition = $partition "
                "OR document_id IN (SELECT document_id FROM owned) "
                "OR chunk_id IN (SELECT chunk_id FROM strays WHERE home = $partition)",
                partition=partition,
            )
        return {
            "rows": rows,
            "rows_written": written,
            "rows_removed": len(removed),
            "documents_withheld": withheld,
        }

    def repair(self, damaged_chunk_ids: Sequence[str]) -> None:
        """Writes rows again whose text or vector is not what was written."""
        self.begin(self.partitions)
        damaged = pa.table({"chunk_id": pa.array(damaged_chunk_ids, pa.string())})
        self.database.create("damaged", damaged.schema)
        self.database.insert("damaged", damaged)
        self.database.execute("DELETE FROM stored WHERE chunk_id IN (SELECT chunk_id FROM damaged)")
        for partition in self.partitions:
            self.replace(partition)

    def _place_documents(self, chunks: str, vectors: dict[int, Path]) -> None:
        """Finds the space of each document: as a whole it is in one, or in none."""
        self.database.create(
            "placed", pa.schema([("document_id", pa.string()), ("place", pa.int32())])
        )
        for place, path in vectors.items():
            self.database.execute(
                """
                INSERT INTO placed
                SELECT c.document_id, $place FROM read_parquet($chunks) c
                LEFT JOIN read_parquet($vectors) v ON v.content_hash = c.content_hash
                WHERE c.document_id NOT IN (SELECT document_id FROM placed)
                GROUP BY c.document_id HAVING count(*) = count(v.content_hash)
                """,
                place=place,
                chunks=chunks,
                vectors=str(path),
            )

    def _count_unexplained(self, partition: str) -> None:
        """Counts documents that are in no index though no quarantine says why.

        That happens when an asset in between was not materialized after the documents.
        """
        self.database.create("refused", files.QUARANTINE)
        key = files.embeddings_quarantine_key(self.collection, partition)
        if self._artifacts.exists(key):
            with self._artifacts.reading(key) as quarantine:
                self.database.execute(
                    "INSERT INTO refused FROM read_parquet($path)", path=str(quarantine)
                )
        (documents,) = self.database.row(
            "SELECT count(*) FROM owned ANTI JOIN wanted USING (document_id) "
            "ANTI JOIN (SELECT * FROM placed WHERE place <> $place) USING (document_id) "
            "ANTI JOIN refused USING (document_id)",
            place=self._place,
        )
        self.documents_missing += documents

    def differences(self) -> tuple[int, int, int]:
        """Reads the partitions back from the store and compares them with what ought to be there.

        Returns:
            Chunks that are missing, chunks that should not be there, and documents whose chunk
            numbers are not 0..n-1.
        """
        self.database.create("found", _stored_schema(self.space))
        self.insert_stored("found", self.partitions)
        missing, surplus = self.database.row(
            """
            SELECT count(*) FILTER (found.chunk_id IS NULL),
                   count(*) FILTER (expected.chunk_id IS NULL)
            FROM expected FULL JOIN found USING (chunk_id, document_version, content_hash)
            """
        )
        (gaps,) = self.database.row(
            """
            SELECT count(*) FROM (
                SELECT document_id FROM found GROUP BY document_id
                HAVING count(*) <> max(chunk_number) + 1 OR min(chunk_number) <> 0
                    OR count(DISTINCT chunk_number) <> count(*)
            )
            """
        )
        return missing, surplus, gaps

    def _commit(self, partition: str, removed: dict[str, str], paths: dict[str, Any]) -> None:
        """Args:
        partition: whose rows are written.
        removed: the partition of each chunk to remove.
        paths: files of documents, chunks and vectors.
        """
        whole = len(removed) > _MAX_REMOVALS_BY_ID
        schema = row_schema(self.space)
        rows: Iterable[pa.RecordBatch] = ()
        if paths["vectors"]:
            rows = self.database.stream(
                f"""
                SELECT c.chunk_id, c.document_id, c.document_version, c.content_hash,
                       c.chunk_number, c.span_start, c.span_end, $partition AS partition, d.title,
                       c.context, c.text, d.timestamp, d.metadata, v.vector
                FROM read_parquet($chunks) c
                SEMI JOIN {"wanted" if whole else "new_rows"} n ON n.chunk_id = c.chunk_id
                JOIN read_parquet($documents) d ON d.id = c.document_id
                JOIN read_parquet($vectors) v ON v.content_hash = c.content_hash
                """,
                **paths,
            )
        reader = pa.RecordBatchReader.from_batches(
            schema, (_as_rows(batch, schema, self.space.dimension) for batch in rows)
        )
        self.store.replace(
            self.collection,
            self.space,
            reader,
            remove_chunk_ids=[c for c, of in removed.items() if not whole or of != partition],
            # Not where another run has put a document that moved, in the meantime.
            remove_from_partitions=sorted({*removed.values()}),
            remove_rest_of_partition=partition if whole else None,
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
        claims = [("document_id", pa.string()), ("partition", pa.string())]
        seen = [files.DOCUMENTS.field(name) for name in ("file", "read_at")]
        database.create("claims", pa.schema([*claims, *seen]))
        for partition in self.partitions:
            self._insert_claims(partition)
        elsewhere = pa.schema(claims)
        database.create("elsewhere", elsewhere)
        for space in self._spaces:  # a document may have moved out of another space's table
            for batch in self.store.scan(
                self.collection, space, elsewhere.names, not_partitions=self.partitions
            ):
                database.insert("elsewhere", pa.Table.from_batches([batch]))
        others = database.rows(
            "SELECT DISTINCT e.partition FROM elsewhere e SEMI JOIN claims c USING (document_id)"
        )
        if others:
            others = [partition for (partition,) in others]
            for partition in others:
                if self._artifacts.exists(files.documents_key(self.collection, partition)):
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

    def _insert_claims(self, partition: str) -> None:
        with self._reading(files.documents_key, partition) as documents:
            self.database.execute(
                "INSERT INTO claims SELECT id, $partition, file, read_at FROM read_parquet($path)",
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
        found = self.database.rows("SELECT DISTINCT partition FROM elsewhere")
        gone = [p for (p,) in found if p not in self._all_partitions]
        if not gone or not self.partitions:
            return
        identity, run = _stored_schema(self.space), set(self.partitions)
        for batch in self.store.scan(
            self.collection, self.space, [*identity.names, "timestamp"], partitions=gone
        ):
            homes = [
                self.partitions[0] if home and home not in self._all_partitions else home
                for home in map(
                    self._home_of,
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
