"""The vector store: one table for each pair of collection and embedding space; rows are chunks."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

import dagster as dg
import numpy as np
import pyarrow as pa

from resources.errors import NotFoundError
from resources.identity.content_hash import HASH_BYTES
from resources.identity.embedding_space import EmbeddingSpace

ROW_IDENTITY = (
    "chunk_id",
    "document_id",
    "document_version",
    "content_hash",
    "chunk_number",
    "span_start",
    "span_end",
    "partition",
)
"""Two rows that agree in these columns agree in all of them."""


REPEATED_BYTES = 16 * 1024
"""Title and metadata that take more are in the row of their document's first chunk alone."""


def row_schema(space: EmbeddingSpace | None) -> pa.Schema:
    """The columns of a table; None: of any space, with vectors of any length.

    `span_start` and `span_end` count characters of the document's text.
    `context || text` is the text that was embedded; `content_hash` is its hash. Where title and
    metadata are null, they are those in the row of the document's chunk number 0.
    """
    return pa.schema(
        [
            pa.field("chunk_id", pa.string(), nullable=False),
            pa.field("document_id", pa.string()),
            pa.field("document_version", pa.binary(HASH_BYTES)),
            pa.field("content_hash", pa.binary(HASH_BYTES)),
            pa.field("chunk_number", pa.int32()),
            pa.field("span_start", pa.int64()),
            pa.field("span_end", pa.int64()),
            pa.field("partition", pa.string()),
            pa.field("title", pa.string()),
            pa.field("context", pa.string()),
            pa.field("text", pa.string()),
            pa.field("timestamp", pa.timestamp("us", "UTC")),
            pa.field("metadata", pa.string()),
            pa.field("vector", pa.list_(pa.float32(), space.dimension if space else -1)),
        ]
    )


@dataclass(frozen=True)
class SearchHit:
    """One chunk found.

    Attributes:
        score: cosine similarity to the query, from -1 to 1.
        collection: the collection in whose index it is.
        chunk_id: the chunk's key in the store.
        document_id: the id of its document, as in the source.
        chunk_number: its place among the document's chunks, from 0.
        title: the document's title.
        text: the chunk's own text, without the context that was embedded with it.
        span_start: where it begins in the document's text, in characters.
        span_end: where it ends, exclusive.
        partition: the partition of the document.
        timestamp: the document's own time in UTC, if it has one.
        metadata: the document's other fields.
    """

    score: float
    collection: str
    chunk_id: str
    document_id: str
    chunk_number: int
    title: str
    text: str
    span_start: int
    span_end: int
    partition: str
    timestamp: datetime | None
    metadata: Mapping[str, Any]


class NoIndexError(NotFoundError):
    """A collection has no table for an embedding space."""

    def __init__(self, collection: str, space: EmbeddingSpace) -> None:
        super().__init__(
            f"Collection '{collection}' has no index for {space.model} ({space.id}) yet. "
            f"Build it first: `embedding-assets build {collection}`."
        )


@dataclass(frozen=True, kw_only=True)
class StoreCapabilities:
    """What a kind of store can do beyond what every `VectorStore` must: ask this, not its class.

    Attributes:
        atomic_replace: `replace` is one commit, its condition included: no reader ever sees a row
            beside the one in whose place it comes, nor neither of them.
        full_text: it finds words, not only vectors.
        filters: a search can be limited to rows by their other columns.
        aliases: a table can take the place of another under its name, in one step.
        scalar_indexes: rows are found by chunk, document or partition without a look at all.
    """

    atomic_replace: bool = False
    full_text: bool = False
    filters: bool = False
    aliases: bool = False
    scalar_indexes: bool = False


