"""Reads the source once and replaces the documents of the run's partitions."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embedding_assets.artifacts.keys import documents_key, documents_quarantine_key
from embedding_assets.artifacts.parquet import write_parquet
from embedding_assets.artifacts.quarantine import (
    QuarantineFile,
    QuarantineReason,
    quarantine_reasons,
    read_quarantine,
    replace_quarantine,
)
from embedding_assets.artifacts.schemas import DOCUMENTS, QUARANTINE
from embedding_assets.artifacts.scratch import Scratch, scratch
from embedding_assets.collection.collection import CollectionAssets
from embedding_assets.collection.partitions import periods
from embedding_assets.documents.deletions import DeletionGuard, WithheldDeletions
from embedding_assets.documents.numbers import (
    Ingested,
    SourceFiles,
    partition_numbers,
    too_much_refused,
)
from embedding_assets.documents.source_state import SourceState, version_of
from embedding_assets.documents.spool import Spool
from embedding_assets.documents.unchanged import listing_marks, origin, unchanged_partitions
from embedding_assets.runs.progress import Progress
from resources.artifact_stores.base import ArtifactStore
from resources.document_sources import (
    Document,
    DocumentSource,
    Refusal,
    RefusalReason,
    SourceFile,
)

_RECORDS_PER_LOOK = 256
_SAME_REFUSAL = """
    known.reason = fresh.reason AND known.file = fresh.file
    AND known.line IS NOT DISTINCT FROM fresh.line
