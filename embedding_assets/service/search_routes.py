"""Questions to the collections, and their documents."""

import time
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response

from embedding_assets.retrieval.hits import Hits
from embedding_assets.retrieval.passages import Excerpts
from embedding_assets.service.access import Access
from embedding_assets.service.errors import ServiceError
from embedding_assets.service.http import (
    answered,
    check_texts,
    json_response,
    parsed,
    read_body,
    seconds_left,
)
from embedding_assets.service.openapi import described, errors
from embedding_assets.service.schemas import Found, SearchQueries, SearchQuery
from embedding_assets.service.service import Service
from resources.identity.content_hash import chunk_id
from resources.vector_stores.base import NoIndexError

SCOPE = "search"
_HIGHLIGHT = 320
_CHUNKS_AT_ONCE = 64
_COLUMNS = ("chunk_number", "span_start", "span_end", "text")
_OF_DOCUMENT = ("title", "timestamp", "partition", "metadata")


def add_search_routes(app: FastAPI, service: Service, access: Access) -> None:
    """Adds The endpoints that search."""
    tags: list[str | Enum] = ["Search"]

    async def found(request: Request, query: SearchQuery, names: Sequence[str]) -> Response:
        began = time.perf_counter()
        check_texts([query.query], "query", service.settings)
        if query.k > service.settings.max_hits:
            raise ServiceError(
                422, "k_too_large", f"k is at most {service.settings.max_hits:,}.", field="k"
            )
        await access.take(request, [query.query])
        asked = await service.spaces_to_ask(list(dict.fromkeys(names)))
        seconds = seconds_left(request, service.settings)
        vectors = {}
        requests = {}
        for embedder in (one for several in asked.values() for one in several):
            space = embedder.space.id
            if space not in requests:
                server = service.server_of(embedder)
                requests[space] = server, server.ask([query.query], "query", is_question=True)
        for space, (server, one) in requests.items():
            await answered(server, one, request, seconds)
            for code, message in one.failures.values():
                raise ServiceError(422, code, message, field="query")
            vectors[space] = one.vectors[0]
        embedded = time.perf_counter()
        hits = await service.nearest(asked, vectors, query.k, exact=query.exact)
        searched = time.perf_counter()
        service.metrics.store_seconds.observe(searched - embedded)
        return json_response(
            _as_json(
                query.query,
                hits,
                {
                    "total": searched - began,
                    "embed": embedded - began,
                    "store": searched - embedded,
                },
            )
        )

    @app.post("/search", **described(SearchQueries, Found), tags=tags)
    async def search(request: Request) -> Response:
        """The chunks nearest to a question, in one, several or all collections."""
        access.identify(request)
        query = parsed(SearchQueries, await read_body(request, service.settings))
        if query.collections is None:
            names = [
                name for name in await service.built() if access.may(request, f"{SCOPE}:{name}")
            ]
        else:
            names = query.collections
        if not names:
            access.check(request, SCOPE)
        for name in names:
            service.collection(name)
            access.check(request, f"{SCOPE}:{name}")
        return await found(request, query, names)

    @app.post("/collections/{name}/search", **described(SearchQuery, Found), tags=tags)
    async def search_collection(request: Request, name: str) -> Response:
        """The chunks of one collection nearest to a question."""
        access.identify(request, f"{SCOPE}:{name}")
        query = parsed(SearchQuery, await read_body(request, service.settings))
        service.collection(name)
        return await found(request, query, [name])

    @app.get("/collections", responses=errors(), tags=tags)
    async def collections(request: Request) -> Response:
        """The collections, and whether there is something to search in each."""
        access.identify(request)
        listed = await service.in_thread(
            lambda: [
                _described(service, name)
                for name in service.collections
                if access.may(request, f"{SCOPE}:{name}")
            ]
        )
        return json_response({"collections": listed, "not_loaded": service.not_loaded})

    @app.get("/collections/{name}/documents", responses=errors(), tags=tags)
    async def document(request: Request, name: str, id: str) -> Response:
        """A document as it is in the index: its chunks in order, which may overlap."""
        access.identify(request, f"{SCOPE}:{name}")
        await access.take(request, [])
        service.collection(name)
        shown = await service.in_thread(lambda: _document(service, name, id))
        if shown is None:
            raise ServiceError(
                404, "document_not_found", f"'{name}' has no such document.", field="id"
            )
        return json_response(shown)


def _as_json(question: str, hits: Hits, seconds: Mapping[str, float]) -> dict[str, Any]:
    excerpts = Excerpts(question, [hit.text for hit in hits])
    return {
        "query": question,
        "hits": [
            {
                "score": hit.score,
                "collection": hit.collection,
                "document_id": hit.document_id,
                "title": hit.title,
                "chunk_id": hit.chunk_id,
                "chunk_number": hit.chunk_number,
                "span": [hit.span_start, hit.span_end],
                "text": hit.text,
                "highlight": [excerpts.span(hit.text, _HIGHLIGHT)],
                "timestamp": hit.timestamp,
                "partition": hit.partition,
                "metadata": dict(hit.metadata),
            }
            for hit in hits
        ],
        "spaces": [{"id": space.id, "model": space.model} for space in hits.spaces],
        "fused": len(hits.spaces) > 1,
        "seconds": {name: round(value, 6) for name, value in seconds.items()},
    }


def _described(service: Service, name: str) -> dict[str, Any]:
    collection = service.collections[name]
    store = collection.resources.store
    spaces = [embedder.space for embedder in collection.resources.embedders]
    try:
        chunks = sum(store.count(name, space) for space in spaces)
        built = collection.index.is_built
    except NoIndexError:
        chunks, built = 0, False
    return {
        "name": name,
        "built": built,
        "chunks": chunks,
        "models": list(dict.fromkeys(space.model for space in spaces)),
    }


def _document(service: Service, name: str, document_id: str) -> dict[str, Any] | None:
    collection = service.collections[name]
    store = collection.resources.store
    for embedder in collection.resources.embedders:
        rows: list[dict[str, Any]] = []
        while len(rows) % _CHUNKS_AT_ONCE == 0:
            numbers = range(len(rows), len(rows) + _CHUNKS_AT_ONCE)
            ids = [chunk_id(name, document_id, number) for number in numbers]
            page = store.rows(name, embedder.space, ids, (*_COLUMNS, *_OF_DOCUMENT)).to_pylist()
            rows += sorted(page, key=lambda row: row["chunk_number"])
            if len(page) < _CHUNKS_AT_ONCE:
                break
        if rows:
            first = rows[0]
            return {
                "collection": name,
                "document_id": document_id,
                **{column: first[column] for column in _OF_DOCUMENT[:-1]},
                "metadata": orjson.loads(first["metadata"] or "{}"),
                "chunks": [
                    {
                        "chunk_number": row["chunk_number"],
                        "span": [row["span_start"], row["span_end"]],
                        "text": row["text"],
                    }
                    for row in rows
                ],
            }
    return None
