"""Splits a document into chunks along its own structure, so that an edit changes few of them.

Every place where a chunk may begin has a price: nothing at a heading, more at a paragraph, more yet
at a sentence, and so on down to the token. Within a level the price depends on a hash of the text
that follows. `split` takes the cheapest set of places that keeps every chunk within the limit.
Prices depend on nearby text alone, so the cheapest sets before and after an edit are the same again
a few paragraphs away, and at the next heading at the latest. Chunks counted off from the start of
the document would all move instead.
"""

import json
import re
import zlib
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

Offsets = npt.NDArray[np.int32]
"""Shape (tokens, 2): the character span [start, end) of each token of a text."""


ALGORITHM_VERSION = 2
"""To be raised when equal text would be cut elsewhere, so that known documents are cut anew."""


class Chunk(NamedTuple):
    """A contiguous slice of a document's text, without white space at either end."""

    start: int
    """First character."""
    end: int
    """One past the last character."""
    tokens: int
    """Number of tokens of the document that lie in the slice."""
    headings: tuple[str, ...]
    """Titles it stands under, outermost first, with that of a heading at its own beginning. With
    overlap: at the beginning of the part that is not in the chunk before."""


# --- Where a chunk may begin ---------------------------------------------------------------------

_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")
_WHITE_SPACE = re.compile(r"\s*")

# A match ends where a piece may begin; from coarse to fine. The finest level, tokens, is not here.
_SENTENCE_OR_LIST_ITEM = re.compile(
    r"""[.!?…]["'”’»)\]*_`]*\s+|[。！？｡।॥።။۔؟]+\s*|\n\s*(?=(?:[-*+•]|\d{1,3}[.)])\s)"""
)
_LINE = re.compile(r"\n\s*")
_WORD = re.compile(r"\s+")
_FINER_LEVELS = (_SENTENCE_OR_LIST_ITEM, _LINE, _WORD)

# Searched in "\n" + text: a pattern that begins with a literal is found at memory speed.
_HEADING = re.compile(
    r"""\n(?:
      (?P<fence>```)
    | (?P<hashes>\#{1,6}) [ \t]+ (?P<atx>\S[^\n]*)
    | (?P<over>(?P<o>[=\-~^"'`\#*+.:_]) (?P=o){2,}) [ \t]* \n
      [ \t]* (?P<overlined>\S[^\n]*) \n (?P=over) [ \t]* (?=\n|\Z)
    | (?<!\S\n) (?P<underlined>\S[^\n]*) \n
      (?P<under>(?P<u>[=\-~^"'`\#*+.:_]) (?P=u){2,}) [ \t]* (?=\n|\Z)
    )""",
    re.VERBOSE,
)


class Heading(NamedTuple):
    """A section title in a document."""

    start: int
    end: int
    level: int
    """1 is the outermost."""
    title: str


def find_headings(text: str) -> list[Heading]:
    """Section titles: Markdown `#`, and titles underlined (and overlined) as in reStructuredText.

    As in reStructuredText, the first style of underlining in a document is its outermost level, the
    second the next, and so on. What looks like a title within a fenced code block is none.

    Args:
        text: canonical text (line feeds only).

    Returns:
        The headings in the order of the text; spans do not overlap.
    """
    found: list[Heading] = []
    styles: list[str] = []
    in_fence = False
    for match in _HEADING.finditer("\n" + text):
        if match["fence"]:
            in_fence = not in_fence
            continue
        if in_fence:
            continue
        if match["hashes"]:
            level, title = len(match["hashes"]), match["atx"].rstrip("# \t")
        else:
            title = (match["overlined"] or match["underlined"]).rstrip()
            line, style = (
                (match["over"], "overlined " + match["o"])
                if match["over"]
                else (match["under"], match["u"])
            )
            # Only Markdown's underlines (= and -) may be shorter than the title.
            if (len(line) < len(title) and style not in "=-") or line == "...":
                continue
            if style not in styles:
                styles.append(style)
            level = styles.index(style) + 1
        if any(map(str.isalnum, title)):
            found.append(Heading(match.start(), match.end() - 1, level, title))
    return found


def _paths(headings: Sequence[Heading]) -> list[tuple[str, ...]]:
    """For each heading, the titles from the outermost down to itself."""
    paths: list[tuple[str, ...]] = []
    open_headings: list[Heading] = []
    for heading in headings:
        while open_headings and open_headings[-1].level >= heading.level:
            open_headings.pop()
        open_headings.append(heading)
        paths.append(tuple(each.title for each in open_headings))
    return paths


