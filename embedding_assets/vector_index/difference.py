"""What partitions ought to have in one table of the index, against what it holds of them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding_assets.artifacts.keys import chunks_key, documents_key, embeddings_quarantine_key
from embedding_assets.artifacts.partition_files import (
    FileKey,
    PartitionFiles,
    partition_by_path,
    paths,
)
from embedding_assets.artifacts.scratch import Scratch, with_partition
from embedding_assets.vector_index.stored_rows import RowSet, row_set
from resources.caches.vectors import decode_vectors
from resources.identity.embedding_space import EmbeddingSpace
from resources.vector_stores.base import REPEATED_BYTES, ROW_IDENTITY, row_schema

_ROWS_PER_BATCH = 512
_BYTES_PER_BATCH = 16 * 1024 * 1024
_EVERY_CHUNK = 2**31 - 1
_DOCUMENTS = pa.schema([("partition", pa.string()), ("document_id", pa.string())])
_PLACED = _DOCUMENTS.append(pa.field("space_rank", pa.int32()))


@dataclass(frozen=True)
class Removals:
    """Rows that a group of partitions takes out of the index.

    Attributes:
        partitions: the partition of each, by chunk id.
        by_partition: how many count for each partition of the group.
    """

    partitions: dict[str, str]
    by_partition: Counter[str]


class Difference:
    """Compares a group of partitions with the tables `superseded` and `stored`.

    A document is in the table of the first space that has vectors for all its chunks, and in no
    other.

    Tables:
        placed: the rank of each document's space: as a whole it is in one, or in none.
        withheld: documents that go into no table; not all their vectors are there, or another
            partition owns them.
        owned: the documents of these partitions, in the index or not: no older version of them may
            remain.
        wanted: the identity of each row that ought to be in this table.
        refused: documents of which a chunk is in quarantine.
        new_rows: those of `wanted` that are not stored.
        settled: the stored rows about which these partitions decide, and for which of them each
            counts.
    """

    def __init__(
        self,
        space: EmbeddingSpace,
        space_rank: int,
        vectors_keys: Sequence[FileKey],
        database: Scratch,
    ) -> None:
        """The vectors of the space of each rank are under the key of that rank."""
        self._space = space
        self._space_rank = space_rank
        self._vectors_keys = vectors_keys
        self._database = database

    def find_wanted(self, group: Sequence[PartitionFiles]) -> RowSet:
        """Fills `placed`, `withheld`, `owned` and `wanted`."""
        database = self._database
        database.name_partitions(partition_by_path(group))
        documents, chunks = paths(group, documents_key), paths(group, chunks_key)
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
            partitions=_names(group),
        )
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
            SEMI JOIN (FROM placed WHERE space_rank = $space_rank) p
              ON p.partition = c.partition AND p.document_id = c.document_id
            ANTI JOIN withheld w
              ON w.partition = c.partition AND w.document_id = c.document_id
            """,
            space_rank=self._space_rank,
            chunks=chunks,
            documents=documents,
        )
        return RowSet(*database.row(row_set("wanted")))

    def _place_documents(self, group: Sequence[PartitionFiles]) -> None:
        self._database.create("placed", _PLACED)
        for space_rank, key in enumerate(self._vectors_keys):
            holders = [files for files in group if key in files.paths]
            if not holders:
                continue
            self._database.execute(
                f"""
                INSERT INTO placed
                SELECT c.partition, c.document_id, $space_rank FROM {with_partition("chunks")} c
                LEFT JOIN {with_partition("vectors")} v USING (partition, content_hash)
                ANTI JOIN placed p
                  ON p.partition = c.partition AND p.document_id = c.document_id
                GROUP BY c.partition, c.document_id HAVING count(*) = count(v.content_hash)
                """,
                space_rank=space_rank,
                chunks=paths(holders, chunks_key),
                vectors=paths(holders, key),
            )

    def by_partition(self, table: str) -> Counter[str]:
        """The number of a table's rows by their partition."""
        rows = self._database.rows(f"SELECT partition, count(*) FROM {table} GROUP BY ALL")
        return Counter(dict(rows))

    def count_unexplained(self, group: Sequence[PartitionFiles]) -> int:
        """Counts documents that are in no index though no quarantine says why.

        That happens when an asset in between was not materialized after the documents.
        """
        self._database.create("refused", _DOCUMENTS)
        if quarantines := paths(group, embeddings_quarantine_key):
            self._database.execute(
                "INSERT INTO refused "
                f"SELECT partition, document_id FROM {with_partition('quarantines')}",
                quarantines=quarantines,
            )
        (documents,) = self._database.row(
            "SELECT count(*) FROM owned ANTI JOIN wanted USING (partition, document_id) "
            "ANTI JOIN (FROM placed WHERE space_rank <> $space_rank) USING (partition, document_id)"
            " ANTI JOIN refused USING (partition, document_id)",
            space_rank=self._space_rank,
        )
        return documents

    def count_gaps(self, table: str) -> int:
        """Documents whose chunk numbers are not 0..n-1."""
        (gaps,) = self._database.row(
            f"""
            SELECT count(*) FROM (
                SELECT document_id FROM {table} GROUP BY document_id
                HAVING count(*) <> max(chunk_number) + 1 OR min(chunk_number) <> 0
                    OR count(DISTINCT chunk_number) <> count(*)
            )
            """
        )
        return gaps

    def is_stored(self, group: Sequence[PartitionFiles], wanted: RowSet) -> bool:
        """Whether the store holds exactly the wanted rows, and no other partition is concerned."""
        moves = self._database.row(
            "SELECT (SELECT count(*) FROM claimants) + count(heir) FROM stored"
        )
        if moves != (0,):
            return False
        stored = self._database.rows(
            f"{row_set('stored')} WHERE partition IN (SELECT unnest($partitions))",
            partitions=_names(group),
        )
        return RowSet(*stored[0]) == wanted

    def find_new_and_settled(self, group: Sequence[PartitionFiles]) -> Removals:
        """Fills `new_rows` and `settled`, and tells which rows to remove."""
        database = self._database
        identity = ", ".join(ROW_IDENTITY)
        database.execute(
            f"CREATE OR REPLACE TABLE new_rows AS "
            f"SELECT * FROM wanted ANTI JOIN stored USING ({identity})"
        )
        # A row counts for its own partition, else for the one that its document belongs to now.
        database.execute(
            """
            CREATE OR REPLACE TABLE settled AS
            SELECT s.chunk_id, s.partition,
                   coalesce(g.partition, o.partition, h.partition) AS settles
            FROM stored s
            LEFT JOIN (SELECT unnest($partitions) AS partition) g ON g.partition = s.partition
            LEFT JOIN owned o ON o.document_id = s.document_id
            LEFT JOIN (SELECT unnest($partitions) AS partition) h ON h.partition = s.heir
            WHERE settles IS NOT NULL
            """,
            partitions=_names(group),
        )
        gone = database.rows(
            "SELECT chunk_id, partition, settles FROM settled ANTI JOIN wanted USING (chunk_id)"
        )
        return Removals(
            {chunk_id: partition for chunk_id, partition, _ in gone},
            Counter(settles for _, _, settles in gone),
        )

    def new_rows(self, group: Sequence[PartitionFiles]) -> Iterator[pa.RecordBatch]:
        """Yields those of `new_rows` as the store wants them."""
        key = self._vectors_keys[self._space_rank]
        holders = [files for files in group if key in files.paths]
        if not holders:
            return
        for batch in self._database.stream(
            f"""
            SELECT c.chunk_id, c.document_id, c.document_version, c.content_hash,
                   c.chunk_number, c.span_start, c.span_end, c.partition, l.title,
                   c.context, c.text, d.timestamp, l.metadata, v.vector
            FROM {with_partition("chunks")} c
            SEMI JOIN new_rows n
              ON n.partition = c.partition AND n.chunk_id = c.chunk_id
            JOIN {with_partition("documents")} d
              ON d.partition = c.partition AND d.id = c.document_id
            JOIN {with_partition("vectors")} v
              ON v.partition = c.partition AND v.content_hash = c.content_hash
            LEFT JOIN (
                SELECT partition, id, title, metadata,
                       CASE WHEN strlen(title) + strlen(metadata) <= $repeated
                            THEN {_EVERY_CHUNK} ELSE 0 END AS last_chunk
                FROM {with_partition("documents")}
            ) l
              ON l.partition = c.partition AND l.id = c.document_id
             AND c.chunk_number <= l.last_chunk
            """,
            batch_rows=self._rows_per_batch(holders),
            repeated=REPEATED_BYTES,
            chunks=paths(holders, chunks_key),
            documents=paths(holders, documents_key),
            vectors=paths(holders, key),
        ):
            yield _as_rows(batch, self._space)

    def _rows_per_batch(self, holders: Sequence[PartitionFiles]) -> int:
        """So many that also the largest documents make no large batch."""
        (largest,) = self._database.row(
            f"SELECT max(strlen(title) + strlen(metadata)) FROM {with_partition('documents')}",
            documents=paths(holders, documents_key),
        )
        return max(1, min(_ROWS_PER_BATCH, _BYTES_PER_BATCH // max(1, largest or 0)))

    def free(self) -> None:
        """Drops the tables that are as large as the partitions, when `new_rows` is read."""
        self._database.drop("new_rows", "owned", "placed", "wanted", "withheld")


def _names(group: Sequence[PartitionFiles]) -> list[str]:
    return [files.partition for files in group]


def _as_rows(batch: pa.RecordBatch, space: EmbeddingSpace) -> pa.RecordBatch:
    schema = row_schema(space)
    vectors, right_size = decode_vectors(batch["vector"], space.dimension)
    if not right_size.all():
        raise ValueError("a vector artifact holds vectors of another dimension than its space")
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(vectors)), space.dimension)
        if field.name == "vector"
        else pc.cast(batch[field.name], field.type)
        for field in schema
    ]
    return pa.record_batch(columns, schema=schema)
