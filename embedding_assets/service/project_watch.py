"""Notices that collections are defined otherwise by now, and has the service answer by that.

A new model is loaded beside the old one, and takes its place when it works. What is asked in an
index meanwhile, `index_spaces` says.
"""

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from embedding_assets.api import Collection
from embedding_assets.service.service import Service
from embedding_assets.service.vectors import VectorServer
from resources.embedders.base import Embedder

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 2.0
_LOOKING = "looking at definitions"
_NOT_NOW = "Served as it was defined before"


@dataclass
class _Incoming:
    """A model that is being loaded, of which nothing is asked yet."""

    server: VectorServer
    loading: asyncio.Task[None]


class ProjectWatch:
    """Looks at the files of a project every other second, in a thread, and at SIGHUP at once."""

    def __init__(
        self,
        service: Service,
        load: Callable[[], tuple[Mapping[str, Collection], list[str]]],
        written: Callable[[], object],
        since: object,
    ) -> None:
        """Begins from what the service has been given.

        Args:
            service: is told of changes.
            load: the collections by name, and a sentence for each file that is broken.
            written: something that is another once a file has changed.
            since: what that was before the service's collections were loaded.
        """
        self._service = service
        self._load = load
        self._written = written
        self._adopted = self._seen = since
        self._wanted: dict[str, Collection] = {}
        self._incoming: dict[str, _Incoming] = {}
        self._retired: list[tuple[str, VectorServer]] = []
        self._wake = asyncio.Event()
        self._told: dict[str, str] = {}
        self._tell_broken(service.not_loaded)

    async def run(self) -> None:
        """Until it is cancelled."""
        # Neither another system than Unix has it, nor another thread than the first.
        if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._wake.set)
        try:
            while True:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), _SECONDS_BETWEEN_LOOKS)
                at_once = self._wake.is_set()
                self._wake.clear()
                try:
                    await self.look(at_once=at_once)
                    self._service.notes.pop(_LOOKING, None)
                except Exception as error:  # whatever it is, there are questions to be answered
                    self._tell(_LOOKING, f"{_NOT_NOW}: {error}")
        finally:
            for incoming in self._incoming.values():
                _abandon(incoming)
            for _, server in self._retired:
                await server.stop()

    async def look(self, *, at_once: bool = False) -> None:
        """Reads what has changed, and goes on with what was begun.

        Args:
            at_once: also if the files seem unchanged. Otherwise they must have rested since the
                last look: an editor may write a file in several steps.
        """
        written = await self._service.in_thread(self._written)
        rested, self._seen = written == self._seen, written
        if at_once or (rested and written != self._adopted):
            self._adopted = written
            found, broken = await self._service.in_thread(self._load)
            await self._adopt(found, broken)
        self._switch()
        for collection in list(self._service.collections.values()):
            await self._service.in_thread(lambda one=collection: self._service.spaces.promote(one))
        await self._retire()

    # --- What is wanted ---------------------------------------------------------------------------

    async def _adopt(self, found: Mapping[str, Collection], broken: list[str]) -> None:
        service = self._service
        service.not_loaded = broken
        self._wanted.clear()
        service.notes.clear()
        self._told.clear()
        self._tell_broken(broken)
        if not broken:  # what is missing may be in a file that is broken
            for name in service.collections.keys() - found.keys():
                _log.info("'%s' is served no more: its definition is gone", name)
                service.put(name, None)
        for name, new in found.items():
            try:
                spaces = await service.in_thread(lambda one=new: _spaces(one))
            except Exception as error:
                self._tell(f"definition {name}", f"{_NOT_NOW}: {error}")
                continue
            old = service.collections.get(name)
            if old is None or old.settings != new.settings or _spaces(old) != spaces:
                self._wanted[name] = new
        self._begin()

    def _begin(self) -> None:
        """Begins to load the models that are needed, and gives up those that no longer are."""
        needed: dict[str, tuple[Collection, Embedder]] = {}
        for collection in self._wanted.values():
            for embedder in collection.resources.embedders:
                needed.setdefault(embedder.space.id, (collection, embedder))
        for space in self._incoming.keys() - needed.keys():
            _abandon(self._incoming.pop(space))
        for space, (collection, embedder) in needed.items():
            self._begin_to_load(space, collection, embedder)

    def _begin_to_load(self, space: str, collection: Collection, embedder: Embedder) -> None:
        service = self._service
        is_first = embedder is collection.resources.embedder
        if not is_first and service.is_asleep(space):
            if space in service.servers:  # which nobody has asked
                service.servers[space] = service.new_server(collection, embedder)
            return
        incoming, served = self._incoming.get(space), service.servers.get(space)
        if incoming is not None:
            if _is_same(incoming.server.embedder, embedder):
                return
            _abandon(self._incoming.pop(space))
        if served is None or not _is_same(served.embedder, embedder):
            server = service.new_server(collection, embedder)
            loading = asyncio.create_task(service.load(space, server))
            self._incoming[space] = _Incoming(server, loading)

    # --- What is served ---------------------------------------------------------------------------

    def _switch(self) -> None:
        """Puts collections whose models are there into the place of the old ones."""
        service = self._service
        for space, incoming in list(self._incoming.items()):
            if incoming.server.is_loaded:
                del self._incoming[space]
                if (old := service.servers.get(space)) is not None:
                    self._retired.append((space, old))
                service.take_in(space, incoming.server, incoming.loading)
        for name, new in list(self._wanted.items()):
            embedder, old = new.resources.embedder, service.collections.get(name)
            space = embedder.space.id
            is_there = space not in self._incoming and service.server_of(embedder).is_loaded
            if not is_there and (old is None or old.resources.embedder.space.id != space):
                if (why := service.failures.get(space)) is not None:
                    self._tell(f"definition {name}", f"{_NOT_NOW}: {why}")
                else:
                    service.notes[f"definition {name}"] = f"{_NOT_NOW}: its model is being loaded."
                continue
            del self._wanted[name]
            service.notes.pop(f"definition {name}", None)
            service.put(name, new)
            _log.info("'%s' is served as it is defined now, with %s", name, space)

    async def _retire(self) -> None:
        """Ends the models of which no index needs anything and nobody waits for anything."""
        service = self._service
        self._retired += service.take_out_unneeded(
            {space for one in self._wanted.values() for space in _spaces(one)}
        )
        for one in list(self._retired):
            space, server = one
            if server.is_idle:
                self._retired.remove(one)
                await server.stop()
                server.embedder.unload()
                _log.info("No longer in memory: %s (%s)", server.space.model, space)

    def _tell_broken(self, sentences: Sequence[str]) -> None:
        if sentences:
            self._tell("definitions", " ".join(["Not loaded:", *sentences]))

    def _tell(self, name: str, sentence: str) -> None:
        self._service.notes[name] = sentence
        if self._told.get(name) != sentence:
            self._told[name] = sentence
            _log.warning("%s: %s", name, sentence)


def _abandon(incoming: _Incoming) -> None:
    incoming.loading.cancel()
    incoming.server.close()


def _spaces(collection: Collection) -> list[str]:
    return [embedder.space.id for embedder in collection.resources.embedders]


def _is_same(one: Embedder, other: Embedder) -> bool:
    """Whether both are set the same, server and device included."""
    return type(one) is type(other) and one.model_dump() == other.model_dump()
