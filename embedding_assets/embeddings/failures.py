"""The chunks that could not be embedded, and their way into quarantine."""

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from embedding_assets.artifacts.keys import chunks_key, documents_key, embeddings_quarantine_key
from embedding_assets.artifacts.partition_files import PartitionFiles
from embedding_assets.artifacts.quarantine import (
    QuarantineFile,
    QuarantineReason,
    quarantine_reasons,
    read_quarantine,
    replace_quarantine,
)
from embedding_assets.artifacts.rows import to_arrow
from embedding_assets.artifacts.scratch import Scratch
from embedding_assets.embeddings.numbers import EmbeddingNumbers
from resources.artifact_stores.base import ArtifactStore

_ERROR_EXAMPLES = 3
_FAILED = pa.schema([(name, pa.string()) for name in ("partition", "chunk_id", "reason", "detail")])


class Failures:
    """The chunks of a group of partitions that could not be embedded, in whatever space.

    Tables:
        failed: each of them, with a reason and a sentence.
    """

    def __init__(self, collection: str, artifacts: ArtifactStore, database: Scratch) -> None:
        self._collection = collection
        self._artifacts = artifacts
        self._database = database
        database.create("failed", _FAILED)

    def note(
        self,
        batch: pa.RecordBatch,
        errors: Sequence[tuple[str, str] | None],
        numbers: Mapping[str, EmbeddingNumbers],
    ) -> None:
        """Counts failures among the numbers of their partitions.

        Args:
            batch: rows with a partition and a chunk id.
            errors: for each row None, or the reason code and a sentence.
            numbers: by partition; changed in place.
        """
        failed = [
            (partition, chunk_id, *error)
            for partition, chunk_id, error in zip(
                batch["partition"].to_pylist(), batch["chunk_id"].to_pylist(), errors, strict=True
            )
            if error is not None
        ]
        for partition, _, reason, why in failed:
            own = numbers[partition]
            own.errors += 1
            if len(own.error_examples) < _ERROR_EXAMPLES:
                own.error_examples.append(f"{reason}: {why}")
        if failed:
            self._database.insert("failed", to_arrow(failed, _FAILED))

    def write_quarantine(self, files: PartitionFiles) -> None:
        """Replaces a partition's quarantine by what failed now."""
        partition = files.partition
        key = embeddings_quarantine_key(self._collection, partition)
        (failures,) = self._database.row(
            "SELECT count(*) FROM failed WHERE partition = $partition", partition=partition
        )
        if not failures and not self._artifacts.exists(key):
            return
        with self._artifacts.reading(documents_key(self._collection, partition)) as documents:
            replace_quarantine(
                self._database,
                self._artifacts,
                key,
                """
                SELECT failed.reason, c.document_id, d.file, d.line,
                       'chunk ' || c.chunk_number || ': ' || failed.detail AS detail
                FROM failed JOIN read_parquet($chunks) f USING (chunk_id)
                JOIN read_parquet($chunks) c ON c.content_hash = f.content_hash
                LEFT JOIN read_parquet($documents) d ON d.id = c.document_id
                WHERE failed.partition = $partition
                """,
                same="known.document_id = fresh.document_id",
                partition=partition,
                chunks=files.paths[chunks_key],
                documents=str(documents),
            )


def reasons_of(
    artifacts: ArtifactStore, collection: str, partitions: Iterable[str]
) -> list[QuarantineReason]:
    """Why chunks of the partitions are in quarantine, with an example of each reason."""
    files = [
        QuarantineFile("embeddings", partition, embeddings_quarantine_key(collection, partition))
        for partition in partitions
    ]
    return quarantine_reasons(read_quarantine(artifacts, files))
