"""Runs a `PackedModel` on one device: copies overlap with compute, and memory may run out."""

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from resources.embedders.local_model.library_errors import failure, out_of_memory
from resources.embedders.local_model.packed_attention import PackedModel
from resources.embedders.local_model.token_batches import TokenizedTexts
from resources.embedders.local_model.token_budget import TokenBudget
from resources.errors import EmbeddingError, TextError, TextOutOfMemoryError

IN_FLIGHT = 3
"""Batches between the copy to the device and the copy back."""


@dataclass
class _Pending:
    """A batch on its way. The host's tensors stay here, for the device still reads them."""

    rows: np.ndarray
    tokens: int
    vectors: Any
    inputs: tuple[Any, ...]
    done: Any


class PackedEngine:
    """May be called from several threads: while one waits for its vectors, the next hands in its
    batches, so that the device has always work."""

    def __init__(
        self, model: PackedModel, device: str, dimension: int, budget: TokenBudget
    ) -> None:
        """Prepares streams and buffers on the device.

        Args:
            model: the model, on the device.
            device: "cuda", or "cpu" for tests.
            dimension: values kept of each vector.
            budget: maximum number of tokens of a batch.
        """
        import torch

        self.budget = budget
        self._model = model
        self._device = torch.device(device)
        self._dimension = dimension
        self._submitting = threading.Lock()
        self._slots = threading.BoundedSemaphore(IN_FLIGHT)
        self._cuda = self._device.type == "cuda"
        if self._cuda:
            self._copy_in, self._copy_out = torch.cuda.Stream(), torch.cuda.Stream()

    def embed(self, texts: TokenizedTexts) -> np.ndarray:
        """Embeds tokenized texts, the longest first.

        Returns:
            Shape (n, dimension), float32, in the order of the texts; a text without a token gets
            the zero vector.

        Raises:
            EmbeddingError: torch failed, or one text alone does not fit in memory.
        """
        vectors = np.zeros((len(texts.lengths), self._dimension), dtype=np.float32)
        order = np.argsort(-texts.lengths, kind="stable")
        order = order[: np.count_nonzero(texts.lengths)]
        pending: deque[_Pending] = deque()
        try:
            with self._submitting:
                self._submit_all(texts, order, pending, vectors)
            while pending:
                self._collect(pending, vectors)
        except EmbeddingError:
            raise
        except Exception as error:
            raise failure(error, "torch failed on a batch", TextError) from error
        finally:
            for _ in pending:  # of a failed call
                self._slots.release()
        return vectors

    def run(self, count: int, length: int) -> None:
        """Embeds one batch of random tokens, for measurements; waits for its end.

        Raises:
            torch.OutOfMemoryError: it does not fit.
        """
        lengths = np.full(count, length, dtype=np.int32)
        ids = np.random.default_rng(0).integers(5, 400, count * length)
        texts = TokenizedTexts(ids, lengths, np.zeros(count, dtype=np.int32))
        self._finish(self._launch(texts, np.arange(count)))

    def _submit_all(
        self,
        texts: TokenizedTexts,
        order: np.ndarray,
        pending: deque[_Pending],
        vectors: np.ndarray,
    ) -> None:
        before = np.concatenate(([0], np.cumsum(texts.lengths[order], dtype=np.int64)))
        start, emptied = 0, False
        while start < len(order):
            # At least one text, then as many more as the budget, which may have shrunk, allows.
            end = int(np.searchsorted(before, before[start] + self.budget.tokens, "right")) - 1
            end = max(start + 1, end)
            tokens = int(before[end] - before[start])
            while not self._slots.acquire(blocking=not pending):
                self._collect(pending, vectors)
            batch = None
            try:
                batch = self._launch(texts, order[start:end])
            except Exception as error:
                if not out_of_memory(error):
                    raise
            finally:
                if batch is None:
                    self._slots.release()
            if batch is not None:
                pending.append(batch)
                self.budget.succeeded(tokens)
                start, emptied = end, False
                continue
            # Behind the except block, whose traceback would keep the batch's tensors in memory.
            while pending:
                self._collect(pending, vectors)
            self._empty_cache()
            if end - start > 1:
                self.budget.shrink(tokens)
            elif emptied:
                raise TextOutOfMemoryError(
                    f"Text {int(order[start])} of {len(texts.lengths)} ({tokens} tokens) alone "
                    f"does not fit in the memory of {self._device}.",
                )
            else:
                emptied = True

    def _launch(self, texts: TokenizedTexts, rows: np.ndarray) -> _Pending:
        import torch

        lengths = texts.lengths[rows]
        arrays = self._model.inputs(np.concatenate([texts.ids[row] for row in rows]), lengths)
        host: tuple[Any, ...] = tuple(torch.from_numpy(array) for array in arrays)
        if not self._cuda:
            inputs, starts = host
            vectors = self._model.forward(inputs, starts, lengths)[:, : self._dimension]
            return _Pending(rows, int(lengths.sum()), vectors, host, None)
        host = tuple(tensor.pin_memory() for tensor in host)
        compute = torch.cuda.current_stream()
        with torch.cuda.stream(self._copy_in):
            inputs, starts = (tensor.to(self._device, non_blocking=True) for tensor in host)
        compute.wait_stream(self._copy_in)
        inputs.record_stream(compute)
        starts.record_stream(compute)
        result = self._model.forward(inputs, starts, lengths)[:, : self._dimension].contiguous()
        self._copy_out.wait_stream(compute)
        vectors = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        with torch.cuda.stream(self._copy_out):
            vectors.copy_(result, non_blocking=True)
            result.record_stream(self._copy_out)
            done = torch.cuda.Event()
            done.record()
        return _Pending(rows, int(lengths.sum()), vectors, host, done)

    def _collect(self, pending: deque[_Pending], vectors: np.ndarray) -> None:
        batch = pending.popleft()
        try:
            vectors[batch.rows] = self._finish(batch)
        finally:
            self._slots.release()

    @staticmethod
    def _finish(batch: _Pending) -> np.ndarray:
        if batch.done is not None:
            batch.done.synchronize()
        return batch.vectors.numpy()

    def _empty_cache(self) -> None:
        if self._cuda:
            import torch

            torch.cuda.synchronize()
            torch.cuda.empty_cache()
