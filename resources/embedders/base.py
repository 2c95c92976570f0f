"""Embedders turn texts into the vectors of one embedding space."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import dagster as dg
import numpy as np
from pydantic import Field
from tokenizers import Tokenizer

from resources.embedders.pricing import FREE, Price
from resources.identity.embedding_space import EmbeddingSpace

Role = Literal["document", "query"]

ShorterDimensions = list[Annotated[int, Field(ge=1)]]
"""Lengths to which vectors may be cut: their first values, brought to norm 1 again."""

HARMLESS_TEXT = "A short text that every model can embed."
"""Tells whether other texts are at fault, or the embedder."""


@dataclass(frozen=True)
class EmbeddingBatch:
    """The vectors of n texts, in the order of the texts.

    Attributes:
        vectors: shape (n, dimension), float32. Not validated: a model can yield NaN.
        tokens: shape (n,), int32; tokens given to the model, prompt and special tokens included.
        truncated_tokens: shape (n,), int32; tokens cut off at the model's limit.
        dollars: that all of them cost, lost answers included.
        unknown_tokens: shape (n,), int32; tokens that stand for whatever the model does not know.
            None: the embedder cannot tell, nor `known_tokens`.
        known_tokens: shape (n,), int32; the other tokens of the text itself. Texts without any get
            the same vector.
    """

    vectors: np.ndarray
    tokens: np.ndarray
    truncated_tokens: np.ndarray
    dollars: float = 0.0
    unknown_tokens: np.ndarray | None = None
    known_tokens: np.ndarray | None = None


class Embedder(dg.ConfigurableResource, ABC):
    """Everything but `embed` is cheap: a run in which all is cached loads no model."""

    @property
    @abstractmethod
    def space(self) -> EmbeddingSpace:
        """The space of all vectors that `embed` returns."""

    @property
    def shorter_dimensions(self) -> Sequence[int]:
        """Lengths to which vectors of the model may be cut (Matryoshka), the longest first.

        Somebody has said so: that a model was not trained for it shows in no vector, only in what
        is found.
        """
        return ()

    @property
    @abstractmethod
    def special_tokens(self) -> int:
        """How many special tokens the model adds to every text."""

    @property
    @abstractmethod
    def max_text_tokens(self) -> int:
        """Tokens of a document's own text that fit: the limit less prompt and special tokens."""

    @abstractmethod
    def new_tokenizer(self) -> Tokenizer:
        """The model's tokenizer without truncation and padding; use one instance per thread."""

    @abstractmethod
    def embed(self, texts: Sequence[str], role: Role = "document") -> EmbeddingBatch:
        """Embeds texts; may be called from several threads.

        Args:
            texts: n texts, in any order and of any length.
            role: which of the model's prompts goes before each text.

        Raises:
            EmbeddingError: nothing was embedded; its class says of what kind the failure is.
        """

    @property
    def concurrency(self) -> int:
        """How many calls of `embed` at a time are worth while."""
        return 1

    @property
    def streams(self) -> int:
        """How many small batches at a time keep the device busy, one in each call of `embed`."""
        return self.concurrency

    def batches(self, texts: Sequence[str]) -> list[slice]:
        """Cuts texts into calls of `embed`, each one unit of work, such as a request."""
        return [slice(0, len(texts))]

    @property
    def seconds_per_call(self) -> float | None:
        """How long a call of `embed` should take: more of it is lost by a crash, and is not told
        until it is over. None: a call is a request, of which few and large ones are best."""
        return None

    def give_up(self) -> None:
        """The calls of `embed` that are under way shall wait for nothing more, and may fail."""

    def unload(self) -> None:
        """Frees what was loaded, unless others use it too; `embed` would load it again."""

    @property
    def price(self) -> Price:
        """What tokens cost; nothing where nobody asks for money."""
        return FREE

    def statistics(self) -> dict[str, float]:
        """What was used since this resource was made, which in Dagster is a run."""
        return {}

    @property
    @abstractmethod
    def kind(self) -> str:
        """What computes the vectors, as Dagster calls it: openvino, pytorch, openai."""

    @abstractmethod
    def describe(self) -> str:
        """One line for people: what runs where, in which precision, and why."""
