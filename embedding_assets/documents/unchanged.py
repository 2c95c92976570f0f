"""What the storage says of a source's files: whether they are the ones that were read before."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from hashlib import blake2b

from embedding_assets.collection.settings import CollectionSettings
from embedding_assets.documents.source_state import SourceState, added
from resources.document_sources import SourceFile
from resources.document_sources.base import Period

READER_VERSION = 1
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
    return blake2b(read.encode(), digest_size=8).hexdigest()


def signature(file: SourceFile, reading: str) -> str:
    """Equal as long as the storage says that the file is the same, and it is read the same way."""
    modified = f"{file.modified.timestamp():.6f}" if file.modified else ""
    return f"{reading} {file.size} {modified} {file.etag or ''} {file.problem or ''}"


def listing_digest(listing: Sequence[SourceFile], settings: CollectionSettings) -> str:
    """One digest of all paths and signatures."""
    reading = reading_of(settings)
    digest = blake2b(digest_size=16)
    for file in listing:
        digest.update(f"{file.path}\n{signature(file, reading)}\n".encode())
    return digest.hexdigest()


def marks(
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
        mark = f"{file.path}\n{signature(file, reading)}".encode()
        number = int.from_bytes(blake2b(mark, digest_size=16).digest(), "big")
        of_period[period] = added(of_period[period], number)
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


def _tells_changes(file: SourceFile, now: datetime) -> bool:
    """Whether any write to the file after `now` changes its signature."""
    if file.problem is not None:
        return False
    if file.status_changed is not None:
        return max(file.status_changed, file.modified or file.status_changed) < now - _CLOCK_TICK
    if file.etag is not None:
        return True
    return file.modified is not None and file.modified < now - _CLOCK_TICK
