"""Whether all that must work for the service does."""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from embedding_assets.service.service import Service
from resources.caches.duckdb_file import CacheLockedError
from resources.vector_stores.base import NoIndexError

_SECONDS_OF_PARTS = 1.0
"""For so long what works is taken to do so."""
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


class Readiness:
    """Asks each part of a service, at most once a second."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._parts: tuple[float, dict[str, Part]] = (-math.inf, {})

    async def parts(self) -> dict[str, Part]:
        """All that must work, by name: models, the cache, and the indexes."""
        if time.monotonic() - self._parts[0] > _SECONDS_OF_PARTS:
            self._parts = time.monotonic(), await self._ask()
        return self._parts[1]

    async def _ask(self) -> dict[str, Part]:
        service = self._service
        checks: dict[str, Callable[[], object]] = {}
        for name, collection in service.collections.items():
            checks["cache"] = collection.resources.cache.hasty().spaces
            checks[f"index {name}"] = lambda one=collection: service.spaces.ask(one)
        tried = await asyncio.gather(*map(self._tried, checks.values()))
        needed = service.needed_spaces()
        models = {
            f"model {server.space.model} ({space})": self._model(space, needed=space in needed)
            for space, server in service.servers.items()
        }
        notes = {name: Part(True, 0.0, said, needed=False) for name, said in service.notes.items()}
        return models | dict(zip(checks, tried, strict=True)) | notes

    def _model(self, space: str, *, needed: bool) -> Part:
        service = self._service
        if service.is_asleep(space):
            return Part(True, 0.0, "It is a fallback that no index has rows of.", needed)
        reason = service.why_not_loaded(space)
        return Part(reason is None, service.servers[space].batcher.seconds_to_wait, reason, needed)

    async def _tried(self, act: Callable[[], object]) -> Part:
        started, reason, ok = time.perf_counter(), None, True
        try:
            await asyncio.wait_for(self._service.in_thread(act), _PATIENCE)
        except asyncio.TimeoutError:
            ok, reason = False, f"It does not answer within {_PATIENCE:.0f} s."
        except NoIndexError:
            reason = "It is not built yet."
        except CacheLockedError:
            reason = "A run is writing; until it is done texts are embedded."
        except Exception as error:
            ok, reason = False, str(error) or type(error).__name__
        return Part(ok, time.perf_counter() - started, reason)
