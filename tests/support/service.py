"""The real application behind a real socket, in this process: its parts can be looked at."""

import asyncio
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import uvicorn

from embedding_assets.api import Collection
from embedding_assets.bulk.queue import JobQueue
from embedding_assets.service.access import Access
from embedding_assets.service.app import create_app
from embedding_assets.service.keys import KeyRing
from embedding_assets.service.service import Service
from embedding_assets.service.settings import ServiceSettings
from resources.embedders.base import EmbeddingBatch, Role
from resources.limits.quota import MemoryQuotas, Quotas
from tests.support.fakes import CountingEmbedder


class RunningService:
    """Serves collections as `embedding-assets serve` does, until the block ends."""

    def __init__(
        self,
        *collections: Collection,
        folder: Path,
        quotas: Quotas | None = None,
        queue: JobQueue | None = None,
        **settings: Any,
    ) -> None:
        self.settings = ServiceSettings(**settings)
        self.service = Service({one.name: one for one in collections}, [], self.settings)
        self.keys = folder / "api_keys.json"
        self.quotas = MemoryQuotas() if quotas is None else quotas
        access = Access(KeyRing(self.keys), self.quotas, self.settings.quota, self.service.metrics)
        config = uvicorn.Config(
            create_app(self.service, access, queue), log_config=None, timeout_graceful_shutdown=20
        )
        self._server = uvicorn.Server(config)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._server.serve([self._socket])), daemon=True
        )
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def __enter__(self) -> "RunningService":
        self._thread.start()
        firsts = [one.resources.embedder for one in self.service.collections.values()]
        servers = [self.service.servers[embedder.space.id] for embedder in firsts]
        wait_until(lambda: all(server.is_loaded for server in servers))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.close()
        self.stop()

    def stop(self) -> None:
        """As SIGTERM does."""
        self._server.should_exit = True
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def metric(self, name: str, **labels: str) -> float:
        """A number as /metrics tells it; 0 if it does not."""
        text = self.client.get("/metrics").text
        for line in text.splitlines():
            told, _, value = line.rpartition(" ")
            if told.partition("{")[0] == f"embedding_{name}" and all(
                f'{label}="{wanted}"' in told for label, wanted in labels.items()
            ):
                return float(value)
        return 0.0


class GatedEmbedder(CountingEmbedder):
    """Waits in each call until the test lets it go on."""

    def embed(self, texts: Sequence[str], role: Role = "document") -> EmbeddingBatch:
        gate = _gates.get(self.memory)
        if gate is not None:
            gate.calls.append(list(texts))
            assert gate.open.wait(60)
        return super().embed(texts, role)

    @property
    def seconds_per_call(self) -> float:
        return 10.0

    def close(self) -> "Gate":
        """From now on each call waits."""
        _gates[self.memory] = gate = Gate()
        return gate


class Gate:
    """Of a `GatedEmbedder`; `calls`: the texts of each call that has come to it."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.calls: list[list[str]] = []


_gates: dict[str, Gate] = {}


def wait_until(condition: Any, seconds: float = 20) -> None:
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.005)
