"""The identity of vectors that may be compared with each other."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and ASCII only: equal values give equal bytes everywhere."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


@dataclass(frozen=True)
class EmbeddingSpace:
    """What decides the meaning of a vector, and nothing else.

    Device, batch size and numeric precision are no part of it: each embedder proves that they
    leave its vectors within the tolerance of the reference.

    Attributes:
        provider: what computes the vectors, for example "sentence-transformers".
        model: the model's name. Part of the identity only where `weights` is unknown.
        weights: SHA-256 (hex) over the weight files; "" where a provider does not show them.
        dimension: length of each vector.
        max_tokens: longest input, special tokens included; what is longer is cut.
        normalized: whether every vector has norm 1.
        details: canonical JSON of everything else that changes vectors: tokenizer, architecture,
            pooling, prompts.
    """

    provider: str
    model: str
    weights: str
    dimension: int
    max_tokens: int
    normalized: bool
    details: str = "{}"

    def __post_init__(self) -> None:
        object.__setattr__(self, "details", canonical_json(json.loads(self.details)))

    @cached_property
    def id(self) -> str:
        """16 hexadecimal characters; equal on every machine and Python version."""
        identity = asdict(self) | {"details": json.loads(self.details)}
        if self.weights:
            del identity["model"]
        return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]

    def shortened(self, dimension: int) -> "EmbeddingSpace":
        """The space of the first values of these vectors, so many, brought to norm 1 again."""
        details = json.loads(self.details) | {"shortened_from": self.dimension}
        return replace(self, dimension=dimension, normalized=True, details=canonical_json(details))

    def to_json(self) -> str:
        return canonical_json(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "EmbeddingSpace":
        """The inverse of `to_json`.

        Raises:
            ValueError: the text does not describe an embedding space.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise ValueError(f"Not an embedding space: {text[:200]!r} ({error})") from error
