"""What `embedding-assets search` shows: documents, each with its best passages."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from typing import Any

from rich.text import Text

from embedding_assets.api import Collection
from embedding_assets.cli.terminal import console, plain
from embedding_assets.retrieval.hits import DocumentHits, Hits
from embedding_assets.retrieval.passages import Excerpts, is_apparatus
from resources.vector_stores.base import SearchHit

_LONG, _SHORT = 320, 160
"""Characters of the best passage of a document and of others: four lines, and two."""
_PASSAGES = 2
_MARGIN = 6
_NEAR = 0.1
"""How much less than the best passage of its document another one may score to be shown too."""


@dataclass(frozen=True)
class Answer:
    """A document, and what is known of it besides.

    Attributes:
        document: the document's hits.
        location: file and line in the source, if they are known here.
        around: the text around its best passage, if it was asked for.
    """

    document: DocumentHits
    location: str | None
    around: str | None

    @property
    def shown(self) -> list[SearchHit]:
        """The passages that people see."""
        best, *others = self.document.passages
        near = [
            one for one in others if one.score >= best.score - _NEAR and not is_apparatus(one.text)
        ]
        return [best] if self.around else [best, *near[: _PASSAGES - 1]]


def answers(
    hits: Hits, collections: Sequence[Collection], documents: int, context: int
) -> list[Answer]:
    """The best documents of the hits.

    Args:
        hits: of a search in the collections.
        collections: those that were asked.
        documents: how many at most.
        context: chunks before and after the best passage of each.
    """
    found = hits.by_document()[:documents]
    by_name = {collection.name: collection for collection in collections}
    locations = {
        (name, document_id): location
        for name, collection in by_name.items()
        for document_id, location in collection.locations(
            one.best for one in found if one.best.collection == name
        ).items()
    }
    return [
        Answer(
            one,
            locations.get((one.best.collection, one.best.document_id)),
            by_name[one.best.collection].neighbours(one.best, context) if context else None,
        )
        for one in found
    ]


def as_rows(found: Iterable[Answer]) -> list[dict[str, Any]]:
    """The answers for machines: whole chunks, all that were found of each document."""
    return [
        {
            **_of(answer.document.best, "collection", "document_id", "title", "timestamp"),
            "location": answer.location,
            **_of(answer.document.best, "partition", "metadata", "score"),
            "passages": [
                _of(hit, "score", "chunk_id", "chunk_number", "span_start", "span_end", "text")
                for hit in answer.document.passages
            ],
            **({"context": answer.around} if answer.around else {}),
        }
        for answer in found
    ]


def _of(hit: SearchHit, *names: str) -> dict[str, Any]:
    return {name: getattr(hit, name) for name in names}


def print_answers(found: Sequence[Answer], question: str, hits: Hits, *, full: bool) -> None:
    """Prints the answers for people; whole chunks if `full`."""
    asked = ", ".join(hits.collections)
    console.print(plain(f"{asked}: {question}"), style="italic", soft_wrap=True)
    if not found:
        console.print("Nothing was found: there is no document in the index.")
        return
    excerpts = Excerpts(question, [hit.text for hit in hits])
    for answer in found:
        best = answer.document.best
        title = " ".join(best.title.split())
        known = [best.collection] if len(hits.collections) > 1 else []
        known += [best.document_id] if title else []
        known += [answer.location] if answer.location else []
        date = f"  {_date(best.timestamp)}" if best.timestamp else ""
        console.print()
        _print(
            f"{best.score:.2f}",
            Text.assemble((plain(title or best.document_id), "bold"), (date, "dim")),
        )
        if known:
            _print("", Text(plain(" · ".join(known)), "dim"))
        for hit in answer.shown:
            length = _LONG if hit is best else _SHORT
            said = (answer.around or hit.text) if full else excerpts.of(hit.text, length)
            lines = "\n".join(plain(line.expandtabs(4)) for line in said.split("\n"))
            _print("" if hit is best else f"{hit.score:.2f}", Text(lines))


def _print(score: str, text: Text) -> None:
    """One block beside its score, without the blanks that a table would fill its lines with."""
    width = max(console.width - _MARGIN, 20)
    for number, line in enumerate(text.wrap(console, width, overflow="fold")):
        line.rstrip()
        left = score if number == 0 else ""
        console.print(Text(left.ljust(_MARGIN)) + line, soft_wrap=True)


def _date(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}" if moment.time() == time() else f"{moment:%Y-%m-%d %H:%M}"
