"""Reads the source once and replaces the documents of the run's partitions."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedding_assets.artifacts.keys import documents_key, documents_quarantine_key
from embedding_assets.artifacts.parquet import grouped_by_partition, write_parquet
from embedding_assets.artifacts.quarantine import DUPLICATE_DETAIL, replace_quarantine
from embedding_assets.artifacts.schemas import DOCUMENTS, QUARANTINE, SOURCE_DIGEST, SOURCE_FILES
from embedding_assets.artifacts.scratch import Scratch, scratch
from embedding_assets.collection.collection import Collection
from embedding_assets.collection.partitions import periods
from embedding_assets.documents import unchanged as source_files
from embedding_assets.documents.numbers import Ingested, partition_numbers
from embedding_assets.documents.source_state import SourceState, to_bytes
from embedding_assets.documents.spool import (
    BODY_COLUMNS,
    RANKED_COLUMNS,
    RECORDS,
    SHORT_FIELDS,
    DocumentBodies,
    spool_records,
    with_bodies,
)
from embedding_assets.runs.progress import Progress
from resources.artifact_stores.base import ArtifactStore
from resources.document_sources import DocumentSource, RefusalReason


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
        key = documents_key(collection, partition)
        if partition not in marks or not artifacts.exists(key):
            continue
        with artifacts.reading(key) as path:
            metadata = pq.read_metadata(path)
        if (metadata.metadata or {}).get(SOURCE_FILES.encode()) != marks[partition].encode():
            continue
        quarantined = 0
        key = documents_quarantine_key(collection, partition)
        if artifacts.exists(key):
            with artifacts.reading(key) as path:
                quarantined = pq.read_metadata(path).num_rows
        found[partition] = {
            **partition_numbers(metadata.num_rows, unchanged=metadata.num_rows),
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
    with scratch() as database, closing(DocumentBodies(database.folder)) as contents:
        read = spool_records(
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
        groups = grouped_by_partition(
            with_bodies(
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
            origin = {SOURCE_DIGEST: to_bytes(state.digests[partition]).hex()}
            broken = any(state.is_read_for(partition, file) for file in broken_files)
            if partition in marks and not broken:
                origin[SOURCE_FILES] = marks[partition]
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


def _quarantine_duplicates(database: Scratch) -> None:
    """Leaves one record an id: the latest, then the one with the greatest version.

    The rule looks at content only, so it does not depend on the order or names of files.
    """
    columns = ", ".join(RANKED_COLUMNS)
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
        detail=DUPLICATE_DETAIL,
        reason=RefusalReason.duplicate_id.value,
    )


def _retain(
    database: Scratch,
    contents: DocumentBodies,
    artifacts: ArtifactStore,
    collection: str,
    partitions: Sequence[str],
    broken_files: list[str],
) -> int:
    """Keeps the known documents of files that cannot be read now: unreadable is not deleted."""
    database.create("known_documents", RECORDS)
    for partition in partitions:
        key = documents_key(collection, partition)
        if artifacts.exists(key):
            with artifacts.reading(key) as previous:
                database.execute(
                    f"""
                    INSERT INTO known_documents
                    SELECT 0, $partition, {", ".join(field.name for field in SHORT_FIELDS)}
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
            with artifacts.reading(documents_key(collection, partition)) as previous:
                for document in _rows_of(previous, ["id", *BODY_COLUMNS]):
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
    key = documents_key(collection, partition)
    with artifacts.writing(key) as path:
        documents = write_parquet(path, DOCUMENTS.with_metadata(origin), rows)
        if not artifacts.exists(key):
            return partition_numbers(documents, added=documents)
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
    return partition_numbers(documents, added, changed, unchanged, deleted)


def _write_quarantine(
    database: Scratch,
    artifacts: ArtifactStore,
    collection: str,
    partition: str,
    *,
    has_refusals: bool,
) -> int:
    """Replaces the partition's quarantine; returns its length."""
    key = documents_quarantine_key(collection, partition)
    if not has_refusals and not artifacts.exists(key):
        return 0
    return replace_quarantine(
        database,
        artifacts,
        key,
        "SELECT * EXCLUDE (partition) FROM refusals WHERE partition = $partition",
        same=_SAME_REFUSAL,
        partition=partition,
    )


_SAME_REFUSAL = """
    known.reason = fresh.reason AND known.file = fresh.file
    AND known.line IS NOT DISTINCT FROM fresh.line
"""


def _write_unplaced_quarantine(
    database: Scratch,
    source: DocumentSource,
    artifacts: ArtifactStore,
    collection: str,
    read_periods: Sequence[tuple[datetime, datetime]] | None,
) -> None:
    """Replaces what is known of the files that were read, and of those that are gone."""
    key = documents_quarantine_key(collection, None)
    unread: set[str] = set()
    if read_periods is not None and artifacts.exists(key):
        # Only then is it worth to list the files of the other periods too.
        read = {file.path for file in source.files(read_periods)}
        unread = {file.path for file in source.files()} - read
    fresh = "SELECT * EXCLUDE (partition) FROM refusals WHERE partition IS NULL"
    replace_quarantine(database, artifacts, key, fresh, same=_SAME_REFUSAL, keep_files=unread)


def _forget_files_that_are_gone(
    source: DocumentSource, artifacts: ArtifactStore, collection: str
) -> None:
    """As `_write_unplaced_quarantine` where no file was read."""
    key = documents_quarantine_key(collection, None)
    if not artifacts.exists(key):
        return
    there = {file.path for file in source.files()}
    with artifacts.reading(key) as path:
        known = pq.read_table(path, schema=QUARANTINE)
    kept = known.filter(pa.array([file in there for file in known["file"].to_pylist()], pa.bool_()))
    if len(kept) < len(known):
        with artifacts.writing(key) as path:
            write_parquet(path, QUARANTINE, kept.to_batches())
