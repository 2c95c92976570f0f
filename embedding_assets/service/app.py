"""The application: endpoints, and what is around each of them."""

import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedding_assets.service.access import Access
from embedding_assets.service.embedding_routes import add_embedding_routes
from embedding_assets.service.errors import ServiceError
from embedding_assets.service.http import error_response
from embedding_assets.service.job_routes import add_job_routes
from embedding_assets.service.metrics import Metrics
from embedding_assets.service.search_routes import add_search_routes
from embedding_assets.service.service import Service
from embedding_assets.service.status_routes import add_status_routes
from resources.errors import EmbeddingAssetsError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from embedding_assets.bulk.queue import JobQueue

_log = logging.getLogger(__name__)


def create_app(service: Service, access: Access, queue: "JobQueue | None" = None) -> FastAPI:
    """The application of a service.

    Args:
        service: what answers; it is started and stopped with the application.
        access: who may ask.
        queue: of bulk jobs; None: there are none.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        del app
        service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="embedding-assets",
        description="Embeddings and search, from the cache, models and indexes of the pipeline.",
        lifespan=life,
        docs_url=None,
        redoc_url=None,
    )
    app.router.route_class = _DirectRoute
    app.add_exception_handler(ServiceError, _failed)
    app.add_exception_handler(EmbeddingAssetsError, _failed)
    app.add_exception_handler(HTTPException, _failed)
    # Not by routers: to look through those would take longer than to answer from memory.
    for add in (add_embedding_routes, add_search_routes, add_status_routes):
        add(app, service, access)
    add_job_routes(app, service, access, queue)
    app.add_middleware(_Around, access=access, metrics=service.metrics)
    return app


class _DirectRoute(APIRoute):
    """Calls an endpoint that takes nothing but the request, without a look for what it depends on.

    That would take a quarter of the time in which a vector from memory is answered.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        if [*inspect.signature(endpoint).parameters] == ["request"]:
            self.app = self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


async def _failed(request: Request, error: Exception) -> Response:
    del request
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        told = error_response(ServiceError(error.status_code, code, str(error.detail)))
        told.headers.update(error.headers or {})
        return told
    if isinstance(error, NotFoundError):
        return error_response(ServiceError(404, "not_found", str(error)))
    if isinstance(error, InvalidInputError):
        return error_response(ServiceError(422, "invalid_request", str(error)))
    if isinstance(error, ServiceError):
        return error_response(error)
    return error_response(ServiceError(503, "unavailable", str(error), retry_after=1.0))


class _Around:
    """Turns away what a strange page sends, measures each request, adds the headers that belong to
    every answer, and answers defects."""

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics) -> None:
        self._app = app
        self._access = access
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"]
                for name, value in scope.get("state", {}).get("headers", {}).items():
                    headers.append((name.lower().encode(), value.encode()))
                taken = (time.perf_counter() - started) * 1000
                headers.append((b"server-timing", b"total;dur=%.2f" % taken))
            await send(message)

        try:
            refused = self._access.refused(scope)
            await (error_response(refused) if refused else self._app)(scope, receive, answer)
        except Exception:
            _log.exception("A defect of the service's")
            if not status:
                told = ServiceError(500, "internal", "A defect of the service's; see its log.")
                await error_response(told)(scope, receive, answer)
        finally:
            endpoint = getattr(scope.get("route"), "path", "other")
            self._metrics.answered(endpoint, status, time.perf_counter() - started)
