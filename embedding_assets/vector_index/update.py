"""Brings the rows of partitions in line with their documents, chunks and vectors."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

import pyarrow.parquet as pq

from embedding_assets.artifacts.keys import (
    chunks_key,
    documents_key,
    embeddings_quarantine_key,
    fallback_vectors_key,
    vectors_key,
)
from embedding_assets.artifacts.partition_files import PartitionFiles, partition_files
from embedding_assets.artifacts.scratch import Scratch
from embedding_assets.collection.collection import CollectionAssets, CollectionResources
from embedding_assets.runs.grouping import group_small
from embedding_assets.vector_index.difference import Difference, Removals
from embedding_assets.vector_index.numbers import Completeness, IndexNumbers, Integrity
from embedding_assets.vector_index.ownership import Ownership
from embedding_assets.vector_index.stored_rows import RowSet, StoredRows
from resources.errors import InvalidInputError
from resources.identity.embedding_space import EmbeddingSpace
from resources.vector_stores.base import row_schema


def replace_rows(
    updates: Sequence["IndexUpdate"], group: Sequence[PartitionFiles]
) -> dict[str, IndexNumbers]:
    """Rows go into one table before they go out of the other: a crash in between loses none."""
    first, *others = updates
    numbers: dict[str, IndexNumbers] = {}
    for towards_fallback, part in groupby(group, lambda files: fallback_vectors_key in files.paths):
        part = list(part)
        replaced = {
            update: update.replace(part)
            for update in (reversed(updates) if towards_fallback else updates)
        }
        numbers |= replaced[first]
        for partition in replaced[first] if others else ():
            numbers[partition].fallback_rows = sum(
                replaced[update][partition].rows for update in others
            )
    return numbers


class IndexUpdate:
    """Brings one table's rows of some partitions in line with their documents, chunks and vectors.

    The artifacts say what ought to be in the store; only the difference is written.

    Tables:
        expected: the identity of each row that ought to be there, if others were found.
    """

    def __init__(
        self,
        collection: CollectionAssets,
        resources: CollectionResources,
        space_rank: int,
        database: Scratch,
    ) -> None:
        """Makes the update of one table.

        Args:
            collection: the collection.
            resources: its artifacts and its store.
            space_rank: which of its embedders' spaces the table is for; the first is 0.
            database: where differences are found; for this object alone.
        """
        self._name = collection.name
        self._artifacts = resources.artifacts
        self._store = resources.store
        self._database = database
        self._space_rank = space_rank
        self._vectors_keys = (vectors_key, fallback_vectors_key)[: len(resources.embedders)]
        self.space = resources.embedders[space_rank].space
        self._ownership = Ownership(collection, resources, database)
        self._stored = StoredRows(self._name, self.space, self._store, database)
        self._difference = Difference(self.space, space_rank, self._vectors_keys, database)
        self.partitions: Sequence[str] = ()
        self._expected, self._gaps, self._documents_missing = RowSet(), 0, 0

    def begin(self, partitions: Sequence[str]) -> None:
        """Finds the rows that are there, and documents that more than one partition claims."""
        self.partitions = partitions
        self._expected, self._gaps, self._documents_missing = RowSet(), 0, 0
        self._store.create_table(self._name, self.space)
        self._ownership.find(partitions)
        self._stored.load(partitions, self._ownership)

    def groups(self) -> Iterator[list[PartitionFiles]]:
        """Opens what `replace` needs of the partitions, for all spaces."""
        first, *others = self._vectors_keys
        needed = (documents_key, chunks_key, first)
        return group_small(
            self.partitions,
            lambda partition: partition_files(
                self._artifacts,
                self._name,
                partition,
                needed,
                optional=(*others, embeddings_quarantine_key),
            ),
            lambda files: files.size(documents_key, chunks_key),
        )

    def replace(self, group: Sequence[PartitionFiles]) -> dict[str, IndexNumbers]:
        """Writes the difference for some partitions in one commit, if there is any."""
        difference = self._difference
        for files in group:
            self._check_space(files)
        wanted = difference.find_wanted(group)
        self._expected += wanted
        self._gaps += difference.count_gaps("wanted")
        if self._space_rank == 0:
            self._documents_missing += difference.count_unexplained(group)
        rows, withheld = difference.by_partition("wanted"), difference.by_partition("withheld")
        written: Counter[str] = Counter()
        removals = Removals({}, Counter())
        if not difference.is_stored(group, wanted):
            removals = difference.find_new_and_settled(group)
            written = difference.by_partition("new_rows")
            if written or removals.partitions:
                self._commit(group, removals)
            self._stored.forget_settled()
        return {
            files.partition: IndexNumbers(
                rows=rows[files.partition],
                rows_written=written[files.partition],
                rows_removed=removals.by_partition[files.partition],
                documents_withheld=withheld[files.partition],
            )
            for files in group
        }

    def _commit(self, group: Sequence[PartitionFiles], removals: Removals) -> None:
        schema, rows = row_schema(self.space), self._difference.new_rows(group)
        # The store holds batches several times over while it compares them with its own.
        with self._database.spooled(schema, rows) as reader:
            self._difference.free()
            self._store.replace(
                self._name,
                self.space,
                reader,
                remove_chunk_ids=[*removals.partitions],
                # Not where another run has put a document that moved, in the meantime.
                remove_from_partitions=sorted({*removals.partitions.values()}),
            )

    def repair(self) -> Integrity:
        """Reads the rows back; damaged ones are written again, and then looked at once more."""
        found = self._stored.damage(self.partitions)
        if not found.chunk_ids:
            return Integrity(found, found)
        self.begin(self.partitions)
        self._stored.forget(found.chunk_ids)
        for group in self.groups():
            self.replace(group)
        return Integrity(found, self._stored.damage(self.partitions))

    def completeness(self) -> Completeness:
        """Reads the partitions back from the store and compares them with what ought to be."""
        # Nearly always. Tables of all the rows, which tell what is wrong, are not made for that.
        if self._stored.read_back(self.partitions) == self._expected:
            return Completeness(self._documents_missing, 0, 0, self._gaps)
        self._stored.load_found(self.partitions)
        self._database.execute("CREATE OR REPLACE TABLE expected AS FROM found WHERE false")
        for group in self.groups():
            self._difference.find_wanted(group)
            self._database.execute("INSERT INTO expected FROM wanted")
        missing, surplus = self._database.row(
            """
            SELECT count(*) FILTER (found.chunk_id IS NULL),
                   count(*) FILTER (expected.chunk_id IS NULL)
            FROM expected FULL JOIN found USING (chunk_id, document_version, content_hash)
            """
        )
        gaps = self._difference.count_gaps("found")
        return Completeness(self._documents_missing, missing, surplus, gaps)

    def _check_space(self, files: PartitionFiles) -> None:
        vectors = files.paths.get(self._vectors_keys[self._space_rank])
        found = vectors and (pq.read_schema(vectors).metadata or {}).get(b"space", b"").decode()
        if found and EmbeddingSpace.from_json(found).id != self.space.id:
            raise InvalidInputError(
                f"The vectors of partition '{files.partition}' of '{self._name}' were made in "
                f"another embedding space ({EmbeddingSpace.from_json(found).model}) than the "
                f"embedder's ({self.space.model}, {self.space.id}). "
                f"Materialize '{self._name}/embeddings' for this partition again."
            )
