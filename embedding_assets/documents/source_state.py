"""What a source holds of each partition, as one number a partition that tells any change."""

from collections import defaultdict
from functools import lru_cache

from embedding_assets.collection.partitions import partition_of, period_of_key
from embedding_assets.collection.settings import PartitionSettings
from resources.document_sources import Document, DocumentSource, Refusal, RefusalReason
from resources.document_sources.base import Period
from resources.identity.content_hash import document_version, fingerprint

UNPLACED = ""
"""Stands for the partition of a refused record, which has none."""
DIGEST_BYTES = 16
_MODULUS = 2 ** (8 * DIGEST_BYTES)


class SourceState:
    """Digests of records by partition.

    A digest is a sum of hashes, one a record: it does not depend on the order of records, and that
    of several files is the sum of theirs. The ingest stores it with what it made of the records, so
    that sensors can tell whether a partition is up to date without a look at its documents.

    Args:
        source: where the records come from.
        partitions: the collection's partitions.
    """

    def __init__(self, source: DocumentSource, partitions: PartitionSettings) -> None:
        self.digests: defaultdict[str, int] = defaultdict(int)
        self.partition_of = partition_of(partitions)
        self._by_time = partitions.by != "bucket"
        self._period_of_file = lru_cache(maxsize=1)(source.period_of)
        self._period_of_key = lru_cache(maxsize=1024)(period_of_key(partitions))

    def add(self, record: Document | Refusal) -> None:
        if isinstance(record, Refusal):
            self._add(UNPLACED, f"{record.file}\n{record.line}\n{record.reason.value}".encode())
            return
        partition = self.partition_of(record)
        if not self.is_read_for(partition, record.file):
            reason = RefusalReason.outside_file_period.value
            self._add(UNPLACED, f"{record.file}\n{record.line}\n{reason}".encode())
            return
        self.add_document(record, partition, version_of(record))

    def add_document(self, document: Document, partition: str, version: bytes) -> None:
        """As `add`, of a document whose partition and version are known already."""
        self._add(partition, f"{document.file}\n{document.id}\n".encode() + version)

    def hex(self, partition: str) -> str:
        """The digest of a partition, as files carry it."""
        return to_bytes(self.digests[partition]).hex()

    def is_read_for(self, partition: str, file: str) -> bool:
        """Whether a run of the partition reads the file, by the time in the file's name."""
        read_for = self.limited_to(file)
        if read_for is None:
            return True
        own = self.period_of(partition)
        return own is not None and own[0] < read_for[1] and read_for[0] < own[1]

    def limited_to(self, file: str) -> Period | None:
        """The period to whose partitions a file is limited; None: it is read for all."""
        return self._period_of_file(file) if self._by_time else None

    def period_of(self, partition: str) -> Period | None:
        """The period of a partition by time; None: no collection has such a partition."""
        try:
            return self._period_of_key(partition)
        except (ValueError, OverflowError):  # the years 1 to 999, and 9999
            return None

    def _add(self, partition: str, record: bytes) -> None:
        digest = from_bytes(fingerprint(record, DIGEST_BYTES))
        self.digests[partition] = added(self.digests[partition], digest)


def version_of(document: Document) -> bytes:
    """Equal if and only if everything that is stored of the document is equal."""
    time = document.timestamp.isoformat() if document.timestamp else ""
    return document_version(document.title, document.text, time, document.metadata)


def added(*digests: int) -> int:
    """The digest of several sets of records together."""
    return sum(digests) % _MODULUS


def to_bytes(digest: int) -> bytes:
    return digest.to_bytes(DIGEST_BYTES, "big")


def from_bytes(digest: bytes) -> int:
    return int.from_bytes(digest, "big")
