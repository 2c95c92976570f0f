"""What `documents` tells of a run and of each of its partitions."""

from collections import Counter
from dataclasses import dataclass, field

from embedding_assets.documents.deletions import WithheldDeletions
from embedding_assets.documents.spool import RefusedFile

ESSENTIAL = ("added", "changed", "unchanged", "deleted", "quarantined", "deletions_withheld")


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
    """

    read: int = 0
    elsewhere: int = 0
    stored: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    withheld: WithheldDeletions = field(default_factory=WithheldDeletions)
    broken_files: list[str] = field(default_factory=list)
    refused_files: list[RefusedFile] = field(default_factory=list)
    unread_partitions: int = 0


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
