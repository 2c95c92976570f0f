"""Asset `documents`: read the source, validate, quarantine, and keep what is in the partition."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from embedding_assets.artifacts import schemas as files
from embedding_assets.artifacts.scratch import Contents, Scratch, scratch
from embedding_assets.collection.collection import Collection
from embedding_assets.collection.partitions import periods
from embedding_assets.documents import unchanged as source_files
from embedding_assets.documents.checks import DocumentChecks
from embedding_assets.documents.source_state import SourceState, to_bytes
from embedding_assets.runs.range_run import Progress, RangeRun
from resources.artifact_stores.files import ArtifactStore
from resources.document_sources import DocumentSource, Refusal, RefusalReason
from resources.identity.content_hash import document_version

_ROWS_PER_BATCH = 2_000
_CHARACTERS_PER_BATCH = 8_000_000

_CONTENTS = ("title", "text", "metadata")
_SHORT = [field for field in files.DOCUMENTS if field.name not in _CONTENTS]
_RECORDS = pa.schema(
    [pa.field("position", pa.int64()), pa.field("partition", pa.string()), *_SHORT]
)
"""What of a document is in a table; its `_CONTENTS` are kept apart, by position."""
_REFUSALS = pa.schema([pa.field("partition", pa.string()), *list(files.QUARANTINE)[:-1]])
_ESSENTIAL = ("added", "changed", "unchanged", "deleted", "quarantined")


def documents_asset(collection: Collection) -> dg.AssetsDefinition:
    checks = DocumentChecks(collection)

    @collection.asset(
        "documents",
        description="The validated documents of the partition; what was refused is in the "
        "quarantine, with its reason and position.",
        kinds={"parquet"},
        check_specs=checks.specs,
    )
    def documents(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        resources = collection.resources(context)
        with RangeRun(context, _ESSENTIAL) as run:
            ingested = ingest(
                resources.source,
                resources.artifacts,
                collection,
                run.partitions,
                run.finish,
                context.log,
            )
        return dg.MaterializeResult(check_results=checks.results(ingested))

    return documents


@dataclass
class Ingested:
    """What became of the records that the source yielded.

    Attributes:
        read: records and refusals that the source yielded.
        elsewhere: valid documents of partitions that were not to be read.
        stored: documents written, `retained` ones not counted.
        quarantined: refused records by reason.
        retained: documents kept from the last time because their file could not be read now.
        broken_files: files that could not be read, or not to their end.
        unread_partitions: partitions left as they are because their files are as they were.
    """

    read: int = 0
    elsewhere: int = 0
    stored: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    retained: int = 0
    broken_files: list[str] = field(default_factory=list)
    unread_partitions: int = 0


def ingest(
    source: DocumentSource,
    artifacts: ArtifactStore,
    collection: Collection,
    partitions: Sequence[str],
    finish: Callable[[dict[str, dict[str, Any]]], None],
    log: logging.Logger,
) -> Ingested:
    """Replaces the documents of those partitions whose files are not as they were.

    Args:
        source: where documents come from; it is read once for all partitions.
        artifacts: where they go.
        collection: the collection.
        partitions: the partitions to bring up to date.
        finish: called with the numbers of a partition when its files are written.
        log: progress goes here.

    Returns:
        The numbers of the whole run.
    """
    settings = collection.settings
    state = SourceState(source, settings.partitions)
    listing = source.files(periods(collection.partitions, partitions))
    marks = source_files.marks(listing, partitions, state, settings, datetime.now(timezone.utc))
    del listing  # of a large archive it is large
    unread = {}
    if not settings.source.read_unchanged_files:
        unread = _as_they_were(artifacts, collection.name, partitions, marks)
        finish(unread)
    if unread:
        log.info(
            f"{len(unread):,} of {len(partitions):,} partitions are up to date, for their files "
            "are as they were; source.read_unchanged_files: true reads them nevertheless."
        )
    if len(unread) == len(partitions):
        _forget_files_that_are_gone(source, artifacts, collection.name)
        return Ingested(unread_partitions=len(unread))
    partitions = [partition for partition in partitions if partition not in unread]
    ingested = _read(source, artifacts, collection, partitions, state, marks, finish, log)
    return replace(ingested, unread_partitions=len(unread))


def _as_they_were(
    artifacts: ArtifactStore,
    collection: str,
    partitions: Iterable[str],
    marks: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """The numbers of those partitions that hold what reading them again would give."""
    found = {}
    for partition in partitions:
        key = files.documents_key(collection, partition)
        if partition not in marks or not artifacts.exists(key):
            continue
        with artifacts.reading(key) as path:
            metadata = pq.read_metadata(path)
        if (metadata.metadata or {}).get(files.SOURCE_FILES.encode()) != marks[partition].encode():
            continue
        quarantined = 0
        key = files.documents_quarantine_key(collection, partition)
        if artifacts.exists(key):
            with artifacts.reading(key) as path:
                quarantined = pq.read_metadata(path).num_rows
        found[partition] = {
            **_numbers(metadata.num_rows, unchanged=metadata.num_rows),
            "quarantined": quarantined,
        }
    return found


def _read(
    source: DocumentSource,
    artifacts: ArtifactStore,
    collection: Collection,
    partitions: Sequence[str],
    state: SourceState,
    marks: Mapping[str, str],
    finish: Callable[[dict[str, dict[str, Any]]], None],
    log: logging.Logger,
) -> Ingested:
    """Reads the source once and replaces the documents of each of the partitions."""
    read_periods = periods(collection.partitions, partitions)
    with scratch() as database, closing(Contents(database.folder)) as contents:
        read = _spool(
            source,
            database,
            contents,
            datetime.now(timezone.utc),
            set(partitions),
            read_periods,
            state,
            set(collection.partitions.get_partition_keys()),
            log,
        )
        _quarantine_duplicates(database)
        broken_files = [
            file
            for (file,) in database.rows(
                "SELECT DISTINCT file FROM refusals "
                "WHERE reason IN (SELECT unnest($reasons)) ORDER BY file",
                reasons=[RefusalReason.broken_file.value, RefusalReason.unknown_format.value],
            )
        ]
        retained = 0
        if broken_files:
            retained = _retain(
                database, contents, artifacts, collection.name, partitions, broken_files
            )
        # First, and of each partition before its documents: they have the mark by which another
        # run knows that nothing is left to do.
        _write_unplaced_quarantine(database, source, artifacts, collection.name, read_periods)
        stored = 0
        refused = {p for (p,) in database.rows("SELECT DISTINCT partition FROM refusals")}
        groups = files.grouped_by_partition(
            _with_contents(
                database.stream(
                    "FROM records ANTI JOIN losers USING (position) ORDER BY partition, id"
                ),
                contents,
            )
        )
        group = next(groups, None)
        progress = Progress(log, "documents written", partitions=len(partitions))
        for partition in sorted(partitions):
            progress.begin()
            rows: Iterable[pa.RecordBatch] = ()
            if group is not None and group[0] == partition:
                rows = group[1]
            quarantined = _write_quarantine(
                database, artifacts, collection.name, partition, has_refusals=partition in refused
            )
            origin = {files.SOURCE_DIGEST: to_bytes(state.digests[partition]).hex()}
            broken = any(state.is_read_for(partition, file) for file in broken_files)
            if partition in marks and not broken:
                origin[files.SOURCE_FILES] = marks[partition]
            numbers = _replace_documents(
                database, artifacts, collection.name, partition, rows, origin
            )
            if rows:
                group = next(groups, None)
            stored += numbers["documents"]
            changes = {name: n for name, n in numbers.items() if name != "documents"}
            progress.advance(numbers["documents"], **changes, errors=quarantined)
            finish({partition: {**numbers, "quarantined": quarantined}})
        (unplaced,) = database.row("SELECT count(*) FROM refusals WHERE partition IS NULL")
        progress.advance(0, errors=unplaced)
        progress.finish()
        reasons = database.rows("SELECT reason, count(*) FROM refusals GROUP BY reason")
        (elsewhere,) = database.row("SELECT count(*) FROM elsewhere")
        return Ingested(
            read, elsewhere, stored - retained, Counter(dict(reasons)), retained, broken_files
        )


def _spool(
    source: DocumentSource,
    database: Scratch,
    contents: Contents,
    read_at: datetime,
    wanted: set[str],
    read_periods: Sequence[tuple[datetime, datetime]] | None,
    state: SourceState,
    known: set[str],
    log: logging.Logger,
) -> int:
    """Fills the tables `records` (wanted), `elsewhere` (the others) and `refusals`."""
    records = _Spool(database, "records", _RECORDS)
    elsewhere = _Spool(
        database, "elsewhere", pa.schema([_RECORDS.field(n) for n in _RANKED_COLUMNS])
    )
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


_RANKED_COLUMNS = ("position", "id", "timestamp", "version", "file", "line")


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
            columns = zip(*self._rows, strict=True)
            arrays = [
                pa.array(column, field.type)
                for column, field in zip(columns, self._schema, strict=True)
            ]
            self._database.insert(self._table, pa.table(arrays, schema=self._schema))
        self._rows = []


def _with_contents(
    records: Iterable[pa.RecordBatch], contents: Contents
) -> Iterator[pa.RecordBatch]:
    """Completes records to `partition` and the columns of `artifacts.DOCUMENTS`, bit by bit."""
    for batch in records:
        start, rows, size = 0, [], 0
        for end, position in enumerate(batch["position"].to_pylist(), start=1):
            rows.append(contents.get(position))
            size += len(rows[-1][_CONTENTS.index("text")])
            if size >= _CHARACTERS_PER_BATCH or end == len(batch):
                columns = dict(zip(_CONTENTS, zip(*rows, strict=True), strict=True))
                piece = batch.slice(start, end - start)
                yield pa.record_batch(
                    {
                        name: columns[name] if name in columns else piece[name]
                        for name in ("partition", *files.DOCUMENTS.names)
                    }
                )
                start, rows, size = end, [], 0


def _quarantine_duplicates(database: Scratch) -> None:
    """Leaves one record an id: the latest, then the one with the greatest version.

    The rule looks at content only, so it does not depend on the order or names of files.
    """
    columns = ", ".join(_RANKED_COLUMNS)
    database.execute(
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
    database.execute(
        """
        INSERT INTO refusals
        SELECT r.partition, $reason, r.id, r.file, r.line,
               $detail || winner
        FROM losers JOIN records r USING (position)
        """,
        detail=files.DUPLICATE_DETAIL,
        reason=RefusalReason.duplicate_id.value,
    )


def _retain(
    database: Scratch,
    contents: Contents,
    artifacts: ArtifactStore,
    collection: str,
    partitions: Sequence[str],
    broken_files: list[str],
) -> int:
    """Keeps the known documents of files that cannot be read now: unreadable is not deleted."""
    database.create("known_documents", _RECORDS)
    for partition in partitions:
        key = files.documents_key(collection, partition)
        if artifacts.exists(key):
            with artifacts.reading(key) as previous:
                database.execute(
                    f"""
                    INSERT INTO known_documents
                    SELECT 0, $partition, {", ".join(field.name for field in _SHORT)}
                    FROM read_parquet($previous)
                    WHERE file IN (SELECT unnest($broken))
                    """,
                    partition=partition,
                    previous=str(previous),
                    broken=broken_files,
                )
    # Of a document that had moved, only the place where it was seen last.
    retained = database.changed(
        """
        INSERT INTO records
        SELECT -row_number() OVER (), * EXCLUDE (position) FROM (
            SELECT * FROM known_documents k
            WHERE NOT EXISTS (SELECT 1 FROM records r WHERE r.id = k.id)
              AND NOT EXISTS (SELECT 1 FROM elsewhere e WHERE e.id = k.id)
              AND NOT EXISTS (SELECT 1 FROM refusals f WHERE f.document_id = k.id)
            QUALIFY row_number() OVER (PARTITION BY id ORDER BY read_at DESC, partition DESC) = 1
        )
        """
    )
    for partition in partitions:
        positions = dict(
            database.rows(
                "SELECT id, position FROM records WHERE position < 0 AND partition = $partition",
                partition=partition,
            )
        )
        if positions:
            with artifacts.reading(files.documents_key(collection, partition)) as previous:
                for document in _rows_of(previous, ["id", *_CONTENTS]):
                    if (position := positions.get(document.pop("id"))) is not None:
                        contents.put(position, **document)
    return retained


def _rows_of(parquet: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(parquet) as file:
        for batch in file.iter_batches(batch_size=256, columns=columns):
            yield from batch.to_pylist()


def _replace_documents(
    database: Scratch,
    artifacts: ArtifactStore,
    collection: str,
    partition: str,
    rows: Iterable[pa.RecordBatch],
    origin: dict[str, str],
) -> dict[str, int]:
    key = files.documents_key(collection, partition)
    with artifacts.writing(key) as path:
        documents = files.write_parquet(path, files.DOCUMENTS.with_metadata(origin), rows)
        if not artifacts.exists(key):
            return _numbers(documents, added=documents)
        with artifacts.reading(key) as previous:
            added, changed, unchanged, deleted = database.row(
                """
                SELECT count(*) FILTER (old.id IS NULL),
                       count(*) FILTER (new.version <> old.version),
                       count(*) FILTER (new.version = old.version),
                       count(*) FILTER (new.id IS NULL)
                FROM read_parquet($new) new FULL JOIN read_parquet($old) old USING (id)
                """,
                new=str(path),
                old=str(previous),
            )
    return _numbers(documents, added, changed, unchanged, deleted)


def _numbers(
    documents: int, added: int = 0, changed: int = 0, unchanged: int = 0, deleted: int = 0
) -> dict[str, int]:
    return {
        "documents": documents,
        "added": added,
        "changed": changed,
        "unchanged": unchanged,
        "deleted": deleted,
    }


def _write_quarantine(
    database: Scratch,
    artifacts: ArtifactStore,
    collection: str,
    partition: str,
    *,
    has_refusals: bool,
) -> int:
    """Replaces the partition's quarantine; returns its length."""
    key = files.documents_quarantine_key(collection, partition)
    if not has_refusals and not artifacts.exists(key):
        return 0
    return _merge_quarantine(
        database,
        artifacts,
        key,
        "SELECT * EXCLUDE (partition) FROM refusals WHERE partition = $partition",
        {"partition": partition},
    )