"""


@dataclass
class Ingest:
    """Replaces the documents of those partitions whose files are not as they were.

    Attributes:
        collection: the collection.
        source: where documents come from; it is read once for all partitions.
        artifacts: where they go.
        partitions: the partitions to bring up to date.
        record: called with the numbers of partitions when their files are written.
        log: progress goes here.
        accept_deletions: whether all may go that the source does not have.
    """

    collection: CollectionAssets
    source: DocumentSource
    artifacts: ArtifactStore
    partitions: Sequence[str]
    record: Callable[[dict[str, dict[str, Any]]], None]
    log: logging.Logger
    accept_deletions: bool = False

    def __post_init__(self) -> None:
        self._name = self.collection.name
        self._state = SourceState(self.source, self.collection.settings.partitions)
        self._quarantined: dict[str, int] = {}

    def run(self) -> Ingested:
        """Returns the numbers of the whole run."""
        with (
            Progress(self.log, "partitions", len(self.partitions)) as progress,
            progress.doing("looking at the source's files"),
        ):
            listing = self.source.files(periods(self.collection.partitions, self.partitions))
            marks = listing_marks(
                listing,
                self.partitions,
                self._state,
                self.collection.settings,
                datetime.now(timezone.utc),
            )
            unread = self._unread(marks)
        if unread:
            self.log.info(
                f"{len(unread):,} of {len(self.partitions):,} partitions are up to date, for their "
                "files are as they were; source.read_unchanged_files: true reads them nevertheless."
            )
        to_read = [partition for partition in self.partitions if partition not in unread]
        files = {file.path for file in listing}
        if to_read:
            ingested = self._read(to_read, marks, listing)
        else:
            self._forget_files_that_are_gone()
            ingested = Ingested()
        reasons = self._reasons(files)
        return replace(
            ingested,
            unread_partitions=len(unread),
            reasons=reasons,
            of_no_partition=sum(one.records for one in reasons) - sum(self._quarantined.values()),
            source=SourceFiles.of(listing) if to_read and self._is_whole(files) else None,
        )

    def _is_whole(self, files: Iterable[str]) -> bool:
        """Whether the files are all of the source, whatever the periods of the run."""
        return all(self._state.limited_to(file) is None for file in files)

    def _unread(self, marks: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """The numbers of those partitions that need not be read, for nothing changed."""
        if self.collection.settings.source.read_unchanged_files:
            return {}
        unread = unchanged_partitions(self.artifacts, self._name, self.partitions, marks)
        self._record(unread)
        return unread

    def _record(self, finished: dict[str, dict[str, Any]]) -> None:
        self._quarantined |= {key: numbers["quarantined"] for key, numbers in finished.items()}
        self.record(finished)

    def _reasons(self, files: set[str]) -> list[QuarantineReason]:
        """What is in the quarantine of the partitions, and of their files as a whole."""
        placed = [partition for partition, entries in self._quarantined.items() if entries]
        quarantines = [
            QuarantineFile("documents", partition, documents_quarantine_key(self._name, partition))
            for partition in (None, *placed)
        ]
        return quarantine_reasons(
            read_quarantine(self.artifacts, quarantines, concerns=files.__contains__)
        )

    def _read(
        self, partitions: Sequence[str], marks: Mapping[str, str], listing: Sequence[SourceFile]
    ) -> Ingested:
        """Reads the source and replaces the documents of each of the partitions."""
        settings, files = self.collection.settings, {file.path for file in listing}
        with scratch() as database, closing(Spool(database)) as spool:
            read = self._fill(spool, partitions, listing)
            with Progress(self.log, "documents written", partitions=len(partitions)) as progress:
                with progress.doing("looking for duplicates and deletions"):
                    spool.refuse_duplicates()
                    spool.count_yields(self._is_whole(files))
                    broken_files = spool.broken_files()
                    refused_files = spool.refused_files(settings.deletions)
                    quarantined = spool.refused_by_reason()
                    keys = {p: documents_key(self._name, p) for p in partitions}
                    known = {p: key for p, key in keys.items() if self.artifacts.exists(key)}
                    guard = self._guard(database)
                    others = partial(self._others, partitions)
                    withheld = guard.find([*known], broken_files, files, others)
                    spool.retain(self.artifacts, {p: known[p] for p in withheld.partitions})
                    # First, and of each partition before its documents: they have the mark by which
                    # another run knows that nothing is left to do.
                    self._write_unplaced_quarantine(database, partitions)
                limit = settings.checks.max_refused_records
                hopeless = too_much_refused(read, quarantined, limit)
                doubtful_files = [*broken_files, *(one.file for one in refused_files)]

                def mark(partition: str) -> str | None:
                    """None: the next run reads again, and says again what is wrong."""
                    doubtful = hopeless or any(
                        self._state.is_read_for(partition, file) for file in doubtful_files
                    )
                    held = partition in withheld.partitions
                    return None if doubtful or held else marks.get(partition)

                stored = self._write(database, spool, partitions, guard, withheld, mark, progress)
            return Ingested(
                read,
                spool.count_elsewhere(),
                stored - withheld.documents,
                quarantined,
                withheld,
                broken_files,
                refused_files,
            )

    def _write(
        self,
        database: Scratch,
        spool: Spool,
        partitions: Sequence[str],
        guard: DeletionGuard,
        withheld: WithheldDeletions,
        mark: Callable[[str], str | None],
        progress: Progress,
    ) -> int:
        """Writes each partition's documents and quarantine; returns the number of documents."""
        yields, refused, stored = guard.yields(), spool.refused_by_partition(), 0
        for partition, rows in spool.documents(partitions):
            progress.begin()
            entries = self._write_quarantine(database, partition, partition in refused)
            held = withheld.partitions.get(partition, 0)
            digest = self._state.hex(partition)
            if held:
                guard.write(partition, digest)
            marked = origin(digest, mark(partition), yields.get(partition, "{}"))
            numbers = self._replace_documents(database, partition, rows, marked)
            if not held:
                guard.forget(partition)
            stored += numbers["documents"]
            changes = {name: n for name, n in numbers.items() if name != "documents"}
            progress.advance(numbers["documents"], **changes, errors=entries)
            told = {"deletions_withheld": held} if held else {}
            self._record({partition: {**numbers, **told, "quarantined": entries}})
        progress.advance(0, errors=refused.get(None, 0))
        progress.finish()
        return stored

    def _guard(self, database: Scratch) -> DeletionGuard:
        settings = self.collection.settings.deletions
        return DeletionGuard(database, self.artifacts, self._name, settings, self.accept_deletions)

    def _others(self, run: Sequence[str], files: Sequence[str]) -> list[str]:
        """Partitions outside the run that files which it did not read may have filled."""
        if self._is_whole(files):
            return []
        return sorted({*self.collection.partitions.get_partition_keys()} - {*run})

    def _fill(self, spool: Spool, partitions: Sequence[str], listing: Sequence[SourceFile]) -> int:
        """Moves all records of the source to the spool; returns their number."""
        wanted = set(partitions)
        known = set(self.collection.partitions.get_partition_keys())
        with Progress(self.log, "records read") as progress, progress.doing("reading the source"):
            records = self.source.read(periods(self.collection.partitions, partitions))
            for item in self._telling_share(records, listing, progress):
                progress.advance(errors=isinstance(item, Refusal))
                if isinstance(item, Refusal):
                    spool.refuse(item)
                    continue
                partition = self._state.partition_of(item)
                if refusal := self._misplaced(item, partition, known):
                    spool.refuse(refusal)
                    continue
                version = version_of(item)
                if partition in wanted:
                    self._state.add_document(item, partition, version)
                    spool.keep(partition, item, version)
                else:
                    spool.set_aside(item, version)
            spool.flush()
        return progress.done

    def _telling_share(
        self,
        records: Iterable[Document | Refusal],
        listing: Iterable[SourceFile],
        progress: Progress,
    ) -> Iterator[Document | Refusal]:
        """The records; of now and then one it is told which share of all bytes has been read."""
        sizes = {file.path: file.size or 0 for file in listing}
        every, before, current = max(1, sum(sizes.values())), 0, ""
        for number, record in enumerate(records):
            if record.file != current:
                before += sizes.get(current, 0)
                current = record.file
            if number % _RECORDS_PER_LOOK == 0:
                within = min(self.source.bytes_read(), sizes.get(current, 0))
                progress.reach((before + within) / every)
            yield record

    def _misplaced(self, document: Document, partition: str, known: set[str]) -> Refusal | None:
        """The refusal of a document that no run, or no run of its partition alone, would find."""
        if partition not in known:
            reason = RefusalReason.outside_partitions
            problem = "is before the first or after the last partition"
        elif not self._state.is_read_for(partition, document.file):
            reason = RefusalReason.outside_file_period
            problem = "is not in the period that the file's name tells"
        else:
            return None
        time = document.timestamp.isoformat() if document.timestamp else ""
        return Refusal(
            reason, document.id, document.file, document.line, f"its time {time} {problem}"
        )

    def _replace_documents(
        self,
        database: Scratch,
        partition: str,
        rows: Iterable[pa.RecordBatch],
        marked: Mapping[str, str],
    ) -> dict[str, int]:
        """Writes a partition's documents and counts how they differ from those before."""
        key = documents_key(self._name, partition)
        schema = DOCUMENTS.with_metadata({**marked})
        with self.artifacts.writing(key) as path:
            documents = write_parquet(path, schema, rows)
            if not self.artifacts.exists(key):
                return partition_numbers(documents, added=documents)
            with self.artifacts.reading(key) as previous:
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

    def _write_quarantine(self, database: Scratch, partition: str, has_refusals: bool) -> int:
        """Replaces the partition's quarantine; returns its length."""
        key = documents_quarantine_key(self._name, partition)
        if not has_refusals and not self.artifacts.exists(key):
            return 0
        fresh = "SELECT * EXCLUDE (partition) FROM refusals WHERE partition = $partition"
        return replace_quarantine(
            database, self.artifacts, key, fresh, same=_SAME_REFUSAL, partition=partition
        )

    def _write_unplaced_quarantine(self, database: Scratch, partitions: Sequence[str]) -> None:
        """Replaces what is known of the files that were read, and of those that are gone."""
        key = documents_quarantine_key(self._name, None)
        read_periods = periods(self.collection.partitions, partitions)
        unread: set[str] = set()
        if read_periods is not None and self.artifacts.exists(key):
            # Only then is it worth to list the files of the other periods too.
            read = {file.path for file in self.source.files(read_periods)}
            unread = {file.path for file in self.source.files()} - read
        fresh = "SELECT * EXCLUDE (partition) FROM refusals WHERE partition IS NULL"
        replace_quarantine(
            database, self.artifacts, key, fresh, same=_SAME_REFUSAL, keep_files=unread
        )

    def _forget_files_that_are_gone(self) -> None:
        """As `_write_unplaced_quarantine` where no file was read."""
        key = documents_quarantine_key(self._name, None)
        if not self.artifacts.exists(key):
            return
        there = {file.path for file in self.source.files()}
        with self.artifacts.reading(key) as path:
            known = pq.read_table(path, schema=QUARANTINE)
        still_there = [file in there for file in known["file"].to_pylist()]
        kept = known.filter(pa.array(still_there, pa.bool_()))
        if len(kept) < len(known):
            with self.artifacts.writing(key) as path:
                write_parquet(path, QUARANTINE, kept.to_batches())
