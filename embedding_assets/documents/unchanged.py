"""Whether a partition is as it was: what was read for it, against what the source holds now.

A partition's documents carry two marks of what they were made of. One follows from the listing of
the files alone: while it stays the same, an ingest need not open them. The other is the digest of
the records themselves: sensors compare it with what they have read.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

import pyarrow.parquet as pq

from embedding_assets.artifacts.keys import documents_key, documents_quarantine_key
from embedding_assets.artifacts.schemas import SOURCE_DIGEST, SOURCE_FILES, SOURCE_YIELDS
from embedding_assets.collection.settings import CollectionSettings
from embedding_assets.documents.numbers import partition_numbers
from embedding_assets.documents.source_state import (
    DIGEST_BYTES,
    SourceState,
    added,
    from_bytes,
)
from resources.artifact_stores.base import ArtifactStore
from resources.document_sources import SourceFile
from resources.document_sources.base import LINKED_FOLDER, Period
from resources.identity.content_hash import fingerprint

READER_VERSION = 3
"""To be raised when the same bytes become other documents."""

# A file that is written twice within one tick of the storage's clock looks the same both times.
# The coarsest clocks in use tick every two seconds (FAT).
_CLOCK_TICK = timedelta(seconds=2)


def reading_of(settings: CollectionSettings) -> str:
    """Equal as long as a file's records become the same documents of the same partitions."""
    irrelevant = {"path", "read_unchanged_files"}
    source = settings.source.model_dump(exclude=irrelevant, mode="json")
    partitions = settings.partitions.model_dump(exclude={"start"})
    read = repr((READER_VERSION, source, partitions))
    return fingerprint(read, 8).hex()


def signature(file: SourceFile, reading: str) -> str:
    """Equal as long as the storage says that the file is the same, and it is read the same way."""
    modified = f"{file.modified.timestamp():.6f}" if file.modified else ""
    return f"{reading} {file.size} {modified} {file.etag or ''} {file.problem or ''}"


def _digest_of(file: SourceFile, reading: str) -> int:
    return from_bytes(fingerprint(f"{file.path}\n{signature(file, reading)}", DIGEST_BYTES))


def listing_digest(listing: Iterable[SourceFile], settings: CollectionSettings) -> str:
    """One digest of all paths and signatures."""
    reading = reading_of(settings)
    digest = 0
    for file in listing:
        digest = added(digest, _digest_of(file, reading))
    return f"{digest:x}"


def listing_marks(
    listing: Iterable[SourceFile],
    partitions: Iterable[str],
    state: SourceState,
    settings: CollectionSettings,
    now: datetime,
) -> Mapping[str, str]:
    """Says from which files each partition is read, as one mark a partition.

    A partition whose mark is the one it had when it was read holds what it held then.

    Args:
        listing: the files that a run over the partitions reads.
        partitions: their keys.
        state: tells which files are read for which partition.
        settings: of the collection.
        now: a time before any of the files is opened.

    Returns:
        Marks by partition. None for a partition of which a file may change, or have changed, so
        that the storage would not tell.
    """
    reading = reading_of(settings)
    of_period: defaultdict[Period | None, int] = defaultdict(int)
    unsure: set[Period | None] = set()
    for file in listing:
        period = state.limited_to(file.path)
        if not _tells_changes(file, now):
            unsure.add(period)
        of_period[period] = added(of_period[period], _digest_of(file, reading))
    if None in unsure:
        return {}
    for_all = added(of_period.pop(None, 0), int(reading, 16))
    periods = sorted(period for period in of_period if period is not None)
    starts = [start for start, _ in periods]
    longest = max((end - start for start, end in periods), default=timedelta())
    found = {}
    for partition in partitions:
        read: list[Period] = []
        if periods and (own := state.period_of(partition)):
            first = bisect_left(starts, own[0] - longest)
            last = bisect_left(starts, own[1])
            read = [period for period in periods[first:last] if period[1] > own[0]]
        if unsure.isdisjoint(read):
            found[partition] = f"{added(for_all, *(of_period[period] for period in read)):x}"
    return found


def origin(digest: str, listing_mark: str | None, yields: str) -> dict[str, str]:
    """The schema metadata that tells what a partition's documents were made of."""
    files = {} if listing_mark is None else {SOURCE_FILES: listing_mark}
    return {SOURCE_DIGEST: digest, SOURCE_YIELDS: yields, **files}


def ingested_digest(artifacts: ArtifactStore, collection: str, partition: str) -> int | None:
    """What the source held of a partition when its documents were ingested; None: never were."""
    metadata = _metadata(artifacts, documents_key(collection, partition))
    digest = _marks_of(metadata).get(SOURCE_DIGEST) if metadata else None
    return from_bytes(bytes.fromhex(digest)) if digest else None


def unchanged_partitions(
    artifacts: ArtifactStore, collection: str, partitions: Iterable[str], marks: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The numbers of those partitions that hold what reading them again would give."""
    found = {}
    for partition in partitions:
        if partition not in marks:
            continue
        documents = _metadata(artifacts, documents_key(collection, partition))
        if documents is None or _marks_of(documents).get(SOURCE_FILES) != marks[partition]:
            continue
        refused = _metadata(artifacts, documents_quarantine_key(collection, partition))
        found[partition] = {
            **partition_numbers(documents.num_rows, unchanged=documents.num_rows),
            "quarantined": refused.num_rows if refused else 0,
        }
    return found


def _metadata(artifacts: ArtifactStore, key: str) -> pq.FileMetaData | None:
    """The footer of an artifact; None if there is none."""
    if not artifacts.exists(key):
        return None
    with artifacts.reading(key) as path:
        return pq.read_metadata(path)


def _marks_of(documents: pq.FileMetaData) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in (documents.metadata or {}).items()}


def _tells_changes(file: SourceFile, now: datetime) -> bool:
    """Whether any write to the file after `now` changes its signature."""
    if file.problem is not None:
        return file.problem == LINKED_FOLDER
    if file.status_changed is not None:
        return max(file.status_changed, file.modified or file.status_changed) < now - _CLOCK_TICK
    if file.etag is not None:
        return True
    return file.modified is not None and file.modified < now - _CLOCK_TICK