def _write_unplaced_quarantine(
    database: Scratch,
    source: DocumentSource,
    artifacts: ArtifactStore,
    collection: str,
    read_periods: Sequence[tuple[datetime, datetime]] | None,
) -> None:
    """Replaces what is known of the files that were read, and of those that are gone."""
    key = files.documents_quarantine_key(collection, None)
    unread: set[str] = set()
    if read_periods is not None and artifacts.exists(key):
        # Only then is it worth to list the files of the other periods too.
        read = {file.path for file in source.files(read_periods)}
        unread = {file.path for file in source.files()} - read
    fresh = "SELECT * EXCLUDE (partition) FROM refusals WHERE partition IS NULL"
    _merge_quarantine(database, artifacts, key, fresh, {}, keep_files=unread)


def _forget_files_that_are_gone(
    source: DocumentSource, artifacts: ArtifactStore, collection: str
) -> None:
    """As `_write_unplaced_quarantine` where no file was read."""
    key = files.documents_quarantine_key(collection, None)
    if not artifacts.exists(key):
        return
    there = {file.path for file in source.files()}
    with artifacts.reading(key) as path:
        known = pq.read_table(path, schema=files.QUARANTINE)
    kept = known.filter(pa.array([file in there for file in known["file"].to_pylist()], pa.bool_()))
    if len(kept) < len(known):
        with artifacts.writing(key) as path:
            files.write_parquet(path, files.QUARANTINE, kept.to_batches())


