"""The vectors of queries, through the same cache as those of documents."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from resources.caches.base import EmbeddingCache
from resources.caches.vectors import CONTENT_HASH_TYPE
from resources.embedders.base import Embedder
from resources.identity.content_hash import canonical_text, query_hash


def query_vectors(cache: EmbeddingCache, embedder: Embedder, texts: Sequence[str]) -> np.ndarray:
    """Embeds queries, through the cache: a check that repeats its queries loads no model.

    Returns:
        Shape (n, dimension), float32.
    """
    space = embedder.space
    canonical = [canonical_text(text) for text in texts]
    distinct = list(dict.fromkeys(canonical))
    hashes = pa.array([query_hash(text) for text in distinct], CONTENT_HASH_TYPE)
    answer = cache.get(space, hashes)
    vectors = answer.vectors.copy()
    missing = np.flatnonzero(~answer.found)
    if len(missing):
        batch = embedder.embed([distinct[row] for row in missing], role="query")
        vectors[missing] = batch.vectors
        cache.put(space, hashes.take(pa.array(missing)), batch.vectors)
    row_of = {text: row for row, text in enumerate(distinct)}
    return vectors[[row_of[text] for text in canonical]]
