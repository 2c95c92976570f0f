"""The service without HTTP: which models, caches and indexes it answers from."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from embedding_assets.api import Collection
from embedding_assets.retrieval.search import IndexReader
from embedding_assets.service.batching import QueueLimits
from embedding_assets.service.errors import ServiceError
from embedding_assets.service.index_spaces import IndexSpaces, spaces_of
from embedding_assets.service.metrics import Metrics
from embedding_assets.service.pipeline_numbers import PipelineNumbers
from embedding_assets.service.settings import ServiceSettings
from embedding_assets.service.vectors import VectorServer
from resources.caches.memory import VectorMemory
from resources.embedders.base import Embedder
from resources.machine import machine

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

_MEMORY_SHARE = 20
_SECONDS_BETWEEN_LOADS = 5.0


class Service:
    """Answers from the collections of a project; its methods are for one event loop."""

    def __init__(
        self,
        collections: Mapping[str, Collection],
        not_loaded: Sequence[str],
        settings: ServiceSettings,
        dagster_home: Path | None = None,
    ) -> None:
        """Loads nothing yet.

        Args:
            collections: what is served, by name.
            not_loaded: a sentence for each of the project's files that could not be loaded.
            settings: of the service.
            dagster_home: where the runs are recorded; None: nothing is told of them.
        """
        self.collections = dict(collections)
        self.not_loaded = list(not_loaded)
        self.settings = settings
        self.metrics = Metrics()
        self.pipeline = None
        if dagster_home is not None:
            self.pipeline = PipelineNumbers(list(self.collections.values()), dagster_home)
            self.metrics.registry.register(self.pipeline)
        self.started_at = time.time()
        self.servers: dict[str, VectorServer] = {}
        self.spaces = IndexSpaces()
        self.notes: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self.watch: Callable[[], Awaitable[None]] | None = None
        self._memory = VectorMemory(settings.memory or machine().memory // _MEMORY_SHARE)
        self._limits = QueueLimits(
            settings.queue_texts, settings.queue_tokens, settings.queue_seconds
        )
        for collection in self.collections.values():
            self._add_servers(collection)
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Future[Any]] = []
        self._threads = ThreadPoolExecutor(2 * machine().cores, thread_name_prefix="store")

    # --- Life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to load the models; `parts` says when that is done.

        That of a fallback, which may cost money, only if an index has rows of it, or when a request
        names it.
        """
        for collection in self.collections.values():
            self.server_of(collection.resources.embedder)
        self._tasks.append(asyncio.ensure_future(self._look_at_all()))
        if self.watch is not None:
            self._tasks.append(asyncio.ensure_future(self.watch()))

    async def _look_at_all(self) -> None:
        """Finds the indexes that have rows of a fallback."""
        looks = [
            self.in_thread(lambda one=one: self.spaces.ask(one))
            for one in self.collections.values()
        ]
        await asyncio.gather(*looks, return_exceptions=True)
        self.needed_spaces()

    async def load(self, space: str, server: VectorServer) -> None:
        """Until it is loaded; `failures` says why it is not."""
        self.failures.pop(space, None)
        while not server.is_loaded:
            try:
                await server.start()
                self.metrics.has_model(server.space, server.embedder.kind)
                _log.info("Ready: %s", server.embedder.describe())
            except Exception as error:
                self.failures[space] = str(error)
                _log.warning("%s cannot be used, which is tried again: %s", space, error)
                await asyncio.sleep(_SECONDS_BETWEEN_LOADS)
        self.failures.pop(space, None)

    async def stop(self) -> None:
        """Waits until what was accepted is answered, and stores what was embedded."""
        for task in (*self._tasks, *self._loading.values()):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        stopping = asyncio.gather(*(server.stop() for server in self.servers.values()))
        try:
            await asyncio.wait_for(stopping, self.settings.drain_seconds)
        except asyncio.TimeoutError:
            _log.warning("A model did not end within %d s.", self.settings.drain_seconds)
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- What is served ---------------------------------------------------------------------------

    def new_server(self, collection: Collection, embedder: Embedder) -> VectorServer:
        """What will answer for the space of an embedder; it is not loaded yet."""
        cache = collection.resources.cache
        return VectorServer(embedder, cache, self._memory, self._limits, self.metrics)

    def _add_servers(self, collection: Collection) -> None:
        for embedder in collection.resources.embedders:
            if embedder.space.id not in self.servers:
                self.servers[embedder.space.id] = self.new_server(collection, embedder)

    def put(self, name: str, new: Collection | None) -> None:
        """Serves a collection as it is defined now, or no more.

        The dictionary is replaced: threads may be reading it.
        """
        old = self.collections.get(name)
        kept = {other: one for other, one in self.collections.items() if other != name}
        if new is not None:
            self._add_servers(new)
            kept = dict(sorted({**kept, name: new}.items()))
        if old is not None:
            self.spaces.changed(old, new)
        self.collections = kept
        if self.pipeline is not None:
            self.pipeline.collections = list(kept.values())

    def take_in(self, space: str, server: VectorServer, loading: "asyncio.Task[None]") -> None:
        """Answers for a space with a model that was loaded apart."""
        self.servers[space] = server
        self._loading[space] = loading

    def take_out_unneeded(self, wanted: Set[str]) -> list[tuple[str, VectorServer]]:
        """The models that nothing needs any more, which from now on nobody can ask.

        Args:
            wanted: the ids of the spaces that will be needed soon.
        """
        needed = {
            embedder.space.id
            for one in self.collections.values()
            for embedder in one.resources.embedders
        }
        needed |= self.spaces.former_spaces | wanted
        unneeded = [(space, self.servers[space]) for space in self.servers.keys() - needed]
        for space, _ in unneeded:
            del self.servers[space]
            if (loading := self._loading.pop(space, None)) is not None:
                loading.cancel()
            self.failures.pop(space, None)
            self.metrics.forget_model(space)
        return unneeded

    # --- Which model ------------------------------------------------------------------------------

    def server_of(self, embedder: Embedder) -> VectorServer:
        """What answers for the space of an embedder; begins to load it unless that was done."""
        space = embedder.space.id
        server = self.servers[space]
        if space not in self._loading:
            self._loading[space] = asyncio.create_task(self.load(space, server))
        return server

    def server_for(
        self, collection: str | None, model: str | None, field: str = "model"
    ) -> VectorServer:
        """What embeds for somebody who names a collection, a model, both or nothing.

        Raises:
            ServiceError: there is no such, or there are several.
        """
        if collection is not None:
            found = self.server_of(self.collection(collection).resources.embedder)
            names = (found.space.model, found.space.id, collection)
            if model is not None and model not in names:
                raise ServiceError(
                    422,
                    "model_not_of_collection",
                    f"The collection '{collection}' has the model {found.space.model}; leave out "
                    "'model', or 'collection'.",
                    field=field,
                )
            return found
        if model is not None:
            if model in self.collections:
                return self.server_of(self.collections[model].resources.embedder)
            named = [
                one for one in self.servers.values() if model in (one.space.model, one.space.id)
            ]
            if len(named) == 1:
                return self.server_of(named[0].embedder)
            if named:
                raise ServiceError(
                    422,
                    "several_models",
                    f"Several spaces have the model {model}: name a collection "
                    f"({', '.join(self.collections)}), or one of "
                    f"{', '.join(one.space.id for one in named)}.",
                    field=field,
                )
            known = {one.space.model for one in self.servers.values()} | {*self.collections}
            raise ServiceError(
                404,
                "model_not_found",
                f"There is no such model. There are: {', '.join(sorted(known)) or 'none'}.",
                field=field,
            )
        firsts = {self.server_of(one.resources.embedder) for one in self.collections.values()}
        if len(firsts) == 1:
            return firsts.pop()
        raise ServiceError(
            422,
            "name_a_model",
            "There are several models: name a collection, which is one of "
            f"{', '.join(self.collections)}."
            if firsts
            else "There is no collection yet: `embedding-assets new FOLDER` makes one.",
            field="collection",
        )

    def collection_of(self, server: VectorServer) -> str:
        """The name of a collection whose documents a server embeds.

        Raises:
            ServiceError: it only stands in for another one.
        """
        for name, collection in self.collections.items():
            if self.server_of(collection.resources.embedder) is server:
                return name
        raise ServiceError(
            422, "no_such_collection", "No collection has this model in the first place: name one."
        )

    def collection(self, name: str, told: Callable[[str], bool] = lambda _: True) -> Collection:
        """One collection.

        Args:
            name: of it.
            told: whether who asks may know of a collection of some name.

        Raises:
            ServiceError: there is no such.
        """
        if name not in self.collections:
            known = ", ".join(filter(told, self.collections)) or "none"
            raise ServiceError(
                404,
                "collection_not_found",
                f"There is no such collection. There are: {known}.",
                field="collection",
            )
        return self.collections[name]

    # --- Search -----------------------------------------------------------------------------------

    async def in_thread(self, act: Callable[[], _Result]) -> _Result:
        """Runs what reads the store, which would stop the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, act)

    async def built(self) -> list[str]:
        """The collections in which there is something to search."""
        asked = await self.in_thread(
            lambda: [name for name, one in self.collections.items() if self.spaces.is_built(one)]
        )
        return asked or list(self.collections)

    async def spaces_to_ask(self, names: Sequence[str]) -> dict[IndexReader, Sequence[Embedder]]:
        """The indexes of some collections, each with the embedders of the spaces it has rows in.

        For each of them there is a server, as long as the caller does not wait for anything.

        Raises:
            NoIndexError: a collection has no index yet.
        """
        while True:
            asked: dict[IndexReader, Sequence[Embedder]] = {}
            for name in names:
                collection = self.collection(name)
                readers = self.spaces.known(name)
                if readers is None:
                    readers = await self.in_thread(lambda one=collection: self.spaces.ask(one))
                asked |= readers
            if spaces_of(asked) <= self.servers.keys():
                return asked
            for name in names:  # a definition has changed meanwhile
                self.spaces.forget(name)

    def needed_spaces(self) -> set[str]:
        """The ids of those of new texts, and of those that an index is asked in; loads them."""
        needed = {one.resources.embedder.space.id for one in self.collections.values()}
        needed |= self.spaces.asked & self.servers.keys()
        for space in needed:
            self.server_of(self.servers[space].embedder)
        return needed

    def why_not_loaded(self, space: str) -> str | None:
        """Why a model does not answer yet; None: it does, or is not asked to."""
        if space not in self._loading or self.servers[space].is_loaded:
            return None
        return self.failures.get(space, "It is being loaded.")

    def is_asleep(self, space: str) -> bool:
        """Whether nothing has asked for a model yet."""
        return space not in self._loading