def _merge_quarantine(
    database: Scratch,
    artifacts: ArtifactStore,
    key: str,
    fresh: str,
    parameters: dict[str, Any],
    *,
    keep_files: Iterable[str] = (),
) -> int:
    """Writes the fresh refusals; those that were there before count one attempt more.

    Known entries of `keep_files` stay as they are.
    """
    there_before = artifacts.exists(key)
    database.create("known", files.QUARANTINE)
    if there_before:
        with artifacts.reading(key) as previous:
            database.execute("INSERT INTO known SELECT * FROM read_parquet($p)", p=str(previous))
    database.execute(
        f"""
        CREATE OR REPLACE TABLE merged AS
        SELECT *, 1 + coalesce((
            SELECT max(attempts) FROM known
            WHERE known.reason = fresh.reason AND known.file = fresh.file
              AND known.line IS NOT DISTINCT FROM fresh.line
        ), 0) AS attempts
        FROM ({fresh}) fresh
        """,
        **parameters,
    )
    database.execute(
        "INSERT INTO merged SELECT * FROM known WHERE file IN (SELECT unnest($kept::VARCHAR[]))",
        kept=list(keep_files),
    )
    entries = database.row("SELECT count(*) FROM merged")[0]
    if entries or there_before:
        with artifacts.writing(key) as path:
            rows = database.stream("SELECT * FROM merged ORDER BY file, line, reason")
            files.write_parquet(path, files.QUARANTINE, rows)
    return entries