class _Tokens:
    """Answers how many tokens lie before a position, and whether a cut there leaves all whole."""

    def __init__(self, text: str, offsets: npt.NDArray[np.integer]) -> None:
        self.text = text
        self.starts = np.ascontiguousarray(offsets[:, 0])
        self.ends = np.maximum.accumulate(offsets[:, 1])

    def before(self, positions: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.intp]:
        # By the end, not the start: the tokens of some models begin with the space before a word.
        return np.searchsorted(self.ends, np.asarray(positions, self.ends.dtype), side="right")

    def cuttable(self, positions: list[int]) -> list[int]:
        """Those of the positions (each at a non-white character) that lie within no token."""
        if not positions or not len(self.starts):
            return positions
        next_token = np.minimum(self.before(positions), len(self.starts) - 1)
        suspects = np.flatnonzero(self.starts[next_token] < positions)
        within = {
            positions[i]
            for i in suspects
            if self.ends[next_token[i]] > positions[i]
            and not self.text[self.starts[next_token[i]] : positions[i]].isspace()
        }
        return [p for p in positions if p not in within] if within else positions

    def edges(self, start: int, end: int) -> list[int]:
        """Where tokens begin within the span, both ends excluded, outside any other token."""
        first, last = self.before((start, end))
        starts = self.starts[first + 1 : last]
        free = (starts >= self.ends[first : last - 1]) & (starts > start) & (starts < end)
        positions = np.unique(starts[free]).tolist()
        return [p for p in positions if not self.text[p].isspace()]


def _inner_starts(
    tokens: _Tokens, start: int, body: int, end: int, limit: int, level: int
) -> Iterator[tuple[int, int]]:
    """(position, level) of the places after `body` to cut a span of more than `limit` tokens at."""
    if level > len(_FINER_LEVELS):
        text = tokens.text
        for position in tokens.edges(body, end):
            # Half a word may make other tokens alone than within the word: the last resort.
            in_word = text[position - 1].isalnum() and text[position].isalnum()
            yield position, level + in_word
        return
    found = _FINER_LEVELS[level - 1].finditer(tokens.text, body, end)
    inner = tokens.cuttable([m.end() for m in found if m.end() < end])
    edges = [start, *inner, end]
    too_long = np.diff(tokens.before(edges)) > limit
    for piece, is_too_long in enumerate(too_long.tolist()):
        if piece:
            yield edges[piece], level
        if is_too_long:
            first, last = edges[piece], edges[piece + 1]
            yield from _inner_starts(tokens, first, max(first, body), last, limit, level + 1)


def _starts(
    tokens: _Tokens, headings: Sequence[Heading], begin: int, end: int, limit: int
) -> list[tuple[int, int]]:
    """(position, level) of all places where a chunk may begin: -1 a heading, 0 a paragraph, ..."""
    text = tokens.text
    levels = {begin: 0}
    levels.update((match.end(), 0) for match in _BLANK_LINES.finditer(text, begin, end))
    levels.update((heading.start, -1) for heading in headings)
    bodies: dict[int, int] = {}  # a heading stays with what follows it, be it another heading
    block = begin
    for heading in headings:
        if heading.start in levels:
            block = heading.start
        following = _WHITE_SPACE.match(text, heading.end)
        body = following.end() if following else heading.end
        levels.pop(body, None)
        bodies[block] = body
    positions = tokens.cuttable(sorted(levels))
    if not positions or positions[0] != begin:
        positions.insert(0, begin)
    too_long = np.diff(tokens.before([*positions, end])) > limit
    if not too_long.any():
        return [(position, levels.get(position, 0)) for position in positions]
    starts: list[tuple[int, int]] = []
    for start, stop, is_too_long in zip(positions, [*positions[1:], end], too_long, strict=True):
        starts.append((start, levels.get(start, 0)))
        if is_too_long:
            body = bodies.get(start, start)
            if np.diff(tokens.before((start, body))) * 2 > limit:
                body = start  # of headings alone
            starts.extend(_inner_starts(tokens, start, body, stop, limit, 1))
    return starts


# --- Which of the places to take -----------------------------------------------------------------

_LEAST_PRICE = 1 << 12
_HASHED_CHARACTERS = 64
_SHORT_SECTIONS = 4
"""A section of less than a quarter of the limit may be joined with the next one."""


def _prices(
    text: str, starts: Sequence[tuple[int, int]], before: Sequence[int], limit: int
) -> list[int]:
    """What it costs to begin a chunk at each place; depends on the text near the place alone."""
    prices: list[int] = []
    section = 0
    for (position, level), tokens in zip(starts, before[:-1], strict=True):
        if level < 0:
            short = (tokens - section) * _SHORT_SECTIONS < limit
            prices.append(_LEAST_PRICE if short else 0)
            section = tokens
        else:
            window = text[position : position + _HASHED_CHARACTERS]
            chance = zlib.crc32(window.encode("utf-8", "surrogatepass")) >> 16
            # The 16 bits read as a floating-point number, exponent then mantissa: prices from 1 to
            # 65,536 times the least, so that the few cheap places near an edit decide, not the
            # number of chunks. The next level's begin where these end.
            prices.append((_LEAST_PRICE | chance & 0xFFF) << (chance >> 12) + 16 * level)
    return prices


