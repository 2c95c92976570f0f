"""The Python API: the project's collections, each with a handle to search, embed, plan, evaluate.

```python
import embedding_assets as ea

peps = ea.open("peps")
peps.search("loop over two lists at once", k=3).to_pandas()
```
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedding_assets.artifacts.keys import documents_key
from embedding_assets.artifacts.quarantine import (
    QuarantineReason,
    quarantine_files,
    quarantine_reasons,
    read_quarantine,
)
from embedding_assets.artifacts.schemas import DOCUMENTS, QUARANTINED
from embedding_assets.artifacts.withheld import Withheld, accept_deletions, withheld_deletions
from embedding_assets.collection.collection import CollectionResources
from embedding_assets.collection.partitions import partitions_definition
from embedding_assets.collection.settings import CollectionSettings
from embedding_assets.retrieval.evaluation import Evaluation, evaluate_index
from embedding_assets.retrieval.hits import Hits
from embedding_assets.retrieval.locations import locations
from embedding_assets.retrieval.search import IndexReader, search_indexes
from embedding_assets.retrieval.text_vectors import text_vectors
from resources.artifact_stores.base import ArtifactStore
from resources.embedders.base import Role
from resources.errors import InvalidInputError, NotFoundError
from resources.vector_stores.base import SearchHit

if TYPE_CHECKING:
    from embedding_assets.operations.build import Build, BuildWatcher
    from embedding_assets.operations.plan import Plan

Partitions = str | Sequence[str] | None
"""One partition, a range "FIRST...LAST", a list of partitions; None: all of them. In the place of
a partition by time, "latest" is the current one."""

_LATEST = "latest"
_DOCUMENT_COLUMNS = ("id", "title", "text", "timestamp", "metadata")
_DOCUMENTS = pa.schema([("partition", pa.string()), *map(DOCUMENTS.field, _DOCUMENT_COLUMNS)])


class Collection:
    """A corpus and its vector index, for use outside of Dagster.

    `open` gives one of the project's; with settings and resources of your own it needs no project.

    Attributes:
        settings: what its YAML file says.
        resources: its source, embedders, cache and stores.
    """

    def __init__(self, settings: CollectionSettings, resources: CollectionResources) -> None:
        self.settings = settings
        self.resources = resources

    def __repr__(self) -> str:
        return f"<Collection {self.name!r}: {self.settings.source.path}>"

    @property
    def name(self) -> str:
        """Prefix of its asset keys, and name of its tables."""
        return self.settings.name

    @property
    def partitions(self) -> tuple[str, ...]:
        """The keys of all its partitions, in order; those by time grow while a handle is kept."""
        return tuple(partitions_definition(self.settings.partitions).get_partition_keys())

    @property
    def index(self) -> IndexReader:
        """Its index, in all the embedding spaces in which it has rows."""
        return IndexReader(self.name, self.resources)

    def search(self, text: str, k: int = 5, *, exact: bool = False) -> Hits:
        """Finds the k chunks nearest to a text, best first.

        Args:
            text: what to look for.
            k: how many chunks.
            exact: compare with every chunk; otherwise a large index may miss some of the best.

        Raises:
            InvalidInputError: the text is empty, or k below 1.
            NotFoundError: the collection has no index yet.
        """
        return self.index.search(text, k, exact=exact)

    def neighbours(self, hit: SearchHit, chunks: int = 1) -> str:
        """The text around a hit: so many chunks of its document before it and after it.

        They are joined as they stood in the document; what they share stands once.
        """
        return self.index.neighbours(hit, chunks)

    def locations(self, hits: Iterable[SearchHit]) -> dict[str, str]:
        """Where the documents of hits stand in the source, as "file:line", by document id.

        The artifact of `documents` says it, if it is on this machine: to fetch it from elsewhere
        would cost more than the search.
        """
        return locations(self.name, self.settings.source.path, self.resources.artifacts, hits)

    def embed(self, texts: Sequence[str], role: Role = "document") -> np.ndarray:
        """Embeds texts as the pipeline does: through the cache, which then holds them.

        Args:
            texts: n texts, each of at most the model's limit in tokens; the rest is cut off.
            role: "document" or "query"; some models prompt them differently.

        Returns:
            Shape (n, dimension), float32.

        Raises:
            InvalidInputError: a single string, which would be taken for a list of letters.
            EmbeddingError: the model cannot embed them.
        """
        if isinstance(texts, str):
            raise InvalidInputError("embed() takes a list of texts; put the one text into [ ]")
        return text_vectors(self.resources.cache, self.resources.embedder, texts, role)

    def documents(self, partitions: Partitions = None) -> pa.RecordBatchReader:
        """Streams the documents as they were last read from the source.

        Args:
            partitions: one, a range "FIRST...LAST", or a list; by default all.

        Returns:
            The columns partition, id, title, text, timestamp and metadata (JSON). `read_pandas()`
            or `read_all()` takes all of them into memory.

        Raises:
            NotFoundError: there is no such partition, or none of them was materialized.
        """
        store = self.resources.artifacts
        asked = self._partitions(partitions)
        present = [one for one in asked if store.exists(documents_key(self.name, one))]
        if not present:
            raise NotFoundError(
                f"Collection '{self.name}' has no documents there yet. Build "
                f"it first: `embedding-assets build {self.name}`."
            )
        batches = _document_batches(store, self.name, present)
        return pa.RecordBatchReader.from_batches(_DOCUMENTS, batches)

    def quarantine(
        self, partitions: Partitions = None, reason: str | None = None
    ) -> pa.RecordBatchReader:
        """Streams what the last runs refused.

        Args:
            partitions: one, a range "FIRST...LAST", or a list; by default all. What belongs to no
                partition is there too, if its file is read for these.
            reason: only what was refused for this reason.

        Returns:
            The columns stage (the asset that refused), partition (null: none), reason, document_id,
            file, line, detail (a sentence) and attempts (in how many runs it was refused).

        Raises:
            NotFoundError: there is no such partition, or nothing was materialized yet.
        """
        asked = self._partitions(partitions)
        store = self.resources.artifacts
        files = quarantine_files(store, self.name)
        if not files and not store.list_keys(f"{self.name}/documents/"):
            raise NotFoundError(
                f"Collection '{self.name}' has no documents yet: "
                f"`embedding-assets plan {self.name}` shows what a run would refuse."
            )
        wanted = {None, *asked}
        entries = read_quarantine(
            store,
            [file for file in files if file.partition in wanted],
            concerns=None if partitions is None else _reads_for(self, asked),
        )
        if reason is not None:
            entries = (
                batch.filter(pc.call_function("equal", [batch["reason"], reason]))
                for batch in entries
            )
        return pa.RecordBatchReader.from_batches(QUARANTINED, entries)

    def quarantine_reasons(self, partitions: Partitions = None) -> list[QuarantineReason]:
        """Why the last runs refused what they did: how much, with an example; the most first.

        Args:
            partitions: as in `quarantine`.

        Raises:
            NotFoundError: there is no such partition, or nothing was materialized yet.
        """
        return quarantine_reasons(self.quarantine(partitions))

    def plan(self, partitions: Partitions = None) -> "Plan":
        """What materializing would change, embed and cost now; nothing is changed or embedded.

        Args:
            partitions: one, a range "FIRST...LAST", or a list; by default all.

        Raises:
            NotFoundError: there is no such partition.
        """
        from embedding_assets.operations.plan import plan

        asked = self._partitions(partitions)
        with _dagster_instance() as instance:
            log = logging.getLogger(plan.__module__)
            return plan(self.settings, self.resources, asked, instance, log)

    def build(
        self, partitions: Partitions = None, *, watcher: "BuildWatcher | None" = None
    ) -> "Build":
        """Brings the index up to date: runs the four assets in this process, through Dagster.

        The runs are recorded where Dagster keeps its history (DAGSTER_HOME, or `dagster_home` of
        the project), and its UI shows them. What was finished stays so, however a run ends.

        Args:
            partitions: one, a range "FIRST...LAST", or a list; by default all.
            watcher: is told how it goes; by default Dagster logs to stderr.

        Returns:
            What was done. A run that fails is told there, and is no exception.

        Raises:
            NotFoundError: there is no such partition.
        """
        from embedding_assets.automation.run_requests import partition_runs
        from embedding_assets.collection.collection import CollectionAssets
        from embedding_assets.collection.environment import read_environment
        from embedding_assets.component import collection_definitions
        from embedding_assets.operations.build import build
        from resources.dagster_instance.home import open_home

        asked = self._partitions(partitions)
        if not asked:
            raise NotFoundError(f"Collection '{self.name}' has no partitions yet.")
        own = CollectionAssets(self.settings)
        runs, _ = partition_runs(
            asked, self.partitions, self.settings.partitions_per_run, max_runs=len(asked)
        )
        with open_home(read_environment().dagster_home) as instance:
            return build(
                own,
                list(collection_definitions(self.settings).assets or ()),
                own.keyed(self.resources),
                [run.partitions for run in reversed(runs)],
                instance,
                watcher,
            )

    @contextmanager
    def watching(self, partitions: Partitions = None) -> Iterator[Callable[[], list[list[str]]]]:
        """Yields a function that tells at each call which partitions have changed in the source.

        It looks as the source sensor does, and remembers what it has seen until the end. Each list
        is one of neighbours, for `build`. The first call reads all files of the source, and tells
        what was never ingested.

        Args:
            partitions: one, a range "FIRST...LAST", or a list; by default all, new ones too.
        """
        from embedding_assets.automation.source_sensor import SourceTick
        from embedding_assets.automation.source_watch import SourceWatch
        from embedding_assets.collection.collection import CollectionAssets
        from resources.artifact_stores.overlay import temporary_overlay

        with temporary_overlay(self.resources.artifacts) as artifacts:
            own = CollectionAssets(self.settings)
            watch = SourceWatch(SourceTick(own, self.resources.source, artifacts))
            yield lambda: watch.changed({*self._partitions(partitions)})

    def withheld(self, partitions: Partitions = None) -> dict[str, int]:
        """How many documents stay in the index though the source no longer has them.

        Args:
            partitions: one, a range "FIRST...LAST", or a list; by default all.

        Returns:
            The number by partition, of those only that have some and to which nobody agreed yet.

        Raises:
            NotFoundError: there is no such partition.
        """
        return {
            one.partition: one.documents for one in _withheld(self, self._partitions(partitions))
        }

    def accept_deletions(self, partitions: Partitions) -> dict[str, int]:
        """Agrees to the deletions that are withheld: the next run of the partitions removes them.

        Args:
            partitions: one, a range "FIRST...LAST", a list, or None for all.

        Returns:
            How many documents will go, by partition.

        Raises:
            NotFoundError: there is no such partition, or nothing is withheld there.
        """
        found = _withheld(self, self._partitions(partitions))
        if not found:
            raise NotFoundError(
                f"No deletions of '{self.name}' are withheld there: runs remove by themselves what "
                "the source no longer has."
            )
        for one in found:
            accept_deletions(self.resources.artifacts, self.name, one)
        return {one.partition: one.documents for one in found}

    def evaluate(
        self,
        queries: str | Path | None = None,
        qrels: str | Path | None = None,
        *,
        exact: bool = False,
    ) -> Evaluation:
        """Measures retrieval quality against relevance judgements, in the layout of BEIR.

        Args:
            queries: JSON Lines file of {"_id": ..., "text": ...}; by default the collection's own.
            qrels: TSV file of query id, document id, relevance; by default the collection's own.
            exact: compare with every chunk.

        Raises:
            InvalidInputError: a file is malformed, or the collection has none of its own.
            NotFoundError: there is no such file, or the collection has no index yet.
        """
        own = self.settings.evaluation
        queries = queries or (own and own.queries)
        qrels = qrels or (own and own.qrels)
        if queries is None or qrels is None:
            raise InvalidInputError(
                f"Collection '{self.name}' has no 'evaluation' in its YAML: name the files of "
                "queries and of qrels."
            )
        return evaluate_index(self.index, Path(queries), Path(qrels), exact=exact)

    def _partitions(self, asked: Partitions) -> list[str]:
        by_time = self.settings.partitions.by != "bucket"
        return _named(asked, self.partitions, latest=by_time)


def _document_batches(
    store: ArtifactStore, collection: str, partitions: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    for partition in partitions:
        with store.reading(documents_key(collection, partition)) as path:
            for batch in pq.ParquetFile(path).iter_batches(columns=_DOCUMENT_COLUMNS):
                constant = pa.array([partition] * len(batch), pa.string())
                yield pa.record_batch([constant, *batch.columns], schema=_DOCUMENTS)


def _reads_for(collection: Collection, partitions: Sequence[str]) -> Callable[[str], bool]:
    """Whether a run of some of the partitions reads a file, by the time in the file's name."""
    from embedding_assets.documents.source_state import SourceState

    state = SourceState(collection.resources.source, collection.settings.partitions)
    return lambda file: any(state.is_read_for(one, file) for one in partitions)


