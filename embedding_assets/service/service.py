"""The service without HTTP: which models, caches and indexes it answers from."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from embedding_assets.api import Collection
from embedding_assets.retrieval.hits import Hits
from embedding_assets.retrieval.search import IndexReader, nearest_chunks
from embedding_assets.service.batching import QueueLimits
from embedding_assets.service.errors import ServiceError
from embedding_assets.service.metrics import Metrics
from embedding_assets.service.pipeline_numbers import PipelineNumbers
from embedding_assets.service.settings import ServiceSettings
from embedding_assets.service.vectors import VectorServer
from resources.caches.duckdb_file import CacheLockedError
from resources.caches.memory import VectorMemory
from resources.embedders.base import Embedder
from resources.machine import machine
from resources.vector_stores.base import NoIndexError

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

_MEMORY_SHARE = 20
_SECONDS_OF_SPACES, _SECONDS_OF_PARTS = 1.0, 1.0
"""For so long the spaces in which a collection has rows, and what works, are taken to stay so."""
_SECONDS_BETWEEN_LOADS = 5.0
_PATIENCE = 5.0


@dataclass(frozen=True)
class Part:
    """Something that must work for the service to work.

    Attributes:
        ok: whether it does.
        seconds: that it took to answer.
        reason: why it does not work.
        needed: whether the service is not ready without it; a fallback's model that no index has
            rows of is not.
    """

    ok: bool
    seconds: float
    reason: str | None = None
    needed: bool = True


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
        memory = VectorMemory(settings.memory or machine().memory // _MEMORY_SHARE)
        limits = QueueLimits(settings.queue_texts, settings.queue_tokens, settings.queue_seconds)
        for collection in self.collections.values():
            for embedder in collection.resources.embedders:
                if embedder.space.id not in self.servers:
                    cache = collection.resources.cache
                    self.servers[embedder.space.id] = VectorServer(
                        embedder, cache, memory, limits, self.metrics
                    )
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._looking: asyncio.Task[object] | None = None
        self._failures: dict[str, str] = {}
        self._asked: dict[str, tuple[float, Sequence[Embedder]]] = {}
        self._parts: tuple[float, dict[str, Part]] = (-math.inf, {})
        self._threads = ThreadPoolExecutor(2 * machine().cores, thread_name_prefix="store")

    # --- Life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to load the models; `parts` says when that is done.

        That of a fallback, which may cost money, only if an index has rows of it, or when a request
        names it.
        """
        for collection in self.collections.values():
            self.server_of(collection.resources.embedder)
        self._looking = asyncio.create_task(
            self._ask_parts()
        )  # which indexes have rows of a fallback

    async def _load(self, space: str, server: VectorServer) -> None:
        self._failures.pop(space, None)
        self.metrics.model.labels(space).info(
            {
                "model": server.space.model,
                "dimension": str(server.space.dimension),
                "kind": server.embedder.kind,
            }
        )
        while not server.is_loaded:
            try:
                await server.start()
                _log.info("Ready: %s", server.embedder.describe())
            except Exception as error:
                self._failures[space] = str(error)
                _log.warning("%s cannot be used, which is tried again: %s", space, error)
                await asyncio.sleep(_SECONDS_BETWEEN_LOADS)
        self._failures.pop(space, None)

    async def stop(self) -> None:
        """Waits until what was accepted is answered, and stores what was embedded."""
        for task in filter(None, (self._looking, *self._loading.values())):
            task.cancel()
        stopping = asyncio.gather(*(server.stop() for server in self.servers.values()))
        try:
            await asyncio.wait_for(stopping, self.settings.drain_seconds)
        except asyncio.TimeoutError:
            _log.warning("A model did not end within %d s.", self.settings.drain_seconds)
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- Which model ------------------------------------------------------------------------------

    def server_of(self, embedder: Embedder) -> VectorServer:
        """What answers for the space of an embedder; begins to load it unless that was done."""
        space = embedder.space.id
        server = self.servers[space]
        if space not in self._loading:
            self._loading[space] = asyncio.create_task(self._load(space, server))
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
            lambda: [name for name, one in self.collections.items() if one.index.is_built]
        )
        return asked or list(self.collections)

    async def spaces_to_ask(self, names: Sequence[str]) -> dict[IndexReader, Sequence[Embedder]]:
        """The indexes of some collections, each with the embedders of the spaces it has rows in.

        Raises:
            NoIndexError: a collection has no index yet.
        """
        asked = {}
        for name in names:
            index = self.collection(name).index
            known_at, embedders = self._asked.get(name, (0.0, ()))
            if time.monotonic() - known_at > _SECONDS_OF_SPACES or not embedders:
                embedders = await self.in_thread(lambda name=name: self._look(name))
            asked[index] = embedders
        return asked

    def _look(self, name: str) -> Sequence[Embedder]:
        """In a thread: the embedders of the spaces in which a collection has rows."""
        self._asked.pop(name, None)
        embedders = self.collections[name].index.embedders()
        self._asked[name] = time.monotonic(), embedders
        return embedders

    async def nearest(
        self,
        asked: Mapping[IndexReader, Sequence[Embedder]],
        vectors: Mapping[str, np.ndarray],
        k: int,
        *,
        exact: bool,
    ) -> Hits:
        """The chunks nearest to a question whose vectors are there, by id of the space."""
        by_space = {
            embedder.space: vectors[embedder.space.id]
            for embedders in asked.values()
            for embedder in embedders
        }
        return await self.in_thread(lambda: nearest_chunks(asked, by_space, k, exact=exact))

    # --- Readiness --------------------------------------------------------------------------------

    async def parts(self) -> dict[str, Part]:
        """All that must work, by name: models, the cache, and the indexes; asked once a second."""
        if time.monotonic() - self._parts[0] > _SECONDS_OF_PARTS:
            self._parts = time.monotonic(), await self._ask_parts()
        return self._parts[1]

    async def _ask_parts(self) -> dict[str, Part]:
        checks: dict[str, Callable[[], object]] = {}
        for name, collection in self.collections.items():
            checks["cache"] = collection.resources.cache.hasty().spaces
            checks[f"index {name}"] = lambda name=name: self._look(name)
        tried = await asyncio.gather(*map(self._tried, checks.values()))
        asked = [one for _, embedders in self._asked.values() for one in embedders]
        firsts = [collection.resources.embedder for collection in self.collections.values()]
        needed = {self.server_of(one).space.id for one in (*firsts, *asked)}
        models = {
            f"model {server.space.model} ({space})": self._model(space, server, space in needed)
            for space, server in self.servers.items()
        }
        return models | dict(zip(checks, tried, strict=True))

    def _model(self, space: str, server: VectorServer, needed: bool) -> Part:
        if space not in self._loading:
            return Part(True, 0.0, "It is a fallback that no index has rows of.", needed)
        reason = None if server.is_loaded else self._failures.get(space, "It is being loaded.")
        return Part(reason is None, server.batcher.seconds_to_wait, reason, needed)

    async def _tried(self, act: Callable[[], object]) -> Part:
        started, reason, ok = time.perf_counter(), None, True
        try:
            await asyncio.wait_for(self.in_thread(act), _PATIENCE)
        except asyncio.TimeoutError:
            ok, reason = False, f"It does not answer within {_PATIENCE:.0f} s."
        except NoIndexError:
            reason = "It is not built yet."
        except CacheLockedError:
            reason = "A run is writing; until it is done texts are embedded."
        except Exception as error:
            ok, reason = False, str(error) or type(error).__name__
        return Part(ok, time.perf_counter() - started, reason)
