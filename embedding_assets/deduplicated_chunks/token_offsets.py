"""Token offsets of whole documents, fast, with memory bounded by the largest result."""

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from embedding_assets.deduplicated_chunks.boundaries import WORD, Offsets

# --- Token offsets -------------------------------------------------------------------------------

_PIECE_CHARACTERS = 1 << 17
_GROUP_CHARACTERS = 1 << 20
_REMEMBERED_TOKENS = 1 << 20
_SEPARATED = re.compile(r"[^ \t\n]+")

_PER_CHARACTER_NORMALIZERS = {
    "BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled",
    "StripAccents",
}  # fmt: skip


class _Numbering(dict[str, int]):
    """Gives each new word the next number, and lists it."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        self.new.append(word)
        return number


class _Piece(NamedTuple):
    """A part of a document's text, and where in it the part begins."""

    document: int
    start: int
    text: str


class DocumentTokenizer:
    """Token offsets of whole documents, fast, with memory bounded by the largest result.

    Most models tokenise each white-space separated word by itself (BERT, MPNet, XLM-R; not GPT-like
    byte-level ones). For those each distinct word is tokenised once and remembered, which is
    several times as fast as tokenising running text, with the same result.

    Not thread-safe: one instance, and one `Tokenizer`, per thread.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wraps a raw tokenizer.

        Args:
            tokenizer: with `no_truncation()` and `no_padding()` called.

        Raises:
            ValueError: it truncates or pads, so that offsets would not cover the document.
        """
        if tokenizer.truncation is not None or tokenizer.padding is not None:
            raise ValueError(
                "the tokenizer truncates or pads; call no_truncation() and no_padding() on it first"
            )
        self._tokenizer = tokenizer
        self.words_are_independent = _words_are_independent(tokenizer)
        self._forget()

    def _forget(self) -> None:
        self._numbers = _Numbering()
        # Word n has the tokens pairs[2 * bounds[n] : 2 * bounds[n + 1]], relative to the word.
        self._bounds = array("i", [0])
        self._pairs = array("i")

    def offsets(self, texts: Sequence[str]) -> list[Offsets]:
        """The character span of every token, without special tokens.

        Args:
            texts: canonical texts; many small ones at once are faster than one by one.

        Returns:
            For each text an array of shape (tokens, 2), int32. In a text longer than 131,072
            characters without any space or line feed, tokens end there too.
        """
        found: list[list[Offsets]] = [[] for _ in texts]
        for group in _groups(_pieces(texts)):
            encode = self._encode_words if self.words_are_independent else self._encode_directly
            for piece, offsets in zip(group, encode([p.text for p in group]), strict=True):
                found[piece.document].append(offsets + np.int32(piece.start))
        return [
            parts[0] if len(parts) == 1 else np.concatenate([_NO_TOKENS, *parts]) for parts in found
        ]

    def _encode_directly(self, texts: list[str]) -> list[Offsets]:
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [
            np.fromiter(chain.from_iterable(e.offsets), np.int32, 2 * len(e)).reshape(-1, 2)
            for e in encodings
        ]

    def _encode_words(self, texts: list[str]) -> list[Offsets]:
        if len(self._pairs) > 2 * _REMEMBERED_TOKENS:
            self._forget()
        joined = "\n".join(texts)
        words = _SEPARATED.findall(joined)
        numbers = np.fromiter(map(self._numbers.__getitem__, words), np.intp, len(words))
        self._learn()
        bounds = np.frombuffer(self._bounds, np.int32)
        pairs = np.frombuffer(self._pairs, np.int32).reshape(-1, 2)
        counts = bounds[numbers + 1] - bounds[numbers]
        last = np.cumsum(counts)
        shift = np.repeat(bounds[numbers] - (last - counts), counts)
        offsets = pairs[np.arange(len(shift)) + shift]
        offsets += np.repeat(_word_starts(joined), counts)[:, None]

        text_ends = np.cumsum([len(text) + 1 for text in texts])
        cuts = np.searchsorted(offsets[:, 0], text_ends[:-1])
        starts = np.concatenate([[0], text_ends[:-1]]).astype(np.int32)
        parts = np.split(offsets, cuts)
        return [part - start for part, start in zip(parts, starts, strict=True)]

    def _learn(self) -> None:
        """Tokenises the words numbered since the last call."""
        new, self._numbers.new = self._numbers.new, []
        if not new:
            return
        joined = "\n".join(new)
        [offsets] = self._encode_directly([joined])
        starts = _word_starts(joined)
        # Added tokens such as <mask> may take the white space before them: the word before ends it.
        offsets[:, 0] += np.isin(offsets[:, 0], starts[1:] - 1)
        ends = np.searchsorted(offsets[:, 0], np.append(starts[1:], len(joined)))
        relative = offsets - np.repeat(starts, np.diff(ends, prepend=0))[:, None]
        self._bounds.frombytes((ends + self._bounds[-1]).astype(np.int32).tobytes())
        self._pairs.frombytes(relative.tobytes())


_NO_TOKENS: Offsets = np.empty((0, 2), np.int32)


def _pieces(texts: Sequence[str]) -> Iterator[_Piece]:
    """Documents, long ones cut at the end of a line, else of a word, else anywhere."""
    for document, text in enumerate(texts):
        start = 0
        while len(text) - start > _PIECE_CHARACTERS:
            limit = start + _PIECE_CHARACTERS
            # Before the white space: with GPT-like tokenizers it belongs to the word after it.
            cut = max(text.rfind("\n", start, limit), text.rfind(" ", start, limit))
            cut = cut if cut > start else limit
            yield _Piece(document, start, text[start:cut])
            start = cut
        yield _Piece(document, start, text[start:])


def _groups(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces by the handful, so that one call's memory is bounded."""
    group: list[_Piece] = []
    characters = 0
    for piece in pieces:
        group.append(piece)
        characters += len(piece.text)
        if characters >= _GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _word_starts(text: str) -> npt.NDArray[np.int32]:
    """Where the matches of `_SEPARATED` begin."""
    if text.isascii():
        codes = np.frombuffer(text.encode(), np.uint8)
    else:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    in_word = (codes != 32) & (codes != 10) & (codes != 9)
    in_word[1:] &= ~in_word[:-1].copy()
    return np.flatnonzero(in_word).astype(np.int32)


def _words_are_independent(tokenizer: Tokenizer) -> bool:
    """Whether a word's tokens are the same whatever stands before and after the white space."""
    pre_tokenizer = _parts(tokenizer.pre_tokenizer, "pretokenizers")
    splits_first = pre_tokenizer[:1] and pre_tokenizer[0]["type"] in (
        "BertPreTokenizer", "Whitespace", "WhitespaceSplit",
    )  # fmt: skip
    then_alike = all(
        part["type"] in ("Punctuation", "Digits", "WhitespaceSplit")
        or (part["type"] == "Metaspace" and part.get("prepend_scheme") == "always")
        for part in pre_tokenizer[1:]
    )
    normalized_alike = all(
        part["type"] in _PER_CHARACTER_NORMALIZERS
        for part in _parts(tokenizer.normalizer, "normalizers")
    )
    added = tokenizer.get_added_tokens_decoder().values()
    return bool(
        splits_first
        and then_alike
        and normalized_alike
        and not any(WORD.search(token.content) for token in added)
    )


def _parts(component: Any, key: str) -> list[dict[str, Any]]:
    """The settings of a tokenizer's component, one entry for each step of a sequence."""
    if component is None:
        return []
    state = json.loads(component.__getstate__())
    return state.get(key, [state])
