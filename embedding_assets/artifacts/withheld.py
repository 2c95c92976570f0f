"""Deletions that are withheld, by partition, until the source or somebody says otherwise."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from embedding_assets.artifacts.keys import withheld_key, withheld_prefix
from embedding_assets.artifacts.parquet import write_parquet
from embedding_assets.artifacts.schemas import SOURCE_DIGEST, WITHHELD
from resources.artifact_stores.base import ArtifactStore

_ACCEPTED = "accepted"


@dataclass(frozen=True)
class Withheld:
    """What is withheld of one partition.

    Attributes:
        partition: its key.
        documents: how many documents stay though the source does not have them.
        source: the digest of what the source held then, as hex; see `SourceState`.
        accepted: when somebody agreed, so that the next run removes them; "" if nobody did.
    """

    partition: str
    documents: int
    source: str
    accepted: str


def write_withheld(
    artifacts: ArtifactStore,
    collection: str,
    partition: str,
    rows: Iterable[pa.RecordBatch],
    source: str,
    *,
    accepted: str = "",
) -> None:
    """Replaces what is withheld of a partition by rows of `WITHHELD`."""
    schema = WITHHELD.with_metadata({SOURCE_DIGEST: source, _ACCEPTED: accepted})
    with artifacts.writing(withheld_key(collection, partition)) as path:
        write_parquet(path, schema, rows)


def withheld_deletions(artifacts: ArtifactStore, collection: str) -> list[Withheld]:
    """Everything that is withheld of a collection, by partition."""
    prefix, found = withheld_prefix(collection), []
    for key in artifacts.list_keys(prefix, ".parquet"):
        partition = key.removeprefix(prefix).removesuffix(".parquet")
        with artifacts.reading(key) as path:
            footer = pq.read_metadata(path)
        marks = footer.metadata or {}
        source, accepted = (marks[name.encode()].decode() for name in (SOURCE_DIGEST, _ACCEPTED))
        found.append(Withheld(partition, footer.num_rows, source, accepted))
    return found


def withheld_ids(artifacts: ArtifactStore, collection: str, partition: str) -> set[str]:
    """The ids of the documents whose deletion is withheld in a partition."""
    with artifacts.reading(withheld_key(collection, partition)) as path:
        return {*pq.read_table(path, columns=["document_id"])["document_id"].to_pylist()}


def accept_deletions(artifacts: ArtifactStore, collection: str, withheld: Withheld) -> None:
    """Agrees to what is withheld of a partition, and to nothing else that may go later."""
    with artifacts.reading(withheld_key(collection, withheld.partition)) as path:
        rows = pq.read_table(path).to_batches()
    now = datetime.now(timezone.utc).isoformat()
    write_withheld(artifacts, collection, withheld.partition, rows, withheld.source, accepted=now)


def accepted_in(path: Path) -> bool:
    """Whether somebody agreed to the deletions of a file."""
    return bool((pq.read_metadata(path).metadata or {})[_ACCEPTED.encode()])


def told(withheld: Iterable[Withheld], collection: str) -> str:
    """What a sensor says of deletions that nobody agreed to; "" if there are none."""
    waiting = [one for one in withheld if not one.accepted]
    if not waiting:
        return ""
    documents = sum(one.documents for one in waiting)
    partitions = [one.partition for one in waiting]
    return (
        f"The deletion of {documents:,} documents of {as_range(partitions)} is withheld until the "
        f"source changes or somebody agrees: {how_to_agree(collection, partitions)}."
    )


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
