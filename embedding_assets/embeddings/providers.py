"""Who embeds: the primary embedder, and what takes its place when it fails, without mixing spaces.

A fallback to another model never writes into the primary's space. Documents that the primary could
not finish are embedded by the fallback as a whole, into vectors and a table of their own; the next
run in which the primary works embeds them again and takes them out of there.
"""

import logging

from embedding_assets.collection.embedder_settings import FallbackSettings
from embedding_assets.embeddings.canaries import Canaries
from resources.embedders.base import Embedder
from resources.errors import EmbeddingError
from resources.identity.embedding_space import EmbeddingSpace


class Providers:
    """The embedders of one run. Once the primary has failed, the run asks it no more."""

    def __init__(
        self,
        primary: Embedder,
        fallback: Embedder | None,
        settings: FallbackSettings | None,
        canaries: Canaries,
        log: logging.Logger,
    ) -> None:
        self.primary, self.fallback = primary, fallback
        self.canaries = canaries
        self.failure: EmbeddingError | None = None
        self._settings = settings
        self._log = log
        self._verified_same = False

    @property
    def space(self) -> EmbeddingSpace:
        return self.primary.space

    @property
    def other_space(self) -> EmbeddingSpace | None:
        """The space of the fallback, where there is one that has a space of its own."""
        if self.fallback is None or self._settings is None or self._settings.same_space:
            return None
        return self.fallback.space

    def fail_over(self, error: EmbeddingError) -> None:
        """Notes that the primary failed.

        Raises:
            EmbeddingError: this one, if no fallback is there for such a failure.
        """
        if self.fallback is None or self._settings is None:
            raise error
        if error.kind not in self._settings.when:
            raise error
        self.failure = error
        self._log.warning(
            f"'{self.primary.space.model}' failed: {error} For the rest of this run "
            f"'{self.fallback.space.model}' takes its place"
            + ("." if self._settings.same_space else ", in an embedding space of its own.")
        )

    def same_space_fallback(self) -> Embedder | None:
        """The fallback, if it computes vectors of the primary's space, and has proved it."""
        if self.fallback is None or self._settings is None or not self._settings.same_space:
            return None
        if not self._verified_same:
            self.canaries.verify_same_space(self.fallback, self.primary.space)
            self._verified_same = True
        return self.fallback