def _withheld(collection: Collection, partitions: Sequence[str]) -> list[Withheld]:
    found = withheld_deletions(collection.resources.artifacts, collection.name)
    return [one for one in found if one.partition in {*partitions} and not one.accepted]


def _named(asked: Partitions, known: Sequence[str], *, latest: bool) -> list[str]:
    """The partitions that somebody names; `latest`: whether that word is one of them."""
    if asked is None:
        return list(known)
    keys = asked.split("...", 1) if isinstance(asked, str) else list(asked)
    if known and latest:
        keys = [known[-1] if key == _LATEST else key for key in keys]
    position = {key: number for number, key in enumerate(known)}
    for key in keys:
        if key not in position:
            there = f"they run from {known[0]} to {known[-1]}" if known else "there is none yet"
            raise NotFoundError(f"There is no partition '{key}'; {there}.")
    if not isinstance(asked, str):
        return keys
    first, last = position[keys[0]], position[keys[-1]]
    if first > last:
        raise InvalidInputError(f"'{asked}' ends before it begins: turn it round.")
    return list(known[first : last + 1])


def search(
    text: str,
    collections: "str | Collection | Iterable[str | Collection] | None" = None,
    k: int = 5,
    *,
    exact: bool = False,
) -> Hits:
    """Finds the k chunks of several collections that are nearest to a text, best first.

    Scores of collections with the same model are compared; where there are several models, ranks
    are fused.

    Args:
        text: what to look for.
        collections: one or several, or their names; by default all of the project that are built.
        k: how many chunks.
        exact: compare with every chunk; otherwise a large index may miss some of the best.

    Raises:
        InvalidInputError: the text is empty, or k below 1.
        NotFoundError: there is no such collection, or it has no index yet; or none has.
    """
    if collections is None:
        known = list(loaded()[0].values()) or [open()]
        asked = [one for one in known if one.index.is_built] or known[:1]
    else:
        several = [collections] if isinstance(collections, str | Collection) else collections
        asked = [open(one) if isinstance(one, str) else one for one in several]
    return search_indexes([one.index for one in asked], text, k, exact=exact)


