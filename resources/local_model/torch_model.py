"""A sentence-transformers model through torch: on a GPU, or where OpenVINO cannot run it."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from resources.embedder import EmbeddingBatch, EmbeddingError
from resources.embedding_space import EmbeddingSpace
from resources.local_model.model_compiler import REFERENCE_TEXTS, load_sentence_transformer
from resources.local_model.model_files import ModelFiles
from resources.local_model.openvino_model import MIN_COSINE, SelfCheck, check_vectors
from resources.local_model.token_batches import TextTokenizer, token_batches


class TorchModel:
    """`SentenceTransformer.encode` on batches of like length; safe to share between threads."""

    def __init__(
        self,
        files: ModelFiles,
        space: EmbeddingSpace,
        device: str,
        precision: str,
        batch_tokens: int,
    ) -> None:
        """Args:
        files: the model's files.
        space: the embedding space of the vectors.
        device: "cpu", "cuda" or "mps".
        precision: "fp32", "bf16" or "fp16".
        batch_tokens: most tokens of a batch, padding included.

        Raises:
            EmbeddingError: the model cannot be loaded, or deviates in this precision.
        """
        import torch

        self._device = device
        self._precision = precision
        self._batch_tokens = batch_tokens
        self._dimension = space.dimension
        self._lock = threading.Lock()
        self._tokens = TextTokenizer(files.tokenizer(), space.max_tokens, files.truncation_side)
        self._model: Any = load_sentence_transformer(files, device)
        reference = self._encode(list(REFERENCE_TEXTS), "")
        if precision != "fp32":
            self._model.to({"bf16": torch.bfloat16, "fp16": torch.float16}[precision])
        self.check: SelfCheck = check_vectors(
            precision, self._encode(list(REFERENCE_TEXTS), ""), reference
        )
        if not self.check.passed:
            raise EmbeddingError(
                "self-check",
                f"'{files.name}' {self.check} on {device}, but the cosine must be at least "
                f"{MIN_COSINE[precision]}. Set precision to fp32.",
            )

    def embed(self, texts: Sequence[str], prompt: str = "") -> EmbeddingBatch:
        """Raises:
        EmbeddingError: a text cannot be tokenized, or torch failed.
        """
        with self._lock:
            tokenized = self._tokens.tokenize(texts, prompt)
            vectors = np.empty((len(texts), self._dimension), dtype=np.float32)
            for rows in token_batches(tokenized.lengths, self._batch_tokens):
                vectors[rows] = self._embed_batch([texts[int(row)] for row in rows], prompt)
        return EmbeddingBatch(vectors, tokenized.lengths, tokenized.truncated)

    def __str__(self) -> str:
        import torch

        name = torch.cuda.get_device_name() if self._device == "cuda" else self._device
        return f"torch {torch.__version__} in {self._precision} on {name}"

    def _embed_batch(self, texts: list[str], prompt: str) -> np.ndarray:
        import torch

        try:
            return self._encode(texts, prompt)
        except Exception as error:
            if "out of memory" not in str(error).lower() or len(texts) == 1:
                raise EmbeddingError("infer", f"torch failed on a batch: {error}") from error
        # Behind the except block, whose traceback would keep the tensors in memory.
        if self._device == "cuda":
            torch.cuda.empty_cache()
        self._batch_tokens = max(1, self._batch_tokens // 2)
        half = len(texts) // 2
        return np.concatenate(
            [self._embed_batch(texts[:half], prompt), self._embed_batch(texts[half:], prompt)]
        )

    def _encode(self, texts: list[str], prompt: str) -> np.ndarray:
        vectors = self._model.encode(
            texts,
            prompt=prompt,
            batch_size=len(texts),
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return vectors.astype(np.float32)
