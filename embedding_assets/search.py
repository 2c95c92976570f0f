"""Search in a collection's index."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from embedding_assets.collection import CollectionResources
from embedding_assets.evaluation import documents_from_chunks
from resources.content_identity import canonical_text, query_hash
from resources.embedding_cache import CONTENT_HASH_TYPE
from resources.vector_store import SearchHit

_CHUNKS_PER_DOCUMENT = 10
"""To rank k documents, so many times k chunks are fetched: several may be of one document."""


def search(collection: str, resources: CollectionResources, text: str, k: int) -> list[SearchHit]:
    """The k chunks nearest to a text, best first.

    Raises:
        ValueError: the text is empty.
        LookupError: the collection has no index yet.
    """
    if not canonical_text(text):
        raise ValueError("the text to search for is empty")
    (vector,) = query_vectors(resources, [text])
    return resources.store.search(collection, resources.embedder.space, vector, k)


def rank_documents(
    collection: str, resources: CollectionResources, queries: Mapping[str, str], k: int = 10
) -> dict[str, list[str]]:
    """The ids of the k best documents for each query, by their best chunk."""
    rankings = {}
    vectors = query_vectors(resources, list(queries.values()))
    for query_id, vector in zip(queries, vectors, strict=True):
        hits = resources.store.search(
            collection, resources.embedder.space, vector, k * _CHUNKS_PER_DOCUMENT
        )
        rankings[query_id] = documents_from_chunks([(h.document_id, h.score) for h in hits], k)
    return rankings


def query_vectors(resources: CollectionResources, texts: Sequence[str]) -> np.ndarray:
    """Embeds queries, through the cache: a check that repeats its queries loads no model.

    Returns:
        Shape (n, dimension), float32.
    """
    space = resources.embedder.space
    canonical = [canonical_text(text) for text in texts]
    distinct = list(dict.fromkeys(canonical))
    hashes = pa.array([query_hash(text) for text in distinct], CONTENT_HASH_TYPE)
    answer = resources.cache.get(space, hashes)
    vectors = answer.vectors.copy()
    missing = np.flatnonzero(~answer.found)
    if len(missing):
        batch = resources.embedder.embed([distinct[row] for row in missing], role="query")
        vectors[missing] = batch.vectors
        resources.cache.put(space, hashes.take(pa.array(missing)), batch.vectors)
    row_of = {text: row for row, text in enumerate(distinct)}
    return vectors[[row_of[text] for text in canonical]]