def collections() -> dict[str, Collection]:
    """The project's collections by name, sorted; a warning tells of each that cannot be loaded."""
    available, broken = loaded()
    for sentence in broken:
        logging.getLogger(__name__).warning("Not loaded: %s", sentence)
    return available


def open(name: str | None = None) -> Collection:
    """One of the project's collections; the name may be left out if there is only one.

    Raises:
        NotFoundError: there is no such collection, it cannot be loaded, or there are several and no
            name.
    """
    if name is not None and name in (available := loaded(name)[0]):
        return available[name]
    available, broken = loaded()
    known = f"Collections: {', '.join(available) or 'none'}."
    if broken:
        known = "\n".join([known, *(f"Not loaded: {each}" for each in broken)])
    if name is None:
        if len(available) != 1 or broken:
            raise NotFoundError(f"Name a collection. {known}")
        (name,) = available
    if name not in available:
        raise NotFoundError(f"There is no collection '{name}'. {known}")
    return available[name]


def loaded(name: str | None = None) -> tuple[dict[str, Collection], list[str]]:
    """The project's collections by name, sorted, and a sentence for each file that is broken.

    Args:
        name: only this one, if it is there.
    """
    from embedding_assets.project import load_collections

    found = load_collections(name)
    return {settings.name: Collection(settings, own) for settings, own in found.collections}, (
        found.broken
    )


def _dagster_instance() -> AbstractContextManager[dg.DagsterInstance | None]:
    """Where Dagster keeps its history, if it has one."""
    from embedding_assets.collection.environment import read_environment
    from resources.dagster_instance.home import open_home

    home = read_environment().dagster_home
    return open_home(home) if home.exists() else nullcontext()
