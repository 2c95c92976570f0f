"""Text that is said again and again: notices, licences, footers, which tell nothing of a document.

Vectors of chunks that are made of it are near to each other whatever their documents are about.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

_LENGTH, _LETTERS = 40, 30
"""A shorter sentence or line may be a heading, or a line of code."""
_DOCUMENTS, _SHARE = 5, 0.02
"""So many documents, and such a share of them, say what counts as repeated."""
_MOST = 0.5
"""The share of a chunk from which on it is made of repeated text."""

_END = re.compile(r"\n+|(?<=[.!?。！？])\s+")
_YEAR = re.compile(r"\b(?:19|20)\d\d\b")


@dataclass(frozen=True)
class Passage:
    """Repeated sentences that stand together, and how many documents have them."""

    text: str
    documents: int


class RepeatedText:
    """The repeated text of some chunks.

    Attributes:
        documents: how many were looked at.
        passages: the most frequent first.
        mostly: of each chunk, whether it is made of it for the greater part.
    """

    def __init__(self, texts: Sequence[str], documents: Sequence[str]) -> None:
        """Looks for it.

        Args:
            texts: the chunks'.
            documents: the id of the document of each.
        """
        self.documents = len(set(documents))
        said_by: dict[str, set[str]] = defaultdict(set)
        chunks = [_sentences(text) for text in texts]
        for sentences, document in zip(chunks, documents, strict=True):
            for key in sentences:
                if len(key) >= _LENGTH:
                    said_by[key].add(document)
        enough = max(_DOCUMENTS, math.ceil(_SHARE * self.documents))
        self._repeated = {
            key
            for key, by in said_by.items()
            if len(by) >= enough and sum(map(str.isalpha, key)) >= _LETTERS
        }
        self.passages = self._passages(chunks, documents)
        self.mostly = [self._is_most_of(sentences) for sentences in chunks]

    @property
    def share(self) -> float:
        """Of the chunks that are made of it."""
        return sum(self.mostly) / max(1, len(self.mostly))

    def is_most_of(self, text: str) -> bool:
        """Whether a chunk is made of repeated text for the greater part."""
        return self._is_most_of(_sentences(text))

    def _is_most_of(self, sentences: Mapping[str, str]) -> bool:
        repeated = sum(len(key) for key in sentences if key in self._repeated)
        return repeated > _MOST * sum(map(len, sentences))

    def _passages(
        self, chunks: Iterable[Mapping[str, str]], documents: Iterable[str]
    ) -> list[Passage]:
        written: dict[str, str] = {}
        said_by: dict[str, set[str]] = defaultdict(set)
        for sentences, document in zip(chunks, documents, strict=True):
            for repeated, together in groupby(sentences, self._repeated.__contains__):
                if repeated:
                    keys = list(together)
                    passage = " ".join(keys)
                    written.setdefault(passage, " ".join(sentences[key] for key in keys))
                    said_by[passage].add(document)
        most = sorted(said_by, key=lambda key: (-len(said_by[key]), key))
        return [Passage(written[key], len(said_by[key])) for key in most]


def _sentences(text: str) -> dict[str, str]:
    """Sentences, and lines, for a footer often has no full stop: as they are, by what is the same
    in the notices of two years."""
    lines = (" ".join(line.split()) for line in _END.split(text))
    return {_YEAR.sub("0000", line.casefold()): line for line in lines if line}
