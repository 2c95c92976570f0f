"""Canaries: fixed texts whose vectors show whether a model is still the one it was.

A provider may change a model behind its name, and a library its arithmetic. Vectors from before
and after cannot be compared, yet nothing else in the pipeline would notice.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedding_assets.artifacts.parquet import write_parquet
from resources.artifact_stores.base import ArtifactStore
from resources.caches.base import EmbeddingCache
from resources.caches.vectors import decode_vectors, encode_vectors, hash_array, valid_vectors
from resources.embedders.base import Embedder
from resources.embedders.cosine import MIN_COSINE_OF_SPACE, least_cosine
from resources.errors import EmbeddingAssetsError, SelfCheckError
from resources.identity.content_hash import canary_hash
from resources.identity.embedding_space import EmbeddingSpace

CANARIES = (
    "canary",
    "The ship left the harbour at 06:45, with 312 passengers on board.",
    "def area(radius): return 3.14159 * radius ** 2",
    "Ein Wörterbuch erklärt, was 言葉 und слова bedeuten.",
    "Rain fell for three days before the river rose. On the fourth morning the bridge was closed, "
    "and those who worked on the other bank took the ferry, which sailed every twenty minutes.",
)
_HASHES = hash_array([canary_hash(text) for text in CANARIES])
_SCHEMA = pa.schema([("text", pa.string()), ("vector", pa.binary())])


class SpaceDriftError(EmbeddingAssetsError):
    """The embedder's vectors are no longer those of its embedding space.

    Attributes:
        cosine: the least cosine between a canary's vector and the one stored for it.
    """

    def __init__(self, cosine: float, message: str) -> None:
        super().__init__(message)
        self.cosine = cosine


class Canaries:
    """Embeds the canaries before anything else is embedded, and compares with the first time.

    The first vectors are kept with the artifacts, and in the cache: whoever shares its vectors must
    get the same ones.
    """

    def __init__(self, artifacts: ArtifactStore, cache: EmbeddingCache) -> None:
        self._artifacts = artifacts
        self._cache = cache
        self.cosines: dict[str, float | None] = {}
        """By space id: the least cosine; None where these were the first vectors of the space."""

    def verify(self, embedder: Embedder) -> float:
        """Checks the embedder against its own past; the first time, remembers its vectors.

        Returns:
            The dollars that this cost.

        Raises:
            SpaceDriftError: it is another model than before.
            EmbeddingError: the canaries cannot be embedded.
        """
        space = embedder.space
        if space.id in self.cosines:
            return 0.0
        vectors, dollars = _embedded(embedder)
        known = self._known(space)
        if known is None:
            self.cosines[space.id] = None
            self._remember(space, vectors)
            self._cache.put(space, _HASHES, vectors)
            return dollars
        cosine = least_cosine(vectors, known)
        self.cosines[space.id] = cosine
        if not cosine >= MIN_COSINE_OF_SPACE:
            raise SpaceDriftError(
                cosine,
                f"'{space.model}' does not embed as it did before: the vector of a fixed text has "
                f"a cosine of {cosine:.4f} to its first one; {MIN_COSINE_OF_SPACE} is the least. "
                "Nothing was written. Bring back the model that was used so far; or, if the "
                "change is wanted, give the new one a name or revision of its own: then it gets "
                "vectors and a table of its own.",
            )
        self._cache.put(space, _HASHES, known)  # unless they are there
        return dollars

    def verify_same_space(self, embedder: Embedder, space: EmbeddingSpace) -> None:
        """Checks an embedder that is declared to compute the vectors of a space.

        Raises:
            SpaceDriftError: it does not, or nothing is known of the space yet.
            EmbeddingError: the canaries cannot be embedded.
        """
        known = self._known(space)
        if known is None:
            raise SpaceDriftError(
                float("nan"),
                f"Whether '{embedder.space.model}' computes the same vectors as '{space.model}' "
                "cannot be told before the latter has embedded something itself.",
            )
        cosine = least_cosine(_embedded(embedder)[0], known)
        if not cosine >= MIN_COSINE_OF_SPACE:
            raise SpaceDriftError(
                cosine,
                f"The fallback '{embedder.space.model}' is declared to be the same embedding space "
                f"as '{space.model}', but the vectors of a fixed text have a cosine of "
                f"{cosine:.4f}; {MIN_COSINE_OF_SPACE} is the least. Set same_space: false.",
            )

    def _known(self, space: EmbeddingSpace) -> np.ndarray | None:
        kept = self._kept(space)
        if kept is not None:
            return kept
        if not self._cache.contains(space, _HASHES).all():  # is not counted as a look-up
            return None
        shared = self._cache.get(space, _HASHES)
        if not shared.found.all():
            return None
        self._remember(space, shared.vectors)
        return shared.vectors

    def _kept(self, space: EmbeddingSpace) -> np.ndarray | None:
        key = _key(space)
        if not self._artifacts.exists(key):
            return None
        with self._artifacts.reading(key) as path:
            table = pq.read_table(path, schema=_SCHEMA).combine_chunks()
        if tuple(table["text"].to_pylist()) != CANARIES:  # of another version of this project
            return None
        vectors, right_size = decode_vectors(table["vector"].chunk(0), space.dimension)
        return vectors if right_size.all() and valid_vectors(space, vectors).all() else None

    def _remember(self, space: EmbeddingSpace, vectors: np.ndarray) -> None:
        batch = pa.record_batch(
            [pa.array(CANARIES), encode_vectors(vectors).cast(pa.binary())], schema=_SCHEMA
        )
        with self._artifacts.writing(_key(space)) as path:
            write_parquet(path, _SCHEMA.with_metadata({"space": space.to_json()}), [batch])


def _key(space: EmbeddingSpace) -> str:
    return f"canaries/{space.id}.parquet"


def _embedded(embedder: Embedder) -> tuple[np.ndarray, float]:
    """Shape (n, dimension), and dollars. A broken vector is a failure, and is never remembered."""
    batch = embedder.embed(CANARIES)
    if not valid_vectors(embedder.space, batch.vectors).all():
        raise SelfCheckError(
            f"'{embedder.space.model}' returned a broken vector (not finite, or of a wrong norm) "
            "for one of the fixed texts that show whether it is well",
        )
    return batch.vectors, batch.dollars
