"""What a search found, as objects, as an Arrow table and as a pandas frame."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, overload

import pyarrow as pa

from embedding_assets.retrieval.passages import is_apparatus
from resources.errors import MissingPackageError
from resources.identity.embedding_space import EmbeddingSpace
from resources.vector_stores.base import SearchHit

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingImports]

_SETBACK = 10
_SCHEMA = pa.schema(
    [
        ("score", pa.float64()),
        ("collection", pa.string()),
        ("chunk_id", pa.string()),
        ("document_id", pa.string()),
        ("chunk_number", pa.int32()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("span_start", pa.int64()),
        ("span_end", pa.int64()),
        ("partition", pa.string()),
        ("timestamp", pa.timestamp("us", "UTC")),
        ("metadata", pa.string()),
    ]
)


@dataclass(frozen=True)
class DocumentHits:
    """A document that a search found.

    Attributes:
        passages: its chunks that were found, the one to be shown first first.
    """

    passages: tuple[SearchHit, ...]

    @property
    def best(self) -> SearchHit:
        """The first passage; all have the document's collection, id, title, time and metadata."""
        return self.passages[0]


class Hits(Sequence[SearchHit]):
    """The chunks that a search found, best first.

    Attributes:
        spaces: the embedding spaces that were asked. If there are several, ranks were fused, and
            scores of hits from different spaces cannot be compared.
        collections: the names of the collections that were asked.
    """

    def __init__(
        self,
        hits: Iterable[SearchHit],
        spaces: Sequence[EmbeddingSpace],
        collections: Sequence[str] = (),
    ) -> None:
        self._hits = tuple(hits)
        self.spaces = tuple(spaces)
        self.collections = tuple(collections)

    @overload
    def __getitem__(self, index: int) -> SearchHit: ...
    @overload
    def __getitem__(self, index: slice) -> "Hits": ...
    def __getitem__(self, index: int | slice) -> "SearchHit | Hits":
        if isinstance(index, slice):
            return Hits(self._hits[index], self.spaces, self.collections)
        return self._hits[index]

    def __len__(self) -> int:
        return len(self._hits)

    def __iter__(self) -> Iterator[SearchHit]:
        return iter(self._hits)

    def __repr__(self) -> str:
        lines = (f"{hit.score:.3f} {hit.document_id} {hit.text[:60]!r}" for hit in self)
        return "\n".join((f"<Hits: {len(self)}>", *lines))

    def by_document(self) -> list[DocumentHits]:
        """The documents of the hits, each once, with its passages.

        A document stands where its first passage stands. References and the like are near to many
        questions and answer none: they stand ten places further down.
        """

        def place(ranked: tuple[int, SearchHit]) -> int:
            rank, hit = ranked
            return rank + _SETBACK * is_apparatus(hit.text)

        passages: dict[tuple[str, str], list[SearchHit]] = {}
        for _, hit in sorted(enumerate(self), key=place):
            passages.setdefault((hit.collection, hit.document_id), []).append(hit)
        return [DocumentHits(tuple(each)) for each in passages.values()]

    def to_arrow(self) -> pa.Table:
        """One row a hit, with the fields of `SearchHit` as columns; `metadata` is JSON."""
        rows = [{**asdict(hit), "metadata": json.dumps(hit.metadata)} for hit in self]
        return pa.Table.from_pylist(rows, _SCHEMA)

    def to_pandas(self) -> "pd.DataFrame":
        """One row a hit, with the fields of `SearchHit` as columns; `metadata` holds dicts.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        try:
            import_module("pandas")  # pyarrow's own error does not say what to install
        except ImportError as error:
            raise MissingPackageError("to_pandas()", "pandas") from error
        frame = self.to_arrow().to_pandas()
        frame["metadata"] = [dict(hit.metadata) for hit in self]
        return frame
