"""Questions to the collections, and their documents."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response

from embedding_assets.api import Collection
from embedding_assets.retrieval.hits import Hits
from embedding_assets.retrieval.passages import Excerpts
from embedding_assets.retrieval.search import nearest_chunks
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
from embedding_assets.service.index_spaces import Readers
from embedding_assets.service.openapi import described, errors
from embedding_assets.service.schemas import Found, SearchQueries, SearchQuery
from embedding_assets.service.service import Service
from embedding_assets.service.vectors import VectorServer
from resources.identity.content_hash import chunk_id
from resources.vector_stores.base import NoIndexError

SCOPE = "search"
_HIGHLIGHT = 320
_CHUNKS_AT_ONCE = 64
_COLUMNS = ("chunk_number", "span_start", "span_end", "text")
_OF_DOCUMENT = ("title", "timestamp", "partition", "metadata")


def add_search_routes(app: FastAPI, service: Service, access: Access) -> None:
    """Adds the endpoints that search."""
    routes, tags = _SearchRoutes(service, access), ["Search"]
    app.post("/search", tags=[*tags], **described(SearchQueries, Found))(routes.search)
    app.post("/collections/{name}/search", tags=[*tags], **described(SearchQuery, Found))(
        routes.search_collection
    )
    app.get("/collections", tags=[*tags], responses=errors())(routes.collections)
    app.get("/collections/{name}/documents", tags=[*tags], responses=errors())(routes.document)


class _SearchRoutes:
    def __init__(self, service: Service, access: Access) -> None:
        self._service = service
        self._settings = service.settings
        self._access = access

    async def search(self, request: Request) -> Response:
        """The chunks nearest to a question, in one, several or all collections."""
        self._access.identify(request)
        query = parsed(SearchQueries, await read_body(request, self._settings))
        names = query.collections
        if names is None:
            built = await self._service.built()
            names = [one for one in built if self._access.may(request, f"{SCOPE}:{one}")]
        if not names:
            self._access.check(request, SCOPE)
        for name in names:
            self._access.check(request, f"{SCOPE}:{name}")
            self._collection(request, name)
        return await self._found(request, query, names)

    async def search_collection(self, request: Request, name: str) -> Response:
        """The chunks of one collection nearest to a question."""
        self._access.identify(request, f"{SCOPE}:{name}")
        query = parsed(SearchQuery, await read_body(request, self._settings))
        self._collection(request, name)
        return await self._found(request, query, [name])

    async def collections(self, request: Request) -> Response:
        """The collections, and whether there is something to search in each."""
        self._access.identify(request)
        listed = await self._service.in_thread(
            lambda: [
                _described(self._service, one)
                for name, one in self._service.collections.items()
                if self._access.may(request, f"{SCOPE}:{name}")
            ]
        )
        all_of_them = self._access.may(request, SCOPE)
        not_loaded = self._service.not_loaded if all_of_them else []
        return json_response({"collections": listed, "not_loaded": not_loaded})

    async def document(self, request: Request, name: str, id: str) -> Response:
        """A document as it is in the index: its chunks in order, which may overlap."""
        self._access.identify(request, f"{SCOPE}:{name}")
        await self._access.take(request, [])
        collection = self._collection(request, name)
        shown = await self._service.in_thread(lambda: _document(self._service, collection, id))
        if shown is None:
            raise ServiceError(
                404, "document_not_found", f"'{name}' has no such document.", field="id"
            )
        return json_response(shown)

    def _collection(self, request: Request, name: str) -> Collection:
        """Raises ServiceError if there is no such; it names those that the key may search."""
        return self._service.collection(
            name, lambda one: self._access.may(request, f"{SCOPE}:{one}")
        )

    async def _found(self, request: Request, query: SearchQuery, names: Sequence[str]) -> Response:
        began = time.perf_counter()
        check_texts([query.query], "query", self._settings)
        if query.k > self._settings.max_hits:
            raise ServiceError(
                422, "k_too_large", f"k is at most {self._settings.max_hits:,}.", field="k"
            )
        await self._access.take(request, [query.query])
        asked = await self._service.spaces_to_ask(list(dict.fromkeys(names)))
        servers = {
            embedder.space.id: self._service.server_of(embedder)
            for several in asked.values()
            for embedder in several
        }
        vectors = await self._question(request, query.query, servers)
        embedded = time.perf_counter()
        hits = await self._nearest(asked, vectors, query)
        searched = time.perf_counter()
        self._service.metrics.store_seconds.observe(searched - embedded)
        seconds = {
            "total": searched - began,
            "embed": embedded - began,
            "store": searched - embedded,
        }
        return json_response(_as_json(query.query, hits, seconds))

    async def _question(
        self, request: Request, question: str, servers: Mapping[str, VectorServer]
    ) -> dict[str, np.ndarray]:
        """Its vector in each space, by the space's id."""
        seconds = seconds_left(request, self._settings)
        asked = {
            space: server.ask([question], "query", is_question=True)
            for space, server in servers.items()
        }
        for space, one in asked.items():
            await answered(servers[space], one, request, seconds)
            for code, message in one.failures.values():
                raise ServiceError(422, code, message, field="query")
        return {space: one.vectors[0] for space, one in asked.items()}

    async def _nearest(
        self, asked: Readers, vectors: Mapping[str, np.ndarray], query: SearchQuery
    ) -> Hits:
        """The chunks nearest to a question whose vectors are there, by id of the space."""
        by_space = {
            embedder.space: vectors[embedder.space.id]
            for embedders in asked.values()
            for embedder in embedders
        }

        def find(asked: Readers) -> Hits:
            return nearest_chunks(asked, by_space, query.k, exact=query.exact)

        try:
            return await self._service.in_thread(lambda: find(asked))
        except NoIndexError:
            served = {id(one.resources) for one in self._service.collections.values()}
            own = {index: some for index, some in asked.items() if id(index.resources) in served}
            if len(own) in (0, len(asked)):
                raise
            # The table of a former model has just been dropped.
            return await self._service.in_thread(lambda: find(own))


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


def _described(service: Service, collection: Collection) -> dict[str, Any]:
    store, name = collection.resources.store, collection.name
    own = [embedder.space for embedder in collection.resources.embedders]
    former = [index.space for index in service.spaces.former(name)]
    chunks = sum(store.count(name, space) for space in own)
    return {
        "name": name,
        "built": service.spaces.is_built(collection),
        "chunks": chunks or sum(store.count(name, space) for space in former),
        "models": list(dict.fromkeys(space.model for space in (*own, *former))),
    }


def _document(service: Service, collection: Collection, document_id: str) -> dict[str, Any] | None:
    store, name = collection.resources.store, collection.name
    places = [(embedder.space, frozenset[str]()) for embedder in collection.resources.embedders]
    places += [(former.space, former.superseded) for former in service.spaces.former(name)]
    for space, not_partitions in places:
        rows: list[dict[str, Any]] = []
        while len(rows) % _CHUNKS_AT_ONCE == 0:
            numbers = range(len(rows), len(rows) + _CHUNKS_AT_ONCE)
            ids = [chunk_id(name, document_id, number) for number in numbers]
            page = store.rows(name, space, ids, (*_COLUMNS, *_OF_DOCUMENT)).to_pylist()
            rows += sorted(page, key=lambda row: row["chunk_number"])
            if len(page) < _CHUNKS_AT_ONCE:
                break
        if rows and rows[0]["partition"] in not_partitions:
            continue
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
