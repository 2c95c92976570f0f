"""Deletions that are withheld, by partition, until the source or somebody says otherwise."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from embedding_assets.artifacts.keys import withheld_key, withheld_prefix
from embedding_assets.artifacts.parquet import write_parquet
from embedding_assets.artifacts.schemas import SOURCE_DIGEST, WITHHELD
from resources.artifact_stores.base import ArtifactStore
from resources.identity.content_hash import fingerprint

_ACCEPTED = "accepted"


@dataclass(frozen=True)
class Withheld:
    """What is withheld of one partition.

    Attributes:
        partition: its key.
        documents: how many documents stay though the source does not have them.
        accepted: whether somebody agreed, so that the next run removes them.
        source: the digest of what the source held then, as hex; see `SourceState`.
        mark: differs if anything else does.
    """

    partition: str
    documents: int
    accepted: bool
    source: str
    mark: str


def write_withheld(
    artifacts: ArtifactStore,
    collection: str,
    partition: str,
    rows: Iterable[pa.RecordBatch],
    source: str,
    *,
    accepted: bool = False,
) -> None:
    """Replaces what is withheld of a partition by rows of `WITHHELD`."""
    schema = WITHHELD.with_metadata(
        {SOURCE_DIGEST: source, **({_ACCEPTED: "yes"} if accepted else {})}
    )
    with artifacts.writing(withheld_key(collection, partition)) as path:
        write_parquet(path, schema, rows)


def withheld_deletions(artifacts: ArtifactStore, collection: str) -> list[Withheld]:
    """Everything that is withheld of a collection, by partition."""
    prefix, found = withheld_prefix(collection), []
    for key in artifacts.list_keys(prefix, ".parquet"):
        partition = key.removeprefix(prefix).removesuffix(".parquet")
        with artifacts.reading(key) as path:
            table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        accepted, source = _ACCEPTED.encode() in metadata, metadata[SOURCE_DIGEST.encode()].decode()
        ids = "\n".join(sorted(table["document_id"].to_pylist()))
        mark = fingerprint(f"{accepted} {source}\n{ids}", 8).hex()
        found.append(Withheld(partition, len(table), accepted, source, mark))
    return found


def accept_deletions(artifacts: ArtifactStore, collection: str, withheld: Withheld) -> None:
    """Agrees to what is withheld of a partition, and to nothing else that may go later."""
    with artifacts.reading(withheld_key(collection, withheld.partition)) as path:
        table = pq.read_table(path)
    rows = table.to_batches()
    write_withheld(artifacts, collection, withheld.partition, rows, withheld.source, accepted=True)


def accepted_in(path: Path) -> bool:
    """Whether somebody agreed to the deletions of a file."""
    return _ACCEPTED.encode() in (pq.read_schema(path).metadata or {})


def how_to_agree(collection: str, partitions: Iterable[str]) -> str:
    """What somebody does who wants the deletions."""
    return (
        f"`embedding-assets accept {collection} --partition {as_range(partitions)}` and another "
        "run; or a run "
        "with the config documents: {config: {accept_deletions: true}}, which the job "
        f"{accepting_job(collection)} has"
    )


def accepting_job(collection: str) -> str:
    """The name of the job that removes what a run of the update job would withhold."""
    return f"{collection}_accept_deletions"


def as_range(partitions: Iterable[str]) -> str:
    """Partitions as somebody asks for all of them, and perhaps for some between."""
    first, *others = partitions
    return f"{first}...{others[-1]}" if others else first
