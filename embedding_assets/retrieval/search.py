"""Search in the indexes of collections."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedding_assets.collection.collection import CollectionResources
from embedding_assets.retrieval.fusion import documents_from_chunks, fuse_rankings
from embedding_assets.retrieval.hits import Hits
from embedding_assets.retrieval.text_vectors import text_vectors
from resources.embedders.base import Embedder
from resources.errors import InvalidInputError
from resources.identity.content_hash import canonical_question, chunk_id
from resources.identity.embedding_space import EmbeddingSpace
from resources.vector_stores.base import NoIndexError, SearchHit

CHUNKS_PER_DOCUMENT = 10
"""To rank k documents, so many times k chunks are fetched: several may be of one document."""


def search_indexes(
    indexes: "Sequence[IndexReader]", text: str, k: int, *, exact: bool = False
) -> Hits:
    """The k chunks of some collections that are nearest to a text, best first.

    Each embedding space is asked with a query vector of its own. Scores of one space are compared,
    whatever the collection; those of different spaces cannot be, so that their ranks are fused.

    Args:
        indexes: those of the collections.
        text: what to look for.
        k: how many chunks.
        exact: compare with every chunk, as `VectorStore.search` says.

    Raises:
        InvalidInputError: the text is empty, or k below 1.
        NoIndexError: a collection has no index yet.
    """
    question = canonical_question(text)
    if k < 1:
        raise InvalidInputError(f"k, the number of chunks to find, must be at least 1, got {k}")
    asked = {index: index.embedders() for index in indexes}
    vectors: dict[EmbeddingSpace, np.ndarray] = {}
    for index, embedders in asked.items():
        for embedder in embedders:
            if embedder.space not in vectors:
                (vector,) = text_vectors(index.resources.cache, embedder, [question], "query")
                vectors[embedder.space] = vector
    return nearest_chunks(asked, vectors, k, exact=exact)


def nearest_chunks(
    asked: "Mapping[IndexReader, Sequence[Embedder]]",
    vectors: Mapping[EmbeddingSpace, np.ndarray],
    k: int,
    *,
    exact: bool = False,
) -> Hits:
    """As `search_indexes`, for a question that is embedded already.

    Args:
        asked: the indexes, and the embedders whose spaces are asked in each.
        vectors: the question's vector in each of those spaces, shape (dimension,), float32.
        k: how many chunks.
        exact: compare with every chunk.
    """
    found: dict[EmbeddingSpace, list[SearchHit]] = {}
    for index, embedders in asked.items():
        for space in (embedder.space for embedder in embedders):
            hits = index.resources.store.search(
                index.collection,
                space,
                vectors[space],
                k,
                exact=exact,
                not_partitions=index.not_partitions,
            )
            found.setdefault(space, []).extend(hits)
    rankings = [sorted(hits, key=lambda hit: -hit.score)[:k] for hits in found.values()]
    # A chunk that two spaces have is told of as the first has it.
    by_id = {hit.chunk_id: hit for ranking in reversed(rankings) for hit in ranking}
    fused = fuse_rankings([[hit.chunk_id for hit in ranking] for ranking in rankings])
    collections = list(dict.fromkeys(index.collection for index in asked))
    return Hits((by_id[chunk] for chunk in fused[:k]), list(found), collections)


@dataclass(frozen=True, eq=False)
class IndexReader:
    """A collection's index, in all the embedding spaces in which it has rows.

    Attributes:
        collection: its name.
        resources: its embedders and its store.
        not_partitions: those in whose rows nothing is searched: they are elsewhere.
    """

    collection: str
    resources: CollectionResources
    not_partitions: Sequence[str] = ()

    def search(self, text: str, k: int, *, exact: bool = False) -> Hits:
        """The k chunks nearest to a text, best first, as `search_indexes` finds them."""
        return search_indexes([self], text, k, exact=exact)

    def neighbours(self, hit: SearchHit, chunks: int) -> str:
        """The text around a hit: so many chunks of its document before it and after it, as one."""
        numbers = range(max(0, hit.chunk_number - chunks), hit.chunk_number + chunks + 1)
        ids = [chunk_id(self.collection, hit.document_id, number) for number in numbers]
        columns = ("chunk_number", "span_start", "span_end", "text")
        for embedder in self.resources.embedders:
            found = self.resources.store.rows(self.collection, embedder.space, ids, columns)
            rows = sorted(found.to_pylist(), key=lambda row: row["chunk_number"])
            if any(row["chunk_number"] == hit.chunk_number for row in rows):
                return _joined(rows)
        return hit.text  # another run has just taken the document out

    @property
    def is_built(self) -> bool:
        """Whether there is something to search in."""
        try:
            return bool(self.embedders())
        except NoIndexError:
            return False

    def rank_documents(
        self, queries: Mapping[str, str], k: int, *, exact: bool = False
    ) -> dict[str, list[str]]:
        """The ids of the k best documents for each query, by their best chunk."""
        rankings: dict[str, list[list[str]]] = {query: [] for query in queries}
        for embedder in self.embedders():
            texts = list(queries.values())
            vectors = text_vectors(self.resources.cache, embedder, texts, "query")
            found = self.resources.store.nearest_documents(
                self.collection, embedder.space, vectors, k * CHUNKS_PER_DOCUMENT, exact=exact
            )
            for query, chunks in zip(queries, found, strict=True):
                rankings[query].append(documents_from_chunks(chunks, k))
        return {query: fuse_rankings(several)[:k] for query, several in rankings.items()}

    def embedders(self) -> Sequence[Embedder]:
        """The embedders of the spaces in which the collection has rows.

        The first one too if its index is there and empty; but not if another has rows and the first
        was never run, as when the old model is named as the fallback of a new one.

        Raises:
            NoIndexError: the collection has no index yet. Said before a model is loaded for
                nothing.
        """
        store = self.resources.store
        first, *others = self.resources.embedders
        asked = [e for e in others if store.count(self.collection, e.space)]
        if first.space.id in {space.id for space in store.spaces(self.collection)}:
            return [first, *asked]
        if not asked:
            raise NoIndexError(self.collection, first.space)
        return asked


def _joined(rows: Iterable[Mapping[str, Any]]) -> str:
    """The texts of neighbouring chunks as they stood in the document, without what they share."""
    text, end = "", 0
    for row in rows:
        if text and row["span_start"] > end:
            text += "\n\n"
        text += row["text"][max(0, end - row["span_start"]) if text else 0 :]
        end = row["span_end"]
    return text