class VectorStore(dg.ConfigurableResource, ABC):
    """Rows of chunks with their vectors, in tables that are found by collection and space."""

    capabilities: ClassVar[StoreCapabilities] = StoreCapabilities()

    @property
    @abstractmethod
    def kind(self) -> str:
        """What it is, as Dagster calls it, such as lancedb."""

    @property
    @abstractmethod
    def address(self) -> str:
        """The URI of all tables, which people see: without a secret."""

    @abstractmethod
    def table_name(self, collection: str, space: EmbeddingSpace) -> str:
        """What the store calls the table of a collection and a space."""

    @abstractmethod
    def create_table(self, collection: str, space: EmbeddingSpace) -> None:
        """Creates the table if it is not there."""

    @abstractmethod
    def scan(
        self,
        collection: str,
        space: EmbeddingSpace,
        columns: Sequence[str],
        *,
        partitions: Sequence[str] | None = None,
        not_partitions: Sequence[str] | None = None,
    ) -> Iterable[pa.RecordBatch]:
        """Streams columns of the rows that are (or are not) in the partitions; all by default.

        A table that does not exist has no rows.
        """

    @abstractmethod
    def replace(
        self,
        collection: str,
        space: EmbeddingSpace,
        rows: pa.RecordBatchReader,
        *,
        remove_chunk_ids: Sequence[str] = (),
        remove_from_partitions: Sequence[str] | None = None,
    ) -> None:
        """Writes rows (of `row_schema`) by chunk id and removes others, in one commit.

        Args:
            collection: the collection's name.
            space: the embedding space.
            rows: rows to insert, or to put in the place of those with the same chunk id.
            remove_chunk_ids: rows to remove, unless they are in `rows`.
            remove_from_partitions: only as long as they are in one of these; None: in any.

        A row without a vector, or with one that is not finite, is an error: nothing is written.
        """

    @abstractmethod
    def maintain(self, collection: str, space: EmbeddingSpace) -> None:
        """Housekeeping after a run's commits, as far as it is due; never changes any row."""

    @abstractmethod
    def search(
        self,
        collection: str,
        space: EmbeddingSpace,
        vector: np.ndarray,
        k: int,
        *,
        exact: bool = False,
        not_partitions: Sequence[str] = (),
    ) -> list[SearchHit]:
        """The k chunks most similar to the query vector, best first.

        Args:
            collection: the collection's name.
            space: the embedding space of the query vector.
            vector: shape (dimension,), float32.
            k: how many hits.
            exact: compare with every row; otherwise a large table may miss some of the best, though
                never give a wrong score.
            not_partitions: whose rows are not looked at.

        Raises:
            NoIndexError: there is no such table yet.
        """

    def nearest_documents(
        self,
        collection: str,
        space: EmbeddingSpace,
        vectors: np.ndarray,
        k: int,
        *,
        exact: bool = False,
    ) -> list[list[tuple[str, float]]]:
        """Of the chunks that `search` finds for each query vector, only documents and scores.

        A store that can answer many queries at once does so here.

        Args:
            vectors: shape (queries, dimension), float32.

        Returns:
            For each query k pairs of document id and score, in any order; a document may be in more
            than one.

        Raises:
            NoIndexError: there is no such table yet.
        """
        return [
            [
                (hit.document_id, hit.score)
                for hit in self.search(collection, space, vector, k, exact=exact)
            ]
            for vector in vectors
        ]

    @abstractmethod
    def rows(
        self,
        collection: str,
        space: EmbeddingSpace,
        chunk_ids: Sequence[str],
        columns: Sequence[str],
    ) -> pa.Table:
        """Columns of the rows with these chunk ids, in any order; of none that is not there."""

    @abstractmethod
    def count(self, collection: str, space: EmbeddingSpace) -> int: ...

    @abstractmethod
    def collections(self) -> list[str]:
        """The collections that have a table, sorted: those too that nobody configures any more."""

    @abstractmethod
    def spaces(self, collection: str) -> list[EmbeddingSpace]:
        """The spaces for which the collection has a table, sorted by id."""

    def bytes_used(self, collection: str, space: EmbeddingSpace) -> int | None:  # noqa: ARG002
        """What a table takes on a disk of this machine; None: it is elsewhere."""
        return None

    @abstractmethod
    def drop_table(self, collection: str, space: EmbeddingSpace) -> None:
        """Removes the table with all its rows; one that is not there is no error."""
