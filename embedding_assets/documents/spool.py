"""What an ingest holds of the records while it reads: rows in a scratch database, texts on disk."""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa

from embedding_assets.artifacts.parquet import grouped_by_partition, read_batches
from embedding_assets.artifacts.quarantine import DUPLICATE_DETAIL
from embedding_assets.artifacts.rows import to_arrow
from embedding_assets.artifacts.schemas import DOCUMENTS, QUARANTINE
from embedding_assets.artifacts.scratch import Scratch
from embedding_assets.collection.settings import DeletionSettings
from resources.artifact_stores.base import ArtifactStore
from resources.document_sources import Document, Refusal, RefusalReason

_ROWS_PER_BATCH = 2_000
_CHARACTERS_PER_BATCH = 8_000_000

_BODY_COLUMNS = ("title", "text", "metadata")
_SHORT_FIELDS = [field for field in DOCUMENTS if field.name not in _BODY_COLUMNS]
_RECORDS = pa.schema(
    [pa.field("position", pa.int64()), pa.field("partition", pa.string()), *_SHORT_FIELDS]
)
"""What of a document is in a table; its `_BODY_COLUMNS` are kept apart, by position."""
YIELDS = pa.schema([("name", pa.string()), ("documents", pa.int64())])
KNOWN = pa.schema([field for field in _RECORDS if field.name != "position"])
"""The same of a document of last time."""
SOUND_RECORDS = [RefusalReason.duplicate_id.value, RefusalReason.outside_partitions.value]
"""Reasons to refuse what was read well: they say nothing against a file."""
_RANKED_COLUMNS = ("position", "id", "timestamp", "version", "file", "line")
_REFUSALS = pa.schema([pa.field("partition", pa.string()), *list(QUARANTINE)[:-1]])


@dataclass(frozen=True)
class RefusedFile:
    """A file of which much was refused: `refused` of `read` records."""

    file: str
    refused: int
    read: int


