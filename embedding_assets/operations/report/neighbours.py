"""What lies near to some chunks in other documents: what search would find."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from embedding_assets.collection.collection import CollectionResources
from embedding_assets.operations.report.repeated_text import RepeatedText
from embedding_assets.operations.report.sample import VectorSample

_OF_EACH = 2
_HITS = 30
"""Looked at: most are chunks of the same document."""


@dataclass(frozen=True)
class Neighbours:
    """Two chunks of different documents.

    Attributes:
        cosine: of their vectors.
        title: of the one's document.
        text: its own.
        near_title: of the other's document.
        near_text: its own.
    """

    cosine: float
    title: str
    text: str
    near_title: str
    near_text: str


def neighbours(
    collection: str,
    resources: CollectionResources,
    sample: VectorSample,
    rows: Iterable[int],
    repeated: RepeatedText,
) -> Iterator[Neighbours]:
    """The nearest chunks of other documents to some of a sample, but no repeated text.

    No two documents are paired twice, and no text is said twice as somebody's neighbour.

    Args:
        collection: the collection's name.
        resources: the collection's.
        sample: of its index.
        rows: of the sample: the chunks to begin with.
        repeated: what is left out.
    """
    paired: set[frozenset[str]] = set()
    said: set[str] = set()
    for row in rows:
        hits = resources.store.search(
            collection, resources.embedder.space, sample.vectors[row], _HITS
        )
        found = 0
        for hit in hits:
            pair = frozenset((sample.documents[row], hit.document_id))
            text = " ".join(hit.text.split())
            if len(pair) == 1 or pair in paired or text in said or repeated.is_most_of(hit.text):
                continue
            paired.add(pair)
            said.add(text)
            yield Neighbours(
                hit.score, sample.titles[row], sample.texts[row], hit.title or hit.document_id, text
            )
            found += 1
            if found == _OF_EACH:
                break
