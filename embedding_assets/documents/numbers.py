"""What `documents` tells of a run and of each of its partitions."""

from collections import Counter
from dataclasses import dataclass, field

ESSENTIAL = ("added", "changed", "unchanged", "deleted", "quarantined")


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
