"""Texts to token ids, cut exactly as the model would cut them, and token ids to batches."""

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from tokenizers import Tokenizer

from resources.embedders.base import EmbeddingBatch
from resources.errors import EmbeddingError, ModelError, TextError

_UNKNOWN = ("[UNK]", "<unk>")
_SPACE = "\u2581"  # SentencePiece puts it before a word that it does not know
_NO_TOKEN = -1
_LANES = 16
_MOST_PADDING = 1 / 32


@dataclass(frozen=True)
class TokenizedTexts:
    """The token ids of n texts.

    Attributes:
        tokens: shape (sum of lengths,), int64; the ids of all texts end to end, special tokens
            included.
        lengths: shape (n,), int32; none above the model's limit.
        truncated: shape (n,), int32; tokens that were cut off.
        unknown: shape (n,), int32; how many of a text are the token for what is not known;
            None: nobody looked.
        known: shape (n,), int32; how many are another token, without prompt and special tokens.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray
    unknown: np.ndarray | None = None
    known: np.ndarray | None = None

    def with_vectors(self, vectors: np.ndarray) -> EmbeddingBatch:
        """The texts with their vectors, of shape (n, dimension)."""
        return EmbeddingBatch(
            vectors,
            self.lengths,
            self.truncated,
            unknown_tokens=self.unknown,
            known_tokens=self.known,
        )

    @cached_property
    def ids(self) -> list[np.ndarray]:
        """The ids of each text: n views of `tokens`."""
        ends = np.cumsum(self.lengths).tolist()
        starts = [0, *ends[:-1]]
        return [self.tokens[start:end] for start, end in zip(starts, ends, strict=True)]


class TextTokenizer:
    """Tokenizes texts and puts special tokens around them; for one thread at a time."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, truncation_side: str) -> None:
        """Learns from the tokenizer which special tokens go around a text.

        Args:
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
            raise ModelError("The tokenizer places special tokens inside the text: not supported.")
        self._prefix, self._suffix = ids[:first], ids[last:]
        self._types = types[:first], types[first], types[last:]
        self._max_tokens = max_tokens
        self._room = max_tokens - len(self._prefix) - len(self._suffix)
        named = getattr(tokenizer.model, "unk_token", None)
        ids_of = [tokenizer.token_to_id(name) for name in (named, *_UNKNOWN) if name]
        self._unknown = next((found for found in ids_of if found is not None), _NO_TOKEN)
        space = tokenizer.token_to_id(_SPACE)
        self._space = _NO_TOKEN if space is None else space

    def tokenize(self, texts: Sequence[str], prompt: str = "") -> TokenizedTexts:
        """Tokenizes the texts, each with the prompt before it, and cuts those that are too long.

        Raises:
            EmbeddingError: a text cannot be tokenized, for example for a lone surrogate in it.
        """
        inputs = [prompt + text for text in texts] if prompt else list(texts)
        try:
            encodings = self._tokenizer.encode_batch_fast(inputs, add_special_tokens=False)
        except Exception as error:
            raise self._explained(inputs, error) from error
        counts = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
        # Never an array for each text: that would cost as much as tokenizing it.
        content = np.fromiter(
            chain.from_iterable(encoding.ids for encoding in encodings),
            dtype=np.int64,
            count=int(counts.sum()),
        )
        truncated = np.maximum(counts - self._room, 0)
        if truncated.any():
            place = positions(counts)
            if self._truncation_side == "left":
                content = content[place >= np.repeat(truncated, counts)]
            else:
                content = content[place < self._room]
        kept = counts - truncated
        lengths = kept + len(self._prefix) + len(self._suffix)
        unknown = _count(content == self._unknown, kept)
        known = kept - unknown - _count(content == self._space, kept)
        if prompt:
            known = np.maximum(known - self._known_of(prompt), 0)
        return TokenizedTexts(
            self._surrounded(lengths, self._prefix, content, self._suffix),
            lengths.astype(np.int32),
            truncated.astype(np.int32),
            unknown.astype(np.int32),
            known.astype(np.int32),
        )

    def _known_of(self, prompt: str) -> int:
        known = self.tokenize([prompt]).known
        return 0 if known is None else int(known[0])

    def token_types(self, lengths: np.ndarray) -> np.ndarray:
        """Shape (sum of lengths,), int64; the type ids of texts end to end."""
        before, within, after = self._types
        return self._surrounded(lengths, before, within, after)

    @staticmethod
    def _surrounded(
        lengths: np.ndarray, prefix: np.ndarray, content: np.ndarray, suffix: np.ndarray
    ) -> np.ndarray:
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = ends - lengths
        first = starts[:, None] + np.arange(len(prefix))
        last = ends[:, None] - len(suffix) + np.arange(len(suffix))
        whole = np.empty(int(lengths.sum()), dtype=np.int64)
        inside = np.ones(len(whole), dtype=bool)
        inside[first] = inside[last] = False
        whole[inside] = content
        whole[first], whole[last] = prefix, suffix
        return whole

    def padded(self, ids: Sequence[np.ndarray], pad_id: int) -> dict[str, np.ndarray]:
        """Pads on the right, to `padded_length` of the longest.

        Returns:
            input_ids, attention_mask and token_type_ids, each of shape (n, length), int64.
        """
        lengths = np.array([len(row) for row in ids])
        length = padded_length(int(lengths.max()), self._max_tokens)
        mask = np.arange(length) < lengths[:, None]
        input_ids = np.full(mask.shape, pad_id, dtype=np.int64)
        token_type_ids = np.zeros(mask.shape, dtype=np.int64)
        input_ids[mask] = np.concatenate(ids)
        token_type_ids[mask] = self.token_types(lengths)
        return {
            "input_ids": input_ids,
            "attention_mask": mask.astype(np.int64),
            "token_type_ids": token_type_ids,
        }

    def _explained(self, inputs: list[str], error: Exception) -> EmbeddingError:
        for position, text in enumerate(inputs):
            try:
                self._tokenizer.encode(text)
            except Exception as cause:
                return TextError(f"Text {position} of {len(inputs)} cannot be tokenized: {cause}")
        return TextError(f"The texts cannot be tokenized: {error}")


class TokenizerPool:
    """`TextTokenizer` for several threads; kept, for large vocabularies load slowly."""

    def __init__(
        self, new_tokenizer: Callable[[], Tokenizer], max_tokens: int, truncation_side: str
    ) -> None:
        """Makes tokenizers as threads need them.

        Args:
            new_tokenizer: makes one that nobody else uses.
            max_tokens, truncation_side: as in `TextTokenizer`.
        """
        self._new = lambda: TextTokenizer(new_tokenizer(), max_tokens, truncation_side)
        self._idle: queue.LifoQueue[TextTokenizer] = queue.LifoQueue()

    def tokenize(self, texts: Sequence[str], prompt: str = "") -> TokenizedTexts:
        """Tokenizes as `TextTokenizer` does, with a tokenizer that no other thread uses meanwhile.

        Raises:
            EmbeddingError: a text cannot be tokenized.
        """
        try:
            tokenizer = self._idle.get_nowait()
        except queue.Empty:
            tokenizer = self._new()
        try:
            return tokenizer.tokenize(texts, prompt)
        finally:
            self._idle.put(tokenizer)


def _count(matches: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Shape (n,); how many tokens match in each of n texts that lie end to end."""
    rows = np.searchsorted(np.cumsum(lengths), np.flatnonzero(matches), side="right")
    return np.bincount(rows, minlength=len(lengths))


