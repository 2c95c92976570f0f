"""What `documents` tells of a run and of each of its partitions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from embedding_assets.artifacts.quarantine import QuarantineReason
from embedding_assets.documents.deletions import WithheldDeletions
from embedding_assets.documents.spool import SOUND_RECORDS, RefusedFile
from resources.document_sources.base import SourceFile

ESSENTIAL = ("added", "changed", "unchanged", "deleted", "quarantined", "deletions_withheld")


@dataclass(frozen=True)
class SourceFiles:
    """All files of a source, as its storage lists them.

    Attributes:
        files: how many.
        bytes: of all whose size the storage tells.
        newest: the time of the last modification that it tells.
    """

    files: int
    bytes: int
    newest: datetime | None

    @staticmethod
    def of(listing: Sequence[SourceFile]) -> "SourceFiles":
        times = [file.modified for file in listing if file.modified is not None]
        return SourceFiles(
            len(listing), sum(file.size or 0 for file in listing), max(times, default=None)
        )


@dataclass
class Ingested:
    """What became of the records that the source yielded.

    Attributes:
        read: records and refusals that the source yielded.
        elsewhere: valid documents of partitions that were not to be read.
        stored: documents written, withheld ones not counted.
        quarantined: refused records by reason.
        withheld: documents of last time that stay though the source does not have them now.
        broken_files: files that could not be read, or not to their end.
        refused_files: files of which more was refused than `deletions.max_refused_share`.
        unread_partitions: partitions left as they are because their files are as they were.
        reasons: what is in the quarantine of these partitions and of the files that are read for
            them, those included that were left as they are.
        of_no_partition: how many of those entries belong to no partition.
        source: the files of the source; None: nothing of it was read, or only the files of some
            periods were listed.
    """

    read: int = 0
    elsewhere: int = 0
    stored: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    withheld: WithheldDeletions = field(default_factory=WithheldDeletions)
    broken_files: list[str] = field(default_factory=list)
    refused_files: list[RefusedFile] = field(default_factory=list)
    unread_partitions: int = 0
    reasons: list[QuarantineReason] = field(default_factory=list)
    of_no_partition: int = 0
    source: SourceFiles | None = None

    @property
    def unusable(self) -> int:
        """Refused records that speak against their source."""
        return unusable(self.quarantined)

    def too_much_refused(self, share: float) -> bool:
        return too_much_refused(self.read, self.quarantined, share)


def unusable(quarantined: Mapping[str, int]) -> int:
    return sum(n for reason, n in quarantined.items() if reason not in SOUND_RECORDS)


def too_much_refused(read: int, quarantined: Mapping[str, int], share: float) -> bool:
    """Whether more than a share of the records that were read is unusable, or nothing is left."""
    bad = unusable(quarantined)
    much = bad > share * read and (bad > 1 or read == 1)
    return much or read == sum(quarantined.values()) > 1


def partition_numbers(
    documents: int, added: int = 0, changed: int = 0, unchanged: int = 0, deleted: int = 0
) -> dict[str, int]:
    return {
        "documents": documents,
        "added": added,
        "changed": changed,
        "unchanged": unchanged,
        "deleted": deleted,
    }
