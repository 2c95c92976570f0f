"""A sentence-transformers model through torch: on a GPU, or where OpenVINO cannot run it."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resources.embedders.base import EmbeddingBatch
from resources.embedders.cosine import MIN_COSINE
from resources.embedders.local_model.library_errors import failure, out_of_memory
from resources.embedders.local_model.model_compiler import (
    REFERENCE_TEXTS,
    UnsupportedModelError,
    load_sentence_transformer,
)
from resources.embedders.local_model.model_files import ModelFiles
from resources.embedders.local_model.openvino_model import SelfCheck, check_vectors
from resources.embedders.local_model.packed_attention import PackedModel
from resources.embedders.local_model.packed_engine import PackedEngine
from resources.embedders.local_model.token_batches import (
    TextTokenizer,
    TokenizedTexts,
    TokenizerPool,
    token_batches,
)
from resources.embedders.local_model.token_budget import (
    TokenBudget,
    remembered_budget,
    search_budget,
)
from resources.errors import (
    EmbeddingError,
    ModelError,
    SelfCheckError,
    TextError,
    TextOutOfMemoryError,
)
from resources.identity.embedding_space import EmbeddingSpace

BATCH_TOKENS = 65_536
"""Of padded batches, and where no budget can be measured."""

PROBE_LENGTH = 128

AUTO = {"cuda": ("fp16", "bf16", "fp32")}
"""By device: precisions from the most wanted; fp16 is as fast as bf16, and nearer to fp32."""


class TorchModel:
    """Packed where the model and the device allow it, else `SentenceTransformer.encode` on batches
    of like length; safe to share between threads."""

    def __init__(
        self,
        files: ModelFiles,
        space: EmbeddingSpace,
        device: str,
        precision: str,
        batch_tokens: int | None = None,
        cache: Path | None = None,
        packed: bool | None = None,
    ) -> None:
        """Loads the model onto the device, in a precision that passes the self-check.

        Args:
            files: the model's files.
            space: the embedding space of the vectors.
            device: "cpu", "cuda" or "mps".
            precision: "fp32", "bf16", "fp16", or "auto": on CUDA the first of fp16, bf16 and fp32
                that passes the self-check, elsewhere fp32.
            batch_tokens: maximum number of tokens of a batch, padding included; None finds it on
                CUDA.
            cache: the folder that remembers what was found; None remembers nothing.
            packed: whether to try to do without padding; None: on CUDA.

        Raises:
            EmbeddingError: the model cannot be loaded, or deviates in this precision.
        """
        self.check: SelfCheck
        self.precision: str
        self._files = files
        self._space = space
        self._device = device
        self._packed = device == "cuda" if packed is None else packed
        self._unpacked_because = ""
        self._engine: PackedEngine | None = None
        self._lock = threading.Lock()
        settings = (space.max_tokens, files.truncation_side)
        self._tokens = TextTokenizer(files.tokenizer(), *settings)
        self._tokenizers = TokenizerPool(files.tokenizer, *settings)
        self._exact_model: Any = None
        self._budget = TokenBudget(batch_tokens or BATCH_TOKENS)
        try:
            self._load(precision)
        except EmbeddingError:
            raise
        except Exception as error:
            what = f"'{files.name}' cannot embed on {device}"
            raise failure(error, what, ModelError) from error
        if self._engine is not None and batch_tokens is None and device == "cuda":
            self._budget = TokenBudget(self._found_budget(self._engine, cache))
            self._engine.budget = self._budget

    def embed(self, texts: Sequence[str], prompt: str = "") -> EmbeddingBatch:
        """Embeds the texts, each with the prompt before it.

        Raises:
            EmbeddingError: a text cannot be tokenized, torch failed, or one text alone does not fit
                in memory.
        """
        tokenized = self._tokenizers.tokenize(texts, prompt)
        vectors = self.embed_tokenized(texts, prompt, tokenized)
        return tokenized.with_vectors(vectors)

    def embed_tokenized(
        self, texts: Sequence[str], prompt: str, tokenized: TokenizedTexts
    ) -> np.ndarray:
        """Embeds texts that are tokenized already.

        Args:
            texts: n texts.
            prompt: goes before each.
            tokenized: of these texts with this prompt.

        Returns:
            Shape (n, dimension), float32.

        Raises:
            EmbeddingError: torch failed, or one text alone does not fit in memory.
        """
        if self._engine is not None:
            vectors = self._engine.embed(tokenized)
        else:
            vectors = self._embed_padded(texts, prompt, tokenized.lengths)
        if self.precision == "fp32":
            return vectors
        overflowed = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(overflowed):
            vectors[overflowed] = self._exact([texts[int(row)] for row in overflowed], prompt)
        return vectors

    def __str__(self) -> str:
        import torch

        name = torch.cuda.get_device_name() if self._device == "cuda" else self._device
        if self._engine is not None:
            how = f", packed, {self._budget.tokens:,} tokens a batch"
        else:
            how = f", padded, for {self._unpacked_because}" if self._unpacked_because else ""
        return f"torch {torch.__version__} in {self.precision}{how} on {name}"

    def _load(self, precision: str) -> None:
        candidates = AUTO.get(self._device, ("fp32",)) if precision == "auto" else (precision,)
        self._model: Any = load_sentence_transformer(self._files, self._device)
        reference = self._encode(list(REFERENCE_TEXTS), "")
        fresh = True
        for self.precision in candidates:
            for packed in (True, False) if self._packed else (False,):
                if not fresh:  # a narrower type has cut the weights, or attention was exchanged
                    self._model = load_sentence_transformer(self._files, self._device)
                fresh = False
                if packed and not self._pack():
                    continue
                if not packed:
                    self._engine = None
                    self._model.to(self._dtype)
                self.check = check_vectors(self.precision, self._reference_vectors(), reference)
                if self.check.passed:
                    return
                if packed:
                    self._unpacked_because = f"packed it failed its {self.check}"
        raise SelfCheckError(
            f"'{self._files.name}' {self.check} on {self._device}, but the cosine must be at least "
            f"{MIN_COSINE[self.precision]}. Set precision to fp32.",
        )

    def _pack(self) -> bool:
        """Whether the model can run packed at all, on this device in this precision."""
        if self._device == "cuda" and self.precision == "fp32":
            self._unpacked_because = "CUDA's packed attention takes no fp32"
            return False
        try:
            packed = PackedModel(self._model, self._tokens)
            self._model[0].to(self._dtype)  # pooling and what follows stay in fp32
            self._engine = PackedEngine(packed, self._device, self._space.dimension, self._budget)
            self._reference_vectors()
        except Exception as error:
            # Of any kind: old GPUs, other versions of transformers and torch. Padded batches work.
            cause = error.__cause__ or error
            known = isinstance(cause, UnsupportedModelError)
            self._unpacked_because = str(cause) if known else f"{type(cause).__name__}: {cause}"
            self._engine = None
            return False
        self._unpacked_because = ""
        return True

    @property
    def _dtype(self) -> Any:
        import torch

        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            self.precision
        ]

    def _reference_vectors(self) -> np.ndarray:
        """What this model makes of the reference texts, with no help for what overflows."""
        if self._engine is not None:
            return self._engine.embed(self._tokens.tokenize(REFERENCE_TEXTS))
        return self._encode(list(REFERENCE_TEXTS), "")

    def _found_budget(self, engine: PackedEngine, cache: Path | None) -> int:
        import torch

        length = min(PROBE_LENGTH, self._space.max_tokens)

        def run(tokens: int) -> None:
            engine.run(max(1, tokens // length), length)

        def peak_bytes(tokens: int) -> int:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run(tokens)
            return torch.cuda.max_memory_allocated() - before

        def seconds(tokens: int) -> float:
            run(tokens)
            start = time.perf_counter()
            for _ in range(3):
                run(tokens)
            return (time.perf_counter() - start) / 3

        def search() -> int:
            run(PROBE_LENGTH)  # what libraries allocate once is no part of a batch
            torch.cuda.empty_cache()
            try:
                return search_budget(peak_bytes, seconds, torch.cuda.mem_get_info()[0])
            except Exception as error:
                if not out_of_memory(error):
                    raise ModelError(f"A first batch failed: {error}") from error
            return BATCH_TOKENS  # halved as need be

        key = f"{torch.cuda.get_device_name()}, {self._space.weights}, {self.precision}"
        return remembered_budget(cache and cache / "token_budgets.json", key, search)

    def _embed_padded(self, texts: Sequence[str], prompt: str, lengths: np.ndarray) -> np.ndarray:
        vectors = np.empty((len(texts), self._space.dimension), dtype=np.float32)
        with self._lock:
            for rows in token_batches(lengths, self._budget.tokens):
                batch = [texts[int(row)] for row in rows]
                vectors[rows] = self._embed_batch(batch, prompt, lengths[rows])
        return vectors

    def _embed_batch(self, texts: list[str], prompt: str, lengths: np.ndarray) -> np.ndarray:
        tokens = len(texts) * int(lengths.max())
        try:
            vectors = self._encode(texts, prompt)
            self._budget.succeeded(tokens)
            return vectors
        except Exception as error:
            if not out_of_memory(error):
                raise TextError(f"torch failed on a batch: {error}") from error
            if len(texts) == 1:
                raise TextOutOfMemoryError(
                    f"A text of {tokens} tokens alone does not fit in the memory of "
                    f"{self._device}: {error}",
                ) from error
        # Behind the except block, whose traceback would keep the tensors in memory.
        if self._device != "cpu":
            import torch

            torch.cuda.empty_cache() if self._device == "cuda" else torch.mps.empty_cache()
        self._budget.shrink(tokens)
        half = len(texts) // 2
        return np.concatenate(
            [
                self._embed_batch(texts[:half], prompt, lengths[:half]),
                self._embed_batch(texts[half:], prompt, lengths[half:]),
            ]
        )

    def _exact(self, texts: list[str], prompt: str) -> np.ndarray:
        """In fp32, for texts that a narrower type overflows on; loaded when first needed."""
        with self._lock:
            if self._exact_model is None:
                self._exact_model = load_sentence_transformer(self._files, self._device)
            try:
                return self._encode(texts, prompt, self._exact_model, batch_size=8)
            except Exception as error:
                raise failure(error, "torch failed in fp32", TextError) from error

    def _encode(
        self, texts: list[str], prompt: str, model: Any = None, batch_size: int | None = None
    ) -> np.ndarray:
        vectors = (model or self._model).encode(
            texts,
            prompt=prompt,
            batch_size=batch_size or len(texts),
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return vectors.astype(np.float32)
