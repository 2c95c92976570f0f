"""The rows that the store holds: which, how many, and whether they are as they were written."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from embedding_assets.artifacts.scratch import Scratch
from embedding_assets.vector_index.numbers import Damage
from embedding_assets.vector_index.ownership import Ownership
from resources.caches.vectors import valid_vectors
from resources.identity.content_hash import content_hash
from resources.identity.embedding_space import EmbeddingSpace
from resources.vector_stores.base import ROW_IDENTITY, VectorStore, row_schema


@dataclass(frozen=True)
class RowSet:
    """Rows in any order: two sets are equal if and, but for one chance in 2^64, only if these are.

    Attributes:
        rows: how many.
        digest: the sum of the hashes of their identities.
    """

    rows: int = 0
    digest: int = 0

    def __add__(self, other: "RowSet") -> "RowSet":
        return RowSet(self.rows + other.rows, self.digest + other.digest)


def row_set(table: str) -> str:
    """SQL: the arguments of `RowSet` for a table's rows."""
    return f"SELECT count(*), coalesce(sum(hash({', '.join(ROW_IDENTITY)})), 0) FROM {table}"


class StoredRows:
    """What one table of the store holds of the partitions of a run.

    Tables:
        stored: the identity of each row about which no commit has decided yet, those elsewhere of
            documents of the run included; and the `heir` of a row under a former partition.
        found: the identities of the rows that are there now, if they are not those expected.
    """

    def __init__(
        self, collection: str, space: EmbeddingSpace, store: VectorStore, database: Scratch
    ) -> None:
        self._collection = collection
        self._space = space
        self._store = store
        self._database = database
        self._identity = pa.schema([row_schema(space).field(name) for name in ROW_IDENTITY])

    def load(self, partitions: Sequence[str], ownership: Ownership) -> None:
        """Fills `stored` for a run over some partitions."""
        self._database.create("stored", self._identity.append(pa.field("heir", pa.string())))
        self._insert("stored", partitions)
        if ownership.former:
            for rows in self._scan([*ROW_IDENTITY, "timestamp"], ownership.former):
                heirs = pa.array(ownership.heirs(rows), pa.string())
                rows = rows.select(ROW_IDENTITY).append_column("heir", heirs)
                self._database.insert("stored", rows.filter(heirs.is_valid()))
        if ownership.others:
            self._insert(
                "stored",
                ownership.others,
                "SEMI JOIN elsewhere USING (document_id) ANTI JOIN stored USING (chunk_id)",
            )

    def load_found(self, partitions: Sequence[str]) -> None:
        """Fills `found` with what is under some partitions now."""
        self._database.create("found", self._identity)
        self._insert("found", partitions)

    def forget_settled(self) -> None:
        """Takes out what is in the table `settled` of a `Difference`.

        Kept, these rows would be removed once more with the partition that a document moved away
        from.
        """
        self._database.execute(
            "DELETE FROM stored WHERE chunk_id IN (SELECT chunk_id FROM settled)"
        )

    def forget(self, chunk_ids: Sequence[str]) -> None:
        """Lets rows count as not stored, so that they are written again."""
        self._database.execute(
            "DELETE FROM stored WHERE chunk_id IN (SELECT unnest($chunk_ids::VARCHAR[]))",
            chunk_ids=chunk_ids,
        )

    def read_back(self, partitions: Sequence[str]) -> RowSet:
        """What is under some partitions now; no table is made of it."""
        found = RowSet()
        for rows in self._scan(ROW_IDENTITY, partitions):
            found += RowSet(*self._database.row_over(rows, row_set("incoming")))
        return found

    def damage(self, partitions: Sequence[str]) -> Damage:
        """Reads rows back, with text and vector."""
        number, bad_vectors, wrong_keys = 0, [], []
        columns = ["chunk_id", "content_hash", "context", "text", "vector"]
        for rows in self._scan(columns, partitions):
            number += len(rows)
            chunk_ids = rows["chunk_id"]
            sound = valid_vectors(self._space, self._matrix(rows["vector"]))
            bad_vectors += chunk_ids.filter(pa.array(~sound)).to_pylist()
            wrong_keys += [
                chunk_id
                for chunk_id, key, context, text in zip(
                    *(rows[name].to_pylist() for name in columns[:4]), strict=True
                )
                if key != content_hash((context or "") + (text or ""))
            ]
        return Damage(number, bad_vectors, wrong_keys)

    def _matrix(self, vectors: pa.FixedSizeListArray) -> np.ndarray:
        """Shape (n, dimension), float32; zeros, which are no valid vectors, if they have none."""
        shape = (len(vectors), self._space.dimension)
        if vectors.null_count or vectors.type.list_size != self._space.dimension:
            return np.zeros(shape, dtype=np.float32)
        return vectors.flatten().to_numpy(zero_copy_only=False).reshape(shape)

    def _insert(self, table: str, partitions: Sequence[str], only: str = "") -> None:
        for rows in self._scan(ROW_IDENTITY, partitions):
            self._database.insert(table, rows, only)

    def _scan(self, columns: Sequence[str], partitions: Sequence[str]) -> Iterable[pa.RecordBatch]:
        return self._store.scan(self._collection, self._space, columns, partitions=partitions)
