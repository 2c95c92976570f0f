"""Search in a collection's index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedding_assets.collection.collection import CollectionResources
from embedding_assets.retrieval.fusion import documents_from_chunks, fuse_rankings
from embedding_assets.retrieval.hits import Hits
from embedding_assets.retrieval.text_vectors import text_vectors
from resources.embedders.base import Embedder
from resources.errors import InvalidInputError
from resources.identity.content_hash import canonical_text
from resources.vector_stores.base import NoIndexError

_CHUNKS_PER_DOCUMENT = 10
"""To rank k documents, so many times k chunks are fetched: several may be of one document."""


@dataclass(frozen=True)
class IndexReader:
    """A collection's index, in all the embedding spaces in which it has rows."""

    collection: str
    resources: CollectionResources

    def search(self, text: str, k: int, *, exact: bool = False) -> Hits:
        """The k chunks nearest to a text, best first.

        Where rows are in more than one embedding space, each is asked with a query vector of its
        own and the ranks are fused: scores of different spaces cannot be compared.

        Args:
            text: what to look for.
            k: how many chunks.
            exact: compare with every chunk, as `VectorStore.search` says.

        Raises:
            InvalidInputError: the text is empty, or k below 1.
            NoIndexError: the collection has no index yet.
        """
        if not canonical_text(text):
            raise InvalidInputError("the text to search for is empty")
        if k < 1:
            raise InvalidInputError(f"k, the number of chunks to find, must be at least 1, got {k}")
        embedders = self.embedders()
        rankings = []
        for embedder in embedders:
            (vector,) = text_vectors(self.resources.cache, embedder, [text], "query")
            rankings.append(
                self.resources.store.search(self.collection, embedder.space, vector, k, exact=exact)
            )
        hits = {hit.chunk_id: hit for ranking in rankings for hit in ranking}
        fused = fuse_rankings([[hit.chunk_id for hit in ranking] for ranking in rankings])
        return Hits((hits[chunk] for chunk in fused[:k]), [e.space for e in embedders])

    def rank_documents(
        self, queries: Mapping[str, str], k: int, *, exact: bool = False
    ) -> dict[str, list[str]]:
        """The ids of the k best documents for each query, by their best chunk."""
        rankings: dict[str, list[list[str]]] = {query: [] for query in queries}
        for embedder in self.embedders():
            texts = list(queries.values())
            vectors = text_vectors(self.resources.cache, embedder, texts, "query")
            for query, vector in zip(queries, vectors, strict=True):
                hits = self.resources.store.search(
                    self.collection, embedder.space, vector, k * _CHUNKS_PER_DOCUMENT, exact=exact
                )
                rankings[query].append(
                    documents_from_chunks([(hit.document_id, hit.score) for hit in hits], k)
                )
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
