"""Where a chunk may begin: headings, paragraphs, sentences, lines, words, tokens."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from resources.document_sources.headings import Heading
from resources.sentences import SENTENCE_OR_LIST_ITEM

Offsets = npt.NDArray[np.int32]
"""Shape (tokens, 2): the character span [start, end) of each token of a text."""


# --- Where a chunk may begin ---------------------------------------------------------------------

_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")
_WHITE_SPACE = re.compile(r"\s*")

# A match ends where a piece may begin; from coarse to fine. The finest level, tokens, is not here.
_LINE = re.compile(r"\n\s*")
WORD = re.compile(r"\s+")
_FINER_LEVELS = (SENTENCE_OR_LIST_ITEM, _LINE, WORD)


def heading_paths(headings: Sequence[Heading]) -> list[tuple[str, ...]]:
    """For each heading, the titles from the outermost down to itself."""
    paths: list[tuple[str, ...]] = []
    open_headings: list[Heading] = []
    for heading in headings:
        while open_headings and open_headings[-1].level >= heading.level:
            open_headings.pop()
        open_headings.append(heading)
        paths.append(tuple(each.title for each in open_headings))
    return paths


class TokenPositions:
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
    tokens: TokenPositions, start: int, body: int, end: int, limit: int, level: int
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


def chunk_starts(
    tokens: TokenPositions, headings: Sequence[Heading], begin: int, end: int, limit: int
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
