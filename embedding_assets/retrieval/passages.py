"""What of a chunk is shown to people: the sentences that answer, and not what is no prose."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from textwrap import dedent

from resources.sentences import SENTENCE_OR_LIST_ITEM

_WORD = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff]|\w+")
"""In scripts that have no blanks between words (Thai to Khmer, Chinese, Japanese), a letter."""
_STEM = 5
"""Letters of a word that count, so that "iterating" finds "iteration"."""
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_UNDERLINED = re.compile(r"\n(\W)\1{2,}[^\S\n]*(?:\n\s*|$)")
_TITLE = re.compile(r"#+ .*|.*\n(\W)\1{2,}")
_LIST_ITEM = re.compile(r"(?:[-*+•]|\d{1,3}[.)])\s+")
_OWN_LINE = re.compile(r"[|>#=~+`]")
_HEADER = re.compile(r"[A-Z][\w-]*:( |$)")
_NO_PROSE = re.compile(
    r"""
    [^\w.]* ( \.\.\s | \[\d{1,3}\](?!\() ) .*  # a footnote, a directive
    | \W* <?\w+://\S+ \W*                     # an address alone
    | \W* \[[^\]]*\] \( \S+ \) \W*            # a link alone
    | .* \b (?i: copyright | public\ domain | all\ rights\ reserved ) \b .*
    | [\W\d_]*                                # rulers and blank lines
    """,
    re.VERBOSE,
)
_TITLES = {"references", "footnotes", "copyright", "acknowledgements", "acknowledgments", "links"}
_MOST = 0.5


def is_apparatus(text: str) -> bool:
    """Whether most of a text is no prose: references, addresses, a header of fields, a licence.

    Such a chunk is near to many questions, since it names what the document is about, and answers
    none of them.
    """
    lines = [line.strip() for line in text.split("\n")]
    size = sum(map(len, lines))
    header = 0
    for line in lines:  # fields at the top, as of a mail
        if line and not _HEADER.match(line):
            break
        header += len(line)
    other = sum(
        len(line)
        for line in lines
        if _NO_PROSE.fullmatch(line) or line.lower().strip("#=*: ") in _TITLES
    )
    return max(header, other) > _MOST * size


class Excerpts:
    """The part of each of some texts that says most about a question."""

    def __init__(self, question: str, texts: Iterable[str]) -> None:
        """Weighs the words of the question.

        Args:
            question: what was asked.
            texts: what was found; a word that stands in all of them says little.
        """
        found = [set(_stems(text)) for text in texts]
        seen = Counter(stem for stems in found for stem in stems)
        self._weights = {
            stem: math.log(1 + len(found) / seen[stem]) for stem in {*_stems(question)} & {*seen}
        }

    def of(self, text: str, length: int) -> str:
        """Whole sentences of a text, of at most so many characters; "…" is what is left out.

        They flow: lines that were broken only for their length are one. A sentence that is longer
        is cut between words.
        """
        start, end = self.span(text, length)
        before, after = "… " if text[:start].strip() else "", " …" if text[end:].strip() else ""
        line = text.rfind("\n", 0, start) + 1
        indented = text[line:end] if not text[line:start].strip() else text[start:end]
        return f"{before}{dedent(_flowing(indented))}{after}"

    def span(self, text: str, length: int) -> tuple[int, int]:
        """Where those sentences begin and end in the text."""
        sentences = list(_sentences(text)) or [(0, len(text))]
        best, most = sentences[:1], -1.0
        for first in range(len(sentences)):
            window = sentences[first : first + 1]
            for sentence in sentences[first + 1 :]:
                if sentence[1] - window[0][0] > length:
                    break
                window.append(sentence)
            said = self._said(text[window[0][0] : window[-1][1]])
            if said > most:
                best, most = window, said
        (start, _), (_, end) = best[0], best[-1]
        if end - start > length:
            end = start + len(text[start : start + length].rsplit(None, 1)[0])
        return start, end

    def _said(self, text: str) -> float:
        return sum(self._weights.get(stem, 0) for stem in {*_stems(text)})


def _stems(text: str) -> Iterator[str]:
    return (word[:_STEM] for word in _WORD.findall(text.casefold()))


def _flowing(text: str) -> str:
    """A text as it is read: lines that were broken only for their length are one again."""
    lines: list[str] = []
    goes_on = None  # where a line begins that belongs to the one above; code stays as it is
    for line in text.split("\n"):
        body = line.strip()
        indent = len(line) - len(line.lstrip())
        item = _LIST_ITEM.match(body)
        if body and indent == goes_on and not item and not _OWN_LINE.match(body):
            lines[-1] += f" {body}"
            continue
        if body:
            lines.append(line.rstrip())
        is_prose = body and not indent and not _OWN_LINE.match(body)
        goes_on = indent + len(item[0]) if item else 0 if is_prose else None
    return "\n".join(lines)


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Where each sentence begins and ends, but of headings and of what is no prose."""
    for start, end in _pieces(text, 0, len(text), _PARAGRAPH, _UNDERLINED):
        paragraph = text[start:end]
        if not _TITLE.fullmatch(paragraph) and not is_apparatus(paragraph):
            yield from _pieces(text, start, end, SENTENCE_OR_LIST_ITEM)


def _pieces(
    text: str, start: int, end: int, *boundaries: re.Pattern[str]
) -> Iterator[tuple[int, int]]:
    """The parts of a span between matches of the boundaries, without the white space around."""
    found = (match for each in boundaries for match in each.finditer(text, start, end))
    edges = sorted({start, end, *(match.end() for match in found)})
    for first, last in pairwise(edges):
        body = text[first:last].strip()
        if body:
            begin = text.index(body, first)
            yield begin, begin + len(body)
