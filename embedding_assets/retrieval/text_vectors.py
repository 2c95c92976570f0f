"""The vectors of single texts, through the same cache as those of the pipeline."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from resources.caches.base import EmbeddingCache
from resources.caches.vectors import CONTENT_HASH_TYPE
from resources.embedders.base import Embedder, EmbeddingBatch, Role
from resources.errors import InvalidInputError
from resources.identity.content_hash import canonical_text, content_hash, query_hash


def text_vectors(
    cache: EmbeddingCache, embedder: Embedder, texts: Sequence[str], role: Role
) -> np.ndarray:
    """Embeds texts, through the cache: whoever repeats a question loads no model.

    Args:
        cache: is asked first, and keeps what had to be embedded.
        embedder: the model.
        texts: documents' texts or queries.
        role: which of the two, as models may prompt them differently.

    Returns:
        Shape (n, dimension), float32.

    Raises:
        InvalidInputError: the model knows no token of a text.
    """
    space = embedder.space
    canonical = [canonical_text(text) for text in texts]
    distinct = list(dict.fromkeys(canonical))
    hash_of = query_hash if role == "query" else content_hash
    hashes = pa.array([hash_of(text) for text in distinct], CONTENT_HASH_TYPE)
    answer = cache.get(space, hashes)
    vectors = answer.vectors.copy()
    missing = np.flatnonzero(~answer.found)
    if len(missing):
        batch = embedder.embed([distinct[row] for row in missing], role=role)
        _check_known([distinct[row] for row in missing], batch, embedder)
        vectors[missing] = batch.vectors
        cache.put(space, hashes.take(pa.array(missing)), batch.vectors)
    row_of = {text: row for row, text in enumerate(distinct)}
    return vectors[[row_of[text] for text in canonical]]


def _check_known(texts: Sequence[str], batch: EmbeddingBatch, embedder: Embedder) -> None:
    if batch.known_tokens is None:
        return
    for row in np.flatnonzero(batch.known_tokens == 0).tolist():
        raise InvalidInputError(
            f"The model {embedder.space.model} knows no token of {texts[row][:60]!r}, so its "
            "vector would say nothing. Ask in a language and a script that the model knows."
        )
