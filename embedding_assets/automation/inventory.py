"""What a sensor knows of the source: each file's signature, and what it holds of each partition."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from sys import intern

import pyarrow as pa
import pyarrow.parquet as pq

from embedding_assets.artifacts.parquet import write_parquet
from embedding_assets.artifacts.rows import to_arrow
from embedding_assets.collection.settings import CollectionSettings, PartitionSettings
from embedding_assets.documents.source_state import SourceState, added, from_bytes, to_bytes
from embedding_assets.documents.unchanged import reading_of, signature
from resources.artifact_stores.base import ArtifactStore
from resources.document_sources import DocumentSource, Refusal, RefusalReason, SourceFile
from resources.identity.content_hash import fingerprint

EVERY_PARTITION = "*"
"""Stands for the partition of a file that takes too long to look into."""
_UNSURE = "?"
"""Begins the signature of a file that could not be read: it is read again at the next tick."""
_RECORDS_BETWEEN_LOOKS = 1_000
_ROWS_PER_BATCH = 4_096

_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("signature", pa.string()),
        ("partition", pa.string()),  # null: the file holds nothing
        ("digest", pa.binary()),
    ]
)
_Contents = dict[str, int]
"""Digest by partition."""


@dataclass
class Inventory:
    """Signatures of files and digests of their contents; one row for each (file, partition).

    It is kept as Parquet in the artifact store, for it grows with the number of files; a sensor's
    cursor, a row in Dagster's database, holds only the name of the version that it has acted on.
    """

    signatures: dict[str, str] = field(default_factory=dict)
    contents: dict[str, _Contents] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)
    """Partitions that have changed, but whose runs are not requested yet."""
    requested: _Contents = field(default_factory=dict)
    """What of a partition was to be ingested by the last run that was requested for it."""

    def partitions(self) -> _Contents:
        """The digest of what all files together hold of each partition."""
        total: _Contents = defaultdict(int)
        for contents in self.contents.values():
            for partition, digest in contents.items():
                total[partition] = added(total[partition], digest)
        return dict(total)

    @property
    def has_unsure_files(self) -> bool:
        return any(mark.startswith(_UNSURE) for mark in self.signatures.values())

    @staticmethod
    def load(artifacts: ArtifactStore, key: str) -> "Inventory | None":
        if not artifacts.exists(key):
            return None
        inventory = Inventory()
        with artifacts.reading(key) as path, pq.ParquetFile(path) as parquet:
            metadata = parquet.schema_arrow.metadata or {}
            inventory.pending = metadata[b"pending"].decode().split()
            requested = metadata.get(b"requested", b"").decode().split()
            for partition, digest in zip(requested[::2], requested[1::2], strict=True):
                inventory.requested[partition] = int(digest, 16)
            for batch in parquet.iter_batches(batch_size=_ROWS_PER_BATCH):
                for file, signature, partition, digest in zip(
                    *(column.to_pylist() for column in batch.columns), strict=True
                ):
                    inventory.signatures[file] = signature
                    contents = inventory.contents.setdefault(file, {})
                    if partition is not None:
                        contents[intern(partition)] = from_bytes(digest)
        return inventory

    def save(self, artifacts: ArtifactStore, key: str) -> None:
        rows = (
            (file, signature, partition, None if digest is None else to_bytes(digest))
            for file, signature in self.signatures.items()
            for partition, digest in (self.contents[file] or _NOTHING).items()
        )

        def batches() -> Iterator[pa.RecordBatch]:
            while some := list(islice(rows, _ROWS_PER_BATCH)):
                yield to_arrow(some, _SCHEMA)

        requested = (f"{partition} {digest:x}" for partition, digest in self.requested.items())
        schema = _SCHEMA.with_metadata(
            {"pending": "\n".join(self.pending), "requested": "\n".join(requested)}
        )
        with artifacts.writing(key) as path:
            write_parquet(path, schema, batches())


_NOTHING: dict[str | None, int | None] = {None: None}


@dataclass
class Changes:
    """What an update of an inventory has found.

    Attributes:
        new, changed, deleted: paths of files that were looked into.
        unread: files left for the next tick.
        partitions: those of which some file holds something else than before; `UNPLACED` and
            `EVERY_PARTITION` among them.
    """

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    unread: int = 0
    partitions: set[str] = field(default_factory=set)

    @property
    def files(self) -> list[str]:
        return [*self.new, *self.changed, *self.deleted]

    def __str__(self) -> str:
        return (
            f"{len(self.new):,} new, {len(self.changed):,} changed and "
            f"{len(self.deleted):,} deleted files"
        )


def update(
    inventory: Inventory,
    source: DocumentSource,
    listing: Iterable[SourceFile],
    settings: CollectionSettings,
    seconds: float,
) -> Changes:
    """Brings an inventory in line with the source; only new and changed files are opened.

    Args:
        inventory: changed in place.
        source: where to read.
        listing: all files of the source.
        settings: of the collection.
        seconds: when these are over, files that were not looked into stay as they were known. The
            first file is always dealt with: if it alone takes longer, it counts as holding
            something of `EVERY_PARTITION`.
    """
    changes = Changes()
    reading = reading_of(settings)
    deadline = time.monotonic() + seconds
    present = {}
    for file in listing:
        present[file.path] = None
        mark = signature(file, reading)
        known = inventory.signatures.get(file.path)
        if mark == known:
            continue
        if time.monotonic() > deadline and changes.files:
            changes.unread += 1
            continue
        contents, sure = _look_into(source, file, settings.partitions, deadline, changes)
        if contents is None:
            changes.unread += 1
            continue
        mark = mark if sure else _UNSURE + mark
        before = inventory.contents.get(file.path, {})
        if mark != known or contents != before:
            (changes.new if known is None else changes.changed).append(file.path)
        changes.partitions |= _differing(before, contents)
        inventory.signatures[file.path] = mark
        inventory.contents[file.path] = contents
    for path in [path for path in inventory.signatures if path not in present]:
        changes.deleted.append(path)
        changes.partitions |= set(inventory.contents[path])
        del inventory.signatures[path], inventory.contents[path]
    return changes


def _look_into(
    source: DocumentSource,
    file: SourceFile,
    partitions: PartitionSettings,
    deadline: float,
    changes: Changes,
) -> tuple[_Contents | None, bool]:
    """The file's digests, and whether it could be read; None if there was no time."""
    state = SourceState(source, partitions)
    sure = True
    for number, record in enumerate(source.read_file(file), start=1):
        if isinstance(record, Refusal) and record.reason == RefusalReason.broken_file:
            sure = False
        state.add(record)
        if number % _RECORDS_BETWEEN_LOOKS == 0 and time.monotonic() > deadline:
            if changes.files:
                return None, True
            mark = fingerprint(signature(file, ""))
            return {EVERY_PARTITION: from_bytes(mark)}, True
    return dict(state.digests), sure


def _differing(before: _Contents, now: _Contents) -> set[str]:
    return {p for p in {*before, *now} if before.get(p) != now.get(p)}
