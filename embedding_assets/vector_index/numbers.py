"""What `vector_index` tells of its partitions, and of what it read back from the store."""

from dataclasses import dataclass
from typing import Any


@dataclass
class IndexNumbers:
    """What became of one partition's rows in one table.

    Attributes:
        rows: how many it has now.
        rows_written: new or changed ones.
        rows_removed: those of deleted documents and of older versions.
        documents_withheld: those that are not in the index: not all their vectors are there, or
            another partition owns them.
        fallback_rows: in the table of the fallback's space; None: there is no fallback.
    """

    rows: int
    rows_written: int
    rows_removed: int
    documents_withheld: int
    fallback_rows: int | None = None

    def metadata(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Damage:
    """Rows of which the store gives back something else than what was written.

    Attributes:
        rows: how many were read.
        invalid_vectors: chunk ids of those whose vector is not one of the space.
        wrong_keys: chunk ids of those whose content hash is not that of their text.
    """

    rows: int
    invalid_vectors: list[str]
    wrong_keys: list[str]

    @property
    def chunk_ids(self) -> list[str]:
        return sorted({*self.invalid_vectors, *self.wrong_keys})


@dataclass(frozen=True)
class Integrity:
    """What a table's rows were like, and what is left of that since damaged ones were rewritten."""

    found: Damage
    left: Damage

    @property
    def repaired(self) -> int:
        return len({*self.found.chunk_ids} - {*self.left.chunk_ids})


@dataclass(frozen=True)
class Completeness:
    """How a table's rows differ from what ought to be there.

    Attributes:
        documents_missing: documents that are in no index, and in no quarantine either.
        chunks_missing: those of documents that ought to be in this table.
        chunks_surplus: rows that ought not to be there.
        documents_with_gaps: those whose chunk numbers are not 0..n-1.
    """

    documents_missing: int
    chunks_missing: int
    chunks_surplus: int
    documents_with_gaps: int