class Spool:
    """The records of one reading of a source.

    The scratch database has the tables `records` (documents of the partitions that are read),
    `elsewhere` (documents of others), `refusals` (partition null: of none) and, when duplicates
    were refused, `losers`: the positions of documents that another one of their id replaces.
    """

    def __init__(self, database: Scratch) -> None:
        self._database = database
        self._bodies = DocumentBodies(database.folder)
        self._records = _Table(database, "records", _RECORDS)
        elsewhere = pa.schema([_RECORDS.field(name) for name in _RANKED_COLUMNS])
        self._elsewhere = _Table(database, "elsewhere", elsewhere)
        self._refusals = _Table(database, "refusals", _REFUSALS)
        self._read_at = datetime.now(timezone.utc)
        self._position = 0

    def keep(self, partition: str, document: Document, version: bytes) -> None:
        """Holds a document of a partition that is read."""
        self._position += 1
        self._bodies.put(self._position, document.title, document.text, document.metadata)
        self._records.add(
            (
                self._position, partition, document.id, document.timestamp, version,
                document.file, document.line, self._read_at,
            )
        )  # fmt: skip

    def set_aside(self, document: Document, version: bytes) -> None:
        """Remembers a document of another partition, which may have the id of a kept one."""
        self._position += 1
        row = (document.id, document.timestamp, version, document.file, document.line)
        self._elsewhere.add((self._position, *row))

    def refuse(self, refusal: Refusal) -> None:
        row = (refusal.document_id, refusal.file, refusal.line, refusal.detail)
        self._refusals.add((None, refusal.reason.value, *row))

    def flush(self) -> None:
        """Moves what is still in memory to the tables; to be called when all is read."""
        for table in (self._records, self._elsewhere, self._refusals):
            table.flush()

    def refuse_duplicates(self) -> None:
        """Leaves one record an id: the latest, then the one with the greatest version.

        The rule looks at content only, so it does not depend on the order or names of files.
        """
        columns = ", ".join(_RANKED_COLUMNS)
        self._database.execute(
            f"""
            CREATE TABLE losers AS
            WITH everything AS (
                SELECT {columns} FROM records UNION ALL SELECT {columns} FROM elsewhere
            ), repeated AS (
                SELECT id FROM everything GROUP BY id HAVING count(*) > 1
            )
            SELECT position,
                   first_value(file || ' line ' || line) OVER ranked AS winner
            FROM everything SEMI JOIN repeated USING (id)
            WINDOW ranked AS (
                PARTITION BY id ORDER BY timestamp DESC NULLS LAST, version DESC, position
            )
            QUALIFY row_number() OVER ranked > 1
            """
        )
        self._database.execute(
            """
            INSERT INTO refusals
            SELECT r.partition, $reason, r.id, r.file, r.line, $detail || winner
            FROM losers JOIN records r USING (position)
            """,
            detail=DUPLICATE_DETAIL,
            reason=RefusalReason.duplicate_id.value,
        )

    def count_yields(self, all_files: bool) -> None:
        """Makes the table `yields`: how many documents each file holds, of whatever partition.

        Args:
            all_files: whether all files of the source were read; then "" stands for their sum.
        """
        self._database.create("yields", YIELDS)
        self._database.execute(
            """
            INSERT INTO yields
            WITH held AS (
                SELECT position, file FROM records UNION ALL SELECT position, file FROM elsewhere
            )
            SELECT coalesce(file, ''), count(*) FROM held ANTI JOIN losers USING (position)
            GROUP BY GROUPING SETS ((file), ()) HAVING file IS NOT NULL OR $all_files
            """,
            all_files=all_files,
        )

    def broken_files(self) -> list[str]:
        """Files that could not be read, or not to their end."""
        found = self._database.rows(
            "SELECT DISTINCT file FROM refusals "
            "WHERE reason IN (SELECT unnest($reasons)) ORDER BY file",
            reasons=[RefusalReason.broken_file.value, RefusalReason.unknown_format.value],
        )
        return [file for (file,) in found]

    def refused_files(self, settings: DeletionSettings) -> list[RefusedFile]:
        """Files of which more than the permitted share was refused, the worst first."""
        rows = self._database.rows(
            """
            SELECT file, count(*) FILTER (refused) AS bad, count(*)
            FROM (SELECT file, true AS refused FROM refusals
                  WHERE reason NOT IN (SELECT unnest($sound))
                  UNION ALL SELECT file, false FROM records
                  UNION ALL SELECT file, false FROM elsewhere)
            GROUP BY file HAVING bad > 1 AND bad > $share * count(*) ORDER BY bad DESC, file
            """,
            sound=SOUND_RECORDS,
            share=settings.max_refused_share,
        )
        return [RefusedFile(*row) for row in rows]

    def retain(self, artifacts: ArtifactStore, known: Mapping[str, str]) -> None:
        """Adds the documents of the table `withheld`, as they were, to those that were read.

        Args:
            artifacts: where the documents of last time are.
            known: the keys of these documents, by partition.
        """
        columns = ", ".join(KNOWN.names)
        self._database.execute(
            f"INSERT INTO records SELECT -row_number() OVER (), {columns} FROM withheld"
        )
        for partition, key in known.items():
            positions = dict(
                self._database.rows(
                    "SELECT id, position FROM records "
                    "WHERE position < 0 AND partition = $partition",
                    partition=partition,
                )
            )
            if positions:
                with artifacts.reading(key) as previous:
                    for document in _rows_of(previous, ["id", *_BODY_COLUMNS]):
                        if (position := positions.get(document.pop("id"))) is not None:
                            self._bodies.put(position, **document)

    def documents(
        self, partitions: Iterable[str]
    ) -> Iterator[tuple[str, Iterable[pa.RecordBatch]]]:
        """The documents of each partition, in the order of their ids; columns as in `DOCUMENTS`.

        Each partition's are to be taken before the next one is asked for.
        """
        records = self._database.stream(
            "FROM records ANTI JOIN losers USING (position) ORDER BY partition, id"
        )
        groups = grouped_by_partition(self._with_bodies(records))
        group = next(groups, None)
        for partition in sorted(partitions):
            if group is not None and group[0] == partition:
                yield group
                group = next(groups, None)
            else:
                yield partition, ()

    def _with_bodies(self, records: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Completes records to `partition` and the columns of `DOCUMENTS`, bit by bit."""
        for batch in records:
            start, rows, size = 0, [], 0
            for end, position in enumerate(batch["position"].to_pylist(), start=1):
                rows.append(self._bodies.get(position))
                size += sum(map(len, rows[-1]))
                if size >= _CHARACTERS_PER_BATCH or end == len(batch):
                    columns = dict(zip(_BODY_COLUMNS, zip(*rows, strict=True), strict=True))
                    piece = batch.slice(start, end - start)
                    yield pa.record_batch(
                        {
                            name: columns[name] if name in columns else piece[name]
                            for name in ("partition", *DOCUMENTS.names)
                        }
                    )
                    start, rows, size = end, [], 0

    def refused_by_partition(self) -> dict[str | None, int]:
        """The number of refusals of each partition that has some; None: of no partition."""
        return dict(
            self._database.rows("SELECT partition, count(*) FROM refusals GROUP BY partition")
        )

    def refused_by_reason(self) -> Counter[str]:
        rows = self._database.rows("SELECT reason, count(*) FROM refusals GROUP BY reason")
        return Counter(dict(rows))

    def count_elsewhere(self) -> int:
        """The number of documents of other partitions."""
        return self._database.row("SELECT count(*) FROM elsewhere")[0]

    def close(self) -> None:
        self._bodies.close()


class DocumentBodies:
    """The long columns of documents, by number, on disk.

    DuckDB handles 2,048 rows at once, however long, and its sorts run out of memory over texts of
    10 kB. So only what is short is sorted there, and texts are fetched one by one from here.
    """

    def __init__(self, folder: Path) -> None:
        self._database = sqlite3.connect(folder / "bodies.sqlite", isolation_level=None)
        for statement in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "CREATE TABLE bodies (number INTEGER PRIMARY KEY, title, text, metadata)",
            "BEGIN",
        ):
            self._database.execute(statement)

    def put(self, number: int, title: str, text: str, metadata: str) -> None:
        row = (number, title, text, metadata)
        self._database.execute("INSERT INTO bodies VALUES (?, ?, ?, ?)", row)

    def get(self, number: int) -> tuple[str, str, str]:
        return self._database.execute(
            "SELECT title, text, metadata FROM bodies WHERE number = ?", (number,)
        ).fetchone()

    def close(self) -> None:
        self._database.close()


class _Table:
    """Collects rows and moves them to a scratch table batch by batch."""

    def __init__(self, database: Scratch, table: str, schema: pa.Schema) -> None:
        self._database, self._table, self._schema = database, table, schema
        self._rows: list[tuple[Any, ...]] = []
        database.create(table, schema)

    def add(self, row: tuple[Any, ...]) -> None:
        self._rows.append(row)
        if len(self._rows) >= _ROWS_PER_BATCH:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            self._database.insert(self._table, to_arrow(self._rows, self._schema))
        self._rows = []


def _rows_of(parquet: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in read_batches(parquet, 256, columns):
        yield from batch.to_pylist()
