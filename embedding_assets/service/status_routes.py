"""Whether the service works, how it goes, and its pages."""

import time
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from embedding_assets.service.access import Access
from embedding_assets.service.http import json_response
from embedding_assets.service.readiness import Readiness
from embedding_assets.service.reference import reference_page
from embedding_assets.service.service import Service

SCOPE = "metrics"
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def add_status_routes(app: FastAPI, service: Service, access: Access) -> None:
    """Adds the endpoints for those who operate the service, and the pages."""
    tags: list[str | Enum] = ["Status"]
    readiness = Readiness(service)

    @app.get("/health", tags=tags)
    async def health() -> Response:
        """The process is alive and its event loop turns."""
        return json_response({"status": "ok"})

    @app.get("/ready", tags=tags)
    async def ready(request: Request) -> Response:
        """Models are loaded, the cache answers, and the indexes can be opened.

        Each is named if there are no keys, or to a key for metrics.
        """
        parts = await readiness.parts()
        is_ready = all(part.ok or not part.needed for part in parts.values())
        told: dict[str, Any] = {"status": "ready" if is_ready else "not ready"}
        if access.sees(request, SCOPE):
            told["parts"] = {
                name: {
                    "ok": part.ok,
                    "needed": part.needed,
                    "seconds": round(part.seconds, 6),
                    **({"reason": part.reason} if part.reason else {}),
                }
                for name, part in parts.items()
            }
        return json_response(told, 200 if is_ready else 503)

    @app.get("/metrics", tags=tags)
    async def metrics(request: Request) -> Response:
        """For Prometheus."""
        access.identify(request, SCOPE)
        await _look(service)
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/stats", tags=tags)
    async def stats(request: Request) -> Response:
        """The same numbers for people."""
        access.identify(request, SCOPE)
        await _look(service)
        return json_response(_stats(service))

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _page(_search_page())

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return _page(reference_page(app.openapi()))


def _page(content: bytes | str) -> Response:
    headers = {
        "Content-Security-Policy": _PAGE_POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return Response(content, media_type="text/html", headers=headers)


@cache
def _search_page() -> bytes:
    return (Path(__file__).parent / "page.html").read_bytes()


async def _look(service: Service) -> None:
    """Sets what is looked up only when somebody asks."""
    if service.pipeline is not None and service.pipeline.is_due:
        await service.in_thread(service.pipeline.look)
    batchers = [server.batcher for server in service.servers.values()]
    service.metrics.queued_texts.set(sum(one.queued_texts for one in batchers))
    service.metrics.queued_tokens.set(sum(one.queued_tokens for one in batchers))
    service.metrics.running.set(sum(one.running for one in batchers))


def _stats(service: Service) -> dict[str, Any]:
    numbers: dict[str, float] = {}
    by_name: dict[str, dict[str, float]] = {}
    for metric in service.metrics.registry.collect():
        for sample in metric.samples:
            name = sample.name.removeprefix("embedding_")
            if name.endswith(("_bucket", "_created", "_info")):
                continue
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            if labels:
                by_name.setdefault(name, {})[labels] = sample.value
            else:
                numbers[name] = sample.value
    texts = by_name.get("texts_total", {})
    cached = sum(value for labels, value in texts.items() if "cached=true" in labels)
    total = sum(texts.values())
    return {
        "uptime_seconds": round(time.time() - service.started_at, 1),
        "cache_hit_rate": round(cached / total, 4) if total else None,
        "models": [
            {
                "model": server.space.model,
                "space": server.space.id,
                "dimension": server.space.dimension,
                "loaded": server.is_loaded,
                "runs": server.embedder.describe() if server.is_loaded else None,
                "queued_texts": server.batcher.queued_texts,
                "seconds_to_wait": round(server.batcher.seconds_to_wait, 3),
            }
            for server in service.servers.values()
        ],
        **numbers,
        **by_name,
    }