def _cheapest(prices: Sequence[int], before: Sequence[int], limit: int) -> list[int]:
    """The cheapest places to begin chunks at, none holding more than `limit` tokens.

    A shortest path: the best way to begin a chunk at a place goes through the cheapest of the
    places at most `limit` tokens earlier, a sliding-window minimum, hence linear time. Of equally
    cheap ones it takes the latest, so a free place is always taken.

    Args:
        prices: of each place; the first must be taken.
        before: tokens before each place, and in total (one more than places).
        limit: in tokens. A piece that exceeds it alone becomes a chunk alone.

    Returns:
        Indices of the places taken, ascending, from 0.
    """
    places = len(prices)
    total = [0] * (places + 1)
    previous = [0] * (places + 1)
    candidates: deque[int] = deque()
    for place in range(1, places + 1):
        cheapest = total[place - 1]
        while candidates and total[candidates[-1]] >= cheapest:
            candidates.pop()
        candidates.append(place - 1)
        earliest = before[place] - limit
        while before[candidates[0]] < earliest and len(candidates) > 1:
            candidates.popleft()
        previous[place] = candidates[0]
        total[place] = total[candidates[0]] + (prices[place] if place < places else 0)
    taken: list[int] = []
    place = places
    while place > 0:
        place = previous[place]
        taken.append(place)
    return taken[::-1]


def _overlap_start(tokens: _Tokens, start: int, floor: int, overlap: int) -> int:
    """The earliest sentence, else word, from `floor` on and at most `overlap` tokens earlier."""
    last = int(tokens.before([start])[0])
    lowest = max(floor, int(tokens.starts[max(0, last - overlap)]))
    # A little earlier, so that a sentence that begins just there is seen.
    for boundary in (_SENTENCE_OR_LIST_ITEM, _WORD):
        found = boundary.finditer(tokens.text, max(0, lowest - 2), start)
        inside = [m.end() for m in found if lowest <= m.end() < start]
        for position in tokens.cuttable(inside):
            if last - int(tokens.before([position])[0]) <= overlap:
                return position
    return start


def split(
    text: str, token_offsets: npt.NDArray[np.integer], *, max_tokens: int, overlap: int = 0
) -> list[Chunk]:
    """Splits a text at its headings, paragraphs, sentences, lines, words or, at need, tokens.

    The chunks hold every character that is not white space, without overlap exactly once. No cut
    goes through a token. Time and memory are linear in the text.

    Args:
        text: canonical text.
        token_offsets: shape (tokens, 2), integers: the character span of each token of the text,
            without special tokens, as `DocumentTokenizer.offsets` gives them.
        max_tokens: most tokens in a chunk. Only a single character that makes more tokens than
            that exceeds it.
        overlap: most tokens that a chunk repeats from the end of the one before, in whole
            sentences or, if none fits, whole words.

    Returns:
        The chunks in the order of the text; none for a text of nothing but white space.

    Raises:
        ValueError: `max_tokens` is less than 1, or `overlap` not in [0, max_tokens).
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    if not 0 <= overlap < max_tokens:
        raise ValueError(
            f"overlap must be in 0 to {max_tokens - 1} (max_tokens - 1), got {overlap}"
        )
    end = len(text.rstrip())
    begin = len(text) - len(text.lstrip())
    if begin >= end:
        return []
    limit = max_tokens - overlap
    tokens = _Tokens(text, token_offsets)
    headings = find_headings(text)
    starts = _starts(tokens, headings, begin, end, limit)
    positions = [position for position, _ in starts]
    before = [*tokens.before(positions).tolist(), len(token_offsets)]
    before[0] = 0
    taken = _cheapest(_prices(text, starts, before, limit), before, limit)

    paths = [(), *_paths(headings)]
    heading_starts = [heading.start for heading in headings]
    chunks: list[Chunk] = []
    for this, following in zip(taken, [*taken[1:], len(positions)], strict=True):
        start, tokens_before = positions[this], before[this]
        stop = positions[following] if following < len(positions) else end
        path = paths[bisect_right(heading_starts, start)]
        if overlap and chunks:
            start = _overlap_start(tokens, start, chunks[-1].start + 1, overlap)
            tokens_before = int(tokens.before([start])[0])
        stripped = text[start:stop].rstrip()
        chunks.append(Chunk(start, start + len(stripped), before[following] - tokens_before, path))
    return chunks


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
        and not any(_WORD.search(token.content) for token in added)
    )


def _parts(component: Any, key: str) -> list[dict[str, Any]]:
    """The settings of a tokenizer's component, one entry for each step of a sequence."""
    if component is None:
        return []
    state = json.loads(component.__getstate__())
    return state.get(key, [state])
