"""What `embeddings` tells of a run and of each of its partitions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class EmbeddingNumbers:
    """What happened to distinct chunks.

    hits + misses = distinct; embedded + errors + left_to_fallback = misses. Only the fields that
    are named so speak of a fallback with a space of its own.
    """

    chunks: int = 0
    distinct_chunks: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    cache_entries_rejected: int = 0
    embedded: int = 0
    errors: int = 0
    left_to_fallback: int = 0
    fallback_vectors: int = 0
    fallback_embedded: int = 0
    fallback_errors: int = 0
    fallback_tokens: int = 0
    tokens: int = 0
    tokens_truncated: int = 0
    tokens_judged: int = 0
    tokens_unknown: int = 0
    dollars: float = 0.0
    seconds: float = 0.0
    seconds_embedding: float = 0.0
    error_examples: list[str] = field(default_factory=list)

    @property
    def cache_hit_rate(self) -> float:
        return self.cache_hits / self.distinct_chunks if self.distinct_chunks else 1.0

    @property
    def texts_refused(self) -> int:
        return self.errors + self.fallback_errors

    @property
    def texts_tried(self) -> int:
        return self.embedded + self.fallback_embedded + self.texts_refused

    @property
    def error_rate(self) -> float:
        return self.texts_refused / self.texts_tried if self.texts_tried else 0.0

    @property
    def unknown_share(self) -> float:
        """Of the tokens of all texts that the model was given, refused ones included."""
        return self.tokens_unknown / self.tokens_judged if self.tokens_judged else 0.0

    @property
    def chunks_per_second(self) -> float:
        return self.embedded / self.seconds_embedding if self.seconds_embedding else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds_embedding if self.seconds_embedding else 0.0

    def add(self, other: "EmbeddingNumbers") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def metadata(self) -> dict[str, Any]:
        numbers = {
            name: value
            for name, value in vars(self).items()
            # Dagster keeps some hundred bytes of each number for each partition.
            if name not in _INTERNAL and (value or name not in _SELDOM)
        }
        return {
            **numbers,
            "cache_hit_rate": self.cache_hit_rate,
            "error_rate": self.error_rate,
            "chunks_per_second": self.chunks_per_second,
            "tokens_per_second": self.tokens_per_second,
        }

    def summary(self) -> str:
        if not self.cache_misses:
            return f"Nothing to embed: all {self.distinct_chunks:,} distinct chunks were cached."
        return (
            f"{self.embedded:,} chunks embedded ({self.tokens:,} tokens, "
            f"{self.tokens_per_second:,.0f} tokens/s), {self.cache_hits:,} of "
            f"{self.distinct_chunks:,} cached ({self.cache_hit_rate:.1%}), "
            f"{self.texts_refused} errors."
        )


def rows(metadata: Mapping[str, Any]) -> int:
    """How many vectors a partition has in the embedder's own space."""
    return metadata["cache_hits"] + metadata["embedded"]


_INTERNAL = ("error_examples", "tokens_judged")
_SELDOM = (
    "tokens_unknown", "cache_entries_rejected",
    "left_to_fallback", "fallback_vectors", "fallback_embedded",
    "fallback_errors", "fallback_tokens", "dollars",
)  # fmt: skip


ESSENTIAL = (
    "chunks", "distinct_chunks", "cache_hits", "cache_misses", "cache_hit_rate", "embedded",
    "errors", "error_rate", "tokens", "tokens_truncated", "chunks_per_second", "tokens_per_second",
    "peak_memory_mb", *_SELDOM,
)  # fmt: skip
