"""Search in a collection's index."""

from collections.abc import Mapping, Sequence

from embedding_assets.collection.collection import CollectionResources
from embedding_assets.retrieval.fusion import documents_from_chunks, fuse_rankings
from embedding_assets.retrieval.query_vectors import query_vectors
from resources.embedders.base import Embedder
from resources.identity.content_hash import canonical_text
from resources.vector_stores.base import SearchHit

_CHUNKS_PER_DOCUMENT = 10
"""To rank k documents, so many times k chunks are fetched: several may be of one document."""


def search(
    collection: str, resources: CollectionResources, text: str, k: int, *, exact: bool = False
) -> list[SearchHit]:
    """The k chunks nearest to a text, best first.

    Where rows are in more than one embedding space, each is asked with a query vector of its own
    and the ranks are fused: scores of different spaces cannot be compared.

    Args:
        collection: the collection's name.
        resources: its embedders and stores.
        text: what to look for.
        k: how many chunks.
        exact: compare with every chunk, as `VectorStore.search` says.

    Raises:
        ValueError: the text is empty.
        LookupError: the collection has no index yet.
    """
    if not canonical_text(text):
        raise ValueError("the text to search for is empty")
    rankings = []
    for embedder in embedders_of_rows(collection, resources):
        (vector,) = query_vectors(resources.cache, embedder, [text])
        rankings.append(resources.store.search(collection, embedder.space, vector, k, exact=exact))
    hits = {hit.chunk_id: hit for ranking in rankings for hit in ranking}
    fused = fuse_rankings([[hit.chunk_id for hit in ranking] for ranking in rankings])
    return [hits[chunk] for chunk in fused[:k]]


def rank_documents(
    collection: str,
    resources: CollectionResources,
    queries: Mapping[str, str],
    k: int = 10,
    *,
    exact: bool = False,
) -> dict[str, list[str]]:
    """The ids of the k best documents for each query, by their best chunk."""
    rankings: dict[str, list[list[str]]] = {query: [] for query in queries}
    for embedder in embedders_of_rows(collection, resources):
        vectors = query_vectors(resources.cache, embedder, list(queries.values()))
        for query, vector in zip(queries, vectors, strict=True):
            hits = resources.store.search(
                collection, embedder.space, vector, k * _CHUNKS_PER_DOCUMENT, exact=exact
            )
            rankings[query].append(
                documents_from_chunks([(hit.document_id, hit.score) for hit in hits], k)
            )
    return {query: fuse_rankings(several)[:k] for query, several in rankings.items()}


def embedders_of_rows(collection: str, resources: CollectionResources) -> Sequence[Embedder]:
    """The embedders of the spaces in which the collection has rows.

    The first one too if its index is there and empty; but not if another has rows and the first
    was never run, as when the old model is named as the fallback of a new one.

    Raises:
        LookupError: the collection has no index yet. Said before a model is loaded for nothing.
    """
    first, *others = resources.embedders
    asked = [e for e in others if resources.store.count(collection, e.space)]
    if first.space.id in {space.id for space in resources.store.spaces(collection)}:
        return [first, *asked]
    if not asked:
        raise LookupError(
            f"Collection '{collection}' has no index for {first.space.model} ({first.space.id}) "
            f"yet. Materialize '{collection}/vector_index' first."
        )
    return asked
