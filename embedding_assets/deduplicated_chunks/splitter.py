"""Splits a document into chunks along its own structure, so that an edit changes few of them.

Every place where a chunk may begin has a price: nothing at a heading, more at a paragraph, more yet
at a sentence, and so on down to the token. Within a level the price depends on a hash of the text
that follows. `split` takes the cheapest set of places that keeps every chunk within the limit.
Prices depend on nearby text alone, so the cheapest sets before and after an edit are the same again
a few paragraphs away, and at the next heading at the latest. Chunks counted off from the start of
the document would all move instead.
"""

import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from embedding_assets.deduplicated_chunks.boundaries import (
    SENTENCE_OR_LIST_ITEM,
    WORD,
    TokenPositions,
    chunk_starts,
    heading_paths,
)
from resources.document_sources.headings import find_headings

ALGORITHM_VERSION = 3
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


def _overlap_start(tokens: TokenPositions, start: int, floor: int, overlap: int) -> int:
    """The earliest sentence, else word, from `floor` on and at most `overlap` tokens earlier."""
    last = int(tokens.before([start])[0])
    lowest = max(floor, int(tokens.starts[max(0, last - overlap)]))
    # A little earlier, so that a sentence that begins just there is seen.
    for boundary in (SENTENCE_OR_LIST_ITEM, WORD):
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
        max_tokens: maximum of a chunk. Only a single character that makes more exceeds it.
        overlap: maximum of what a chunk repeats from the end of the one before, in whole
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
    tokens = TokenPositions(text, token_offsets)
    headings = find_headings(text)
    starts = chunk_starts(tokens, headings, begin, end, limit)
    positions = [position for position, _ in starts]
    before = [*tokens.before(positions).tolist(), len(token_offsets)]
    before[0] = 0
    taken = _cheapest(_prices(text, starts, before, limit), before, limit)

    paths = [(), *heading_paths(headings)]
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