def positions(lengths: np.ndarray) -> np.ndarray:
    """Shape (sum of lengths,), int64; 0, 1, 2, … within each of texts that lie end to end."""
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths)


def padded_length(longest: int, max_tokens: int) -> int:
    """How many tokens long the rows of a batch are to be, whose longest text has `longest`.

    OpenVINO's attention is faster over a multiple of 16 tokens, which is worth 3 % more of them.
    """
    longest = max(1, longest)  # a model takes at least one token
    rounded = -(-longest // _LANES) * _LANES
    worth_it = rounded <= min(longest * (1 + _MOST_PADDING), max_tokens)
    return rounded if worth_it else longest


def token_batches(
    lengths: np.ndarray, batch_tokens: int, tokens_of_a_batch: int | None = None
) -> Iterator[np.ndarray]:
    """Groups texts of like length, longest first, so that little is padded.

    Args:
        lengths: shape (n,), int; tokens of each text.
        batch_tokens: maximum number of tokens of a batch, padding to its longest text included;
            a longer text goes alone.
        tokens_of_a_batch: what a batch costs beside its tokens, in tokens; texts that fit one batch
            are then cut into those that cost least. None: one is best.

    Yields:
        Row numbers of one batch.
    """
    order = np.argsort(-lengths, kind="stable")
    fits = len(order) and len(order) * lengths[order[0]] <= batch_tokens
    if fits and tokens_of_a_batch is not None:  # few, as a service has them
        yield from np.split(order, _cuts(lengths[order], tokens_of_a_batch))
        return
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        end = start + max(1, batch_tokens // longest)
        yield order[start:end]
        start = end


def _cuts(lengths: np.ndarray, tokens_of_a_batch: int) -> list[int]:
    """Where to cut a batch that fits, so that padding and further batches cost least.

    Args:
        lengths: shape (n,), int; descending.
        tokens_of_a_batch: as in `token_batches`.

    Returns:
        Row numbers at which a further batch begins.
    """
    starts = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist()]  # of runs of one length
    if len(starts) == 1:
        return []
    of_run = lengths[starts].tolist()
    ends = [*starts[1:], len(lengths)]
    least, begins = [0], [0]  # tokens for all before a run, and where the last batch begins
    for end in ends:
        costs = [
            cost + tokens_of_a_batch + longest * (end - start)
            for cost, longest, start in zip(least, of_run, starts, strict=False)
        ]
        cheapest = min(costs)
        begins.append(costs.index(cheapest))
        least.append(cheapest)
    cuts, run = [], len(starts)
    while (run := begins[run]) > 0:
        cuts.append(starts[run])
    return cuts[::-1]
