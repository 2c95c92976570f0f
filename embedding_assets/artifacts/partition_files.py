"""The files of partitions, where they can be read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pyarrow.parquet as pq

from embedding_assets.artifacts.parquet import uncompressed_bytes
from resources.artifact_stores.base import ArtifactStore

FileKey = Callable[[str, str], str]
"""A function of `artifacts.keys`: from a collection and a partition to the key of a file."""


@dataclass(frozen=True)
class PartitionFiles:
    """A partition, and the paths of some of its files by the functions that make their keys."""

    partition: str
    paths: Mapping[FileKey, str]

    def rows(self, key: FileKey) -> int:
        return pq.read_metadata(self.paths[key]).num_rows

    def size(self, *keys: FileKey) -> int:
        """About the bytes that all rows of these files take in memory."""
        return sum(uncompressed_bytes(self.paths[key]) for key in keys)


@contextmanager
def partition_files(
    artifacts: ArtifactStore,
    collection: str,
    partition: str,
    keys: Sequence[FileKey],
    optional: Sequence[FileKey] = (),
) -> Iterator[PartitionFiles]:
    """Opens files of a partition for reading.

    Args:
        artifacts: where they are.
        collection: the collection's name.
        partition: the partition's key.
        keys: of files that must be there.
        optional: of files that are left out if they are not there.

    Raises:
        ArtifactNotFoundError: a file that must be there is not.
    """
    there = [key for key in optional if artifacts.exists(key(collection, partition))]
    with ExitStack() as stack:
        yield PartitionFiles(
            partition,
            {
                key: str(stack.enter_context(artifacts.reading(key(collection, partition))))
                for key in (*keys, *there)
            },
        )


def paths(group: Sequence[PartitionFiles], key: FileKey) -> list[str]:
    """Where one kind of file can be read, for those partitions that have it."""
    return [files.paths[key] for files in group if key in files.paths]


def partition_by_path(group: Sequence[PartitionFiles]) -> dict[str, str]:
    """Tells `Scratch.name_partitions` whose files these are."""
    return {path: files.partition for files in group for path in files.paths.values()}
