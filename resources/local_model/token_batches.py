"""Texts to token ids, cut exactly as the model would cut them, and token ids to batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from resources.embedder import EmbeddingError


@dataclass(frozen=True)
class TokenizedTexts:
    """The token ids of n texts.

    Attributes:
        ids: n arrays of int64, special tokens included, none longer than the model's limit.
        lengths: shape (n,), int32; the lengths of `ids`.
        truncated: shape (n,), int32; tokens that were cut off.
    """

    ids: list[np.ndarray]
    lengths: np.ndarray
    truncated: np.ndarray


class TextTokenizer:
    """Not safe for use by two threads at a time."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, truncation_side: str) -> None:
        """Args:
        tokenizer: without truncation and padding.
        max_tokens: the model's limit, special tokens included.
        truncation_side: "right" or "left"; which end of a long text is cut off.
        """
        self._tokenizer = tokenizer
        self._truncation_side = truncation_side
        # Special tokens are put around here, so that a cut text keeps them and cuts are counted.
        probe = tokenizer.encode("a", add_special_tokens=True)
        special = np.array(probe.special_tokens_mask, dtype=bool)
        content = np.flatnonzero(~special)
        first, last = (content[0], content[-1] + 1) if len(content) else (len(special), 0)
        ids = np.array(probe.ids, dtype=np.int64)
        types = np.array(probe.type_ids, dtype=np.int64)
        bare = tokenizer.encode("a", add_special_tokens=False).ids
        if list(ids[first:last]) != bare or not bare:
            raise EmbeddingError(
                "tokenize", "The tokenizer places special tokens inside the text: not supported."
            )
        self._prefix, self._suffix = ids[:first], ids[last:]
        self._types = types[:first], types[first], types[last:]
        self._room = max_tokens - len(self._prefix) - len(self._suffix)

    def tokenize(self, texts: Sequence[str], prompt: str = "") -> TokenizedTexts:
        """Raises:
        EmbeddingError: a text cannot be tokenized, for example for a lone surrogate in it.
        """
        inputs = [prompt + text for text in texts] if prompt else list(texts)
        try:
            encodings = self._tokenizer.encode_batch_fast(inputs, add_special_tokens=False)
        except Exception as error:
            raise self._explained(inputs, error) from error
        ids = []
        truncated = np.zeros(len(inputs), dtype=np.int32)
        for row, encoding in enumerate(encodings):
            content = np.array(encoding.ids, dtype=np.int64)
            if len(content) > self._room:
                truncated[row] = len(content) - self._room
                left = self._truncation_side == "left"
                content = content[truncated[row] :] if left else content[: self._room]
            ids.append(np.concatenate((self._prefix, content, self._suffix)))
        lengths = np.array([len(row) for row in ids], dtype=np.int32)
        return TokenizedTexts(ids, lengths, truncated)

    def padded(self, ids: Sequence[np.ndarray], pad_id: int) -> dict[str, np.ndarray]:
        """Pads to the longest, on the right.

        Returns:
            input_ids, attention_mask and token_type_ids, each of shape (n, longest), int64.
        """
        shape = (len(ids), max(1, *map(len, ids)))  # a model takes at least one token
        input_ids = np.full(shape, pad_id, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        token_type_ids = np.zeros(shape, dtype=np.int64)
        before, within, after = self._types
        for row, sequence in enumerate(ids):
            end = len(sequence)
            input_ids[row, :end] = sequence
            attention_mask[row, :end] = 1
            if within or before.any() or after.any():
                token_type_ids[row, : len(before)] = before
                token_type_ids[row, len(before) : end - len(after)] = within
                token_type_ids[row, end - len(after) : end] = after
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
        }

    def _explained(self, inputs: list[str], error: Exception) -> EmbeddingError:
        for position, text in enumerate(inputs):
            try:
                self._tokenizer.encode(text)
            except Exception as cause:
                return EmbeddingError(
                    "tokenize", f"Text {position} of {len(inputs)} cannot be tokenized: {cause}"
                )
        return EmbeddingError("tokenize", f"The texts cannot be tokenized: {error}")


def token_batches(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Groups texts of like length, longest first, so that little is padded.

    Args:
        lengths: shape (n,), int; tokens of each text.
        batch_tokens: most tokens of a batch, padding included; a longer text goes alone.

    Yields:
        Row numbers of one batch.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        end = start + max(1, batch_tokens // longest)
        yield order[start:end]
        start = end
