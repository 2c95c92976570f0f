"""Vectors that are cut on the way out: another space, of which nothing is stored or remembered."""

import numpy as np

from embedding_assets.service.errors import ServiceError
from embedding_assets.service.vectors import VectorRequest
from resources.embedders.base import Embedder
from resources.embedders.cosine import normalized
from resources.identity.embedding_space import EmbeddingSpace


def space_asked_for(embedder: Embedder, dimensions: int | None) -> EmbeddingSpace:
    """The space of an embedder's vectors with so many dimensions; None: with all.

    Raises:
        ServiceError: nobody has said that the model can be shortened so.
    """
    whole, shorter = embedder.space, embedder.shorter_dimensions
    if dimensions in (None, whole.dimension):
        return whole
    if dimensions in shorter:
        return whole.shortened(dimensions)
    if shorter:
        said = f"there are {', '.join(map(str, (whole.dimension, *shorter)))}."
    else:
        said = (
            f"its vectors have {whole.dimension}. If it was trained to be shortened, its YAML can "
            "say to what: matryoshka_dimensions."
        )
    raise ServiceError(
        400,
        "dimensions_not_supported",
        f"{whole.model} cannot be shortened to {dimensions} dimensions: {said}",
        field="dimensions",
    )


def shorten(answered: VectorRequest, space: EmbeddingSpace) -> None:
    """Cuts the vectors of an answer to those of a space that `space_asked_for` gave.

    A text of whose vector nothing is left has none, and fails alone.
    """
    if answered.vectors.shape[1] == space.dimension:
        return
    answered.vectors = normalized(answered.vectors[:, : space.dimension])
    for row in np.flatnonzero(~np.isfinite(answered.vectors).all(axis=1)).tolist():
        answered.vectors[row] = 0
        answered.cached[row] = False
        answered.failures.setdefault(
            row,
            (
                "zero_vector",
                f"Of its vector the first {space.dimension} values are 0: take more dimensions.",
            ),
        )
