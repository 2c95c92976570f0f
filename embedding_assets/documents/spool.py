"""What an ingest holds of the records while it reads: rows in a scratch table, texts on disk."""

import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from embedding_assets.artifacts.rows import to_arrow
from embedding_assets.artifacts.schemas import DOCUMENTS, QUARANTINE
from embedding_assets.artifacts.scratch import Scratch
from embedding_assets.documents.source_state import SourceState
from embedding_assets.runs.progress import Progress
from resources.document_sources import DocumentSource, Refusal, RefusalReason
from resources.identity.content_hash import document_version


class DocumentBodies:
    """The long columns of documents, by number, on disk.

    DuckDB handles 2,048 rows at once, however long, and its sorts run out of memory over texts of
    10 kB. So only what is short is sorted there, and texts are fetched one by one from here.
    """

    def __init__(self, folder: Path) -> None:
        self._database = sqlite3.connect(folder / "contents.sqlite", isolation_level=None)
        for statement in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "CREATE TABLE contents (number INTEGER PRIMARY KEY, title, text, metadata)",
            "BEGIN",
        ):
            self._database.execute(statement)

    def put(self, number: int, title: str, text: str, metadata: str) -> None:
        row = (number, title, text, metadata)
        self._database.execute("INSERT INTO contents VALUES (?, ?, ?, ?)", row)

    def get(self, number: int) -> tuple[str, str, str]:
        return self._database.execute(
            "SELECT title, text, metadata FROM contents WHERE number = ?", (number,)
        ).fetchone()

    def close(self) -> None:
        self._database.close()


_ROWS_PER_BATCH = 2_000
_CHARACTERS_PER_BATCH = 8_000_000

BODY_COLUMNS = ("title", "text", "metadata")
SHORT_FIELDS = [field for field in DOCUMENTS if field.name not in BODY_COLUMNS]
RECORDS = pa.schema(
    [pa.field("position", pa.int64()), pa.field("partition", pa.string()), *SHORT_FIELDS]
)
"""What of a document is in a table; its `BODY_COLUMNS` are kept apart, by position."""
_REFUSALS = pa.schema([pa.field("partition", pa.string()), *list(QUARANTINE)[:-1]])


def spool_records(
    source: DocumentSource,
    database: Scratch,
    contents: DocumentBodies,
    read_at: datetime,
    wanted: set[str],
    read_periods: Sequence[tuple[datetime, datetime]] | None,
    state: SourceState,
    known: set[str],
    log: logging.Logger,
) -> int:
    """Fills the tables `records` (wanted), `elsewhere` (the others) and `refusals`."""
    records = _Spool(database, "records", RECORDS)
    elsewhere = _Spool(database, "elsewhere", pa.schema([RECORDS.field(n) for n in RANKED_COLUMNS]))
    refusals = _Spool(database, "refusals", _REFUSALS)
    progress = Progress(log, "records read")
    for position, item in enumerate(source.read(read_periods)):
        progress.advance(errors=isinstance(item, Refusal))
        if isinstance(item, Refusal):
            refusals.add(
                (None, item.reason.value, item.document_id, item.file, item.line, item.detail)
            )
            continue
        partition = state.partition_of(item)
        timestamp = item.timestamp.isoformat() if item.timestamp else ""
        version = document_version(item.title, item.text, timestamp, item.metadata)
        if partition in known and not state.is_read_for(partition, item.file):
            # In a run of its own partition alone it would be missing.
            reason = RefusalReason.outside_file_period.value
            detail = f"its time {timestamp} is not in the period that the file's name tells"
            refusals.add((None, reason, item.id, item.file, item.line, detail))
        elif partition in wanted:
            state.add_document(item, partition, version)
            contents.put(position, item.title, item.text, item.metadata)
            records.add(
                (
                    position, partition, item.id, item.timestamp, version, item.file, item.line,
                    read_at,
                )
            )  # fmt: skip
        elif partition in known:
            elsewhere.add((position, item.id, item.timestamp, version, item.file, item.line))
        else:
            reason = RefusalReason.outside_partitions.value
            detail = f"its time {timestamp} is before the first or after the last partition"
            refusals.add((None, reason, item.id, item.file, item.line, detail))
    for spool in (records, elsewhere, refusals):
        spool.flush()
    return progress.done


RANKED_COLUMNS = ("position", "id", "timestamp", "version", "file", "line")


class _Spool:
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


def with_bodies(
    records: Iterable[pa.RecordBatch], contents: DocumentBodies
) -> Iterator[pa.RecordBatch]:
    """Completes records to `partition` and the columns of `artifacts.DOCUMENTS`, bit by bit."""
    for batch in records:
        start, rows, size = 0, [], 0
        for end, position in enumerate(batch["position"].to_pylist(), start=1):
            rows.append(contents.get(position))
            size += len(rows[-1][BODY_COLUMNS.index("text")])
            if size >= _CHARACTERS_PER_BATCH or end == len(batch):
                columns = dict(zip(BODY_COLUMNS, zip(*rows, strict=True), strict=True))
                piece = batch.slice(start, end - start)
                yield pa.record_batch(
                    {
                        name: columns[name] if name in columns else piece[name]
                        for name in ("partition", *DOCUMENTS.names)
                    }
                )
                start, rows, size = end, [], 0
