"""In which spaces the indexes are asked: those that collections have, and those that they had.

After a change of model the pipeline fills a table of its own for the new space, partition by
partition. Until it has come to a partition, only the former space knows what is in there. So both
are asked, as with a fallback, and each partition in one of them alone: what the former table still
holds of a partition that was embedded anew is out of date.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow.parquet as pq

from embedding_assets.api import Collection
from embedding_assets.artifacts.keys import vectors_key
from embedding_assets.collection.collection import CollectionResources
from embedding_assets.retrieval.search import IndexReader
from resources.artifact_stores.base import ArtifactStore
from resources.embedders.base import Embedder
from resources.identity.embedding_space import EmbeddingSpace
from resources.vector_stores.base import NoIndexError, VectorStore

_SECONDS_OF_SPACES = 1.0
"""For so long the spaces in which a collection has rows are taken to stay so."""
_TIME_SHARE = 50
"""At most one part in so many of the time goes into looking which partitions are where."""


@dataclass(frozen=True)
class FormerSpace:
    """One that a collection had.

    Attributes:
        embedder: of it.
        resources: of the collection as it was.
        superseded: the partitions that are to be found elsewhere by now.
    """

    embedder: Embedder
    resources: CollectionResources
    superseded: frozenset[str] = frozenset()

    @property
    def space(self) -> EmbeddingSpace:
        """Of the table with the rows."""
        return self.embedder.space


Readers = Mapping[IndexReader, Sequence[Embedder]]


class IndexSpaces:
    """Of all collections, by name; for any thread: what it gives is replaced, and never changed."""

    def __init__(self) -> None:
        self._former: dict[str, tuple[FormerSpace, ...]] = {}
        self._due: dict[str, float] = {}
        self._asked: dict[str, tuple[float, Readers]] = {}

    # --- What is asked ----------------------------------------------------------------------------

    def known(self, collection: str) -> Readers | None:
        """What `ask` gave within the last second."""
        asked_at, readers = self._asked.get(collection, (-math.inf, {}))
        return readers if time.monotonic() - asked_at <= _SECONDS_OF_SPACES else None

    def ask(self, collection: Collection) -> Readers:
        """The indexes of a collection, each with the embedders of the spaces it has rows in.

        Raises:
            NoIndexError: it is built in none.
        """
        self.forget(collection.name)
        readers = self._readers(collection)
        self._asked[collection.name] = time.monotonic(), readers
        return readers

    def forget(self, collection: str) -> None:
        """The next question asks anew."""
        self._asked.pop(collection, None)

    @property
    def asked(self) -> set[str]:
        """The ids of the spaces in which an index was asked last."""
        return {space for _, readers in [*self._asked.values()] for space in spaces_of(readers)}

    def is_built(self, collection: Collection) -> bool:
        """Whether there is something to search in a collection."""
        try:
            return bool(self.ask(collection))
        except NoIndexError:
            return False

    def _readers(self, collection: Collection) -> Readers:
        formers = self.former(collection.name)
        asked: dict[IndexReader, Sequence[Embedder]] = {}
        try:
            asked[collection.index] = collection.index.embedders()
        except NoIndexError:
            if not formers:
                raise
        if formers and not _has_rows(collection):
            asked = {}  # a run has just made the table
        for one in formers:
            index = IndexReader(collection.name, one.resources, sorted(one.superseded))
            asked[index] = [one.embedder]
        return asked

    # --- What collections had ---------------------------------------------------------------------

    def former(self, collection: str) -> tuple[FormerSpace, ...]:
        """The spaces that a collection had, and in which it is still asked; the newest first."""
        return self._former.get(collection, ())

    @property
    def former_spaces(self) -> set[str]:
        """The ids of all of them."""
        return {one.space.id for several in [*self._former.values()] for one in several}

    def changed(self, old: Collection, new: Collection | None) -> None:
        """Remembers what a collection had.

        Args:
            old: as it was defined.
            new: as it is defined now; None: it is there no more.
        """
        name = old.name
        before = [FormerSpace(one, old.resources) for one in old.resources.embedders]
        before += self._former.pop(name, ())
        self._due.pop(name, None)
        self.forget(name)
        known = {one.space.id for one in new.resources.embedders} if new else set[str]()
        kept: list[FormerSpace] = []
        for one in before if new else ():
            if one.space.id not in known:
                known.add(one.space.id)
                kept.append(one)
        if kept:
            self._former[name] = tuple(kept)

    def promote(self, collection: Collection) -> None:
        """Finds out which partitions former spaces alone have, if it is due."""
        name = collection.name
        formers, started = self.former(name), time.monotonic()
        if not formers or started < self._due.get(name, 0.0):
            return
        kept = _still_needed(collection, formers)
        if self.former(name) is not formers:  # the definition has changed meanwhile
            return
        if kept:
            self._former[name] = kept
        else:
            del self._former[name]
        self._due[name] = started + _TIME_SHARE * (time.monotonic() - started)
        if kept != formers:
            self.forget(name)


def _still_needed(
    collection: Collection, formers: Sequence[FormerSpace]
) -> tuple[FormerSpace, ...]:
    """The former spaces that alone have rows of some partition, and what to pass over in each."""
    name, resources = collection.name, collection.resources
    spaces = [one.space for one in resources.embedders]
    newer = {one for space in spaces for one in _partitions(resources.store, name, space)}
    own = {*collection.partitions}
    kept = []
    for former in formers:
        there = _partitions(former.resources.store, name, former.space)
        alone = there
        if newer:
            # Of a partition that the collection no longer has nothing is ever embedded anew.
            alone = {
                one
                for one in there & own - newer
                if not _is_empty_now(resources.artifacts, name, one, spaces)
            }
        if alone:
            kept.append(replace(former, superseded=frozenset(there - alone)))
        newer |= there
    return tuple(kept)


def _has_rows(collection: Collection) -> bool:
    store = collection.resources.store
    return any(store.count(collection.name, one.space) for one in collection.resources.embedders)


def _partitions(store: VectorStore, collection: str, space: EmbeddingSpace) -> set[str]:
    found: set[str] = set()
    for batch in store.scan(collection, space, ["partition"]):
        found |= {*batch["partition"].unique().to_pylist()}
    return found


def _is_empty_now(
    artifacts: ArtifactStore, collection: str, partition: str, spaces: Sequence[EmbeddingSpace]
) -> bool:
    """Whether a run with one of these spaces found nothing to embed in a partition."""
    key = vectors_key(collection, partition)
    if not artifacts.exists(key):
        return False
    with artifacts.reading(key) as path:
        file = pq.ParquetFile(path)
        written = (file.schema_arrow.metadata or {}).get(b"space", b"").decode()
        rows = file.metadata.num_rows
    return not rows and bool(written) and EmbeddingSpace.from_json(written) in spaces


def spaces_of(readers: Readers) -> set[str]:
    """The ids of the spaces that are asked."""
    return {embedder.space.id for embedders in readers.values() for embedder in embedders}
