"""Texts to vectors: the service's own endpoints, and OpenAI's."""

import asyncio
import base64
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from tokenizers import Tokenizer

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
from embedding_assets.service.openapi import described
from embedding_assets.service.schemas import (
    EmbedText,
    EmbedTexts,
    OpenAIEmbeddingRequest,
    Role,
    TextEmbedding,
    TextEmbeddings,
)
from embedding_assets.service.service import Service
from embedding_assets.service.shortening import shorten, space_asked_for
from embedding_assets.service.vectors import VectorRequest, VectorServer
from resources.identity.embedding_space import EmbeddingSpace

SCOPE = "embed"
_TEXTS_COUNTED_AT_ONCE = 32
_STATUS_OF = {"empty_text": 422, "invalid_text": 422, "no_known_token": 422, "zero_vector": 422}


def add_embedding_routes(app: FastAPI, service: Service, access: Access) -> None:
    """Adds the endpoints that embed."""
    routes, tags = _EmbeddingRoutes(service, access), ["Embeddings"]
    app.post("/embed", tags=[*tags], **described(EmbedText, TextEmbedding))(routes.embed)
    app.post("/embed/batch", tags=[*tags], **described(EmbedTexts, TextEmbeddings))(
        routes.embed_batch
    )
    app.post("/v1/embeddings", tags=[*tags], **described(OpenAIEmbeddingRequest, None))(
        routes.openai_embeddings
    )
    app.get("/v1/models", tags=[*tags])(routes.models)


class _EmbeddingRoutes:
    def __init__(self, service: Service, access: Access) -> None:
        self._service = service
        self._settings = service.settings
        self._access = access
        self._tokenizers = _Tokenizers()

    async def embed(self, request: Request) -> Response:
        """The vector of one text, as the pipeline has it or would store it."""
        self._access.identify(request, SCOPE)
        body = parsed(EmbedText, await read_body(request, self._settings))
        check_texts([body.text], "text", self._settings)
        server = self._service.server_for(body.collection, body.model)
        space = space_asked_for(server.embedder, body.dimensions)
        asked = await self._vectors(request, server, space, [body.text], body.role, True)
        if asked.failures:
            code, message = asked.failures[0]
            raise ServiceError(_STATUS_OF.get(code, 500), code, message, field="text")
        return json_response(
            {
                "embedding": asked.vectors[0],
                "cached": bool(asked.cached[0]),
                **_told(space),
            }
        )

    async def embed_batch(self, request: Request) -> Response:
        """The vectors of some texts, in their order; one that has none does not stop the others."""
        self._access.identify(request, SCOPE)
        body = parsed(EmbedTexts, await read_body(request, self._settings))
        check_texts(body.texts, "texts", self._settings)
        server = self._service.server_for(body.collection, body.model)
        space = space_asked_for(server.embedder, body.dimensions)
        alone = len(body.texts) == 1
        asked = await self._vectors(request, server, space, body.texts, body.role, alone)
        embeddings: Any = asked.vectors
        if asked.failures:
            embeddings = [
                None if row in asked.failures else vector
                for row, vector in enumerate(asked.vectors)
            ]
        return json_response(
            {
                "embeddings": embeddings,
                "count": len(body.texts) - len(asked.failures),
                "cached_count": int(np.count_nonzero(asked.cached)),
                **_told(space),
                "errors": [
                    {"index": row, "code": code, "message": message}
                    for row, (code, message) in sorted(asked.failures.items())
                ],
            }
        )

    async def openai_embeddings(self, request: Request) -> Response:
        """OpenAI's interface: a string, strings, tokens or lists of tokens of the model's own."""
        self._access.identify(request, SCOPE)
        body = parsed(OpenAIEmbeddingRequest, await read_body(request, self._settings))
        server = self._service.server_for(None, body.model)
        space = space_asked_for(server.embedder, body.dimensions)
        texts = _texts(body.input, self._tokenizers.of(server))
        check_texts(texts, "input", self._settings)
        asked = await self._vectors(request, server, space, texts, "document", len(texts) == 1)
        for row, (code, message) in sorted(asked.failures.items()):
            where = f"input.{row}" if len(texts) > 1 else "input"
            raise ServiceError(400, code, f"{where}: {message}", field=where)
        tokens = await self._tokenizers.count(server, texts, asked)
        return json_response(
            {
                "object": "list",
                "data": [
                    {
                        "object": "embedding",
                        "index": row,
                        "embedding": vector
                        if body.encoding_format == "float"
                        else base64.b64encode(vector.astype("<f4").tobytes()).decode(),
                    }
                    for row, vector in enumerate(asked.vectors)
                ],
                "model": body.model,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    async def models(self, request: Request) -> Response:
        """The models that are served, by name; a collection's name stands for its model, too."""
        self._access.identify(request, SCOPE)
        service = self._service
        named = {server.space.model: server.embedder for server in service.servers.values()}
        for name, one in service.collections.items():
            named[name] = service.server_of(one.resources.embedder).embedder
        return json_response(
            {
                "object": "list",
                "data": [
                    {
                        "id": name,
                        "object": "model",
                        "created": int(service.started_at),
                        "owned_by": "embedding-assets",
                        "dimensions": [embedder.space.dimension, *embedder.shorter_dimensions],
                    }
                    for name, embedder in named.items()
                ],
            }
        )

    async def _vectors(
        self,
        request: Request,
        server: VectorServer,
        space: EmbeddingSpace,
        texts: Sequence[str],
        role: Role,
        is_question: bool,
    ) -> VectorRequest:
        with server.in_use():
            await self._access.take(request, texts)
            asked = server.ask(texts, role, is_question=is_question)
            await answered(server, asked, request, seconds_left(request, self._settings))
        shorten(asked, space)
        cached = int(np.count_nonzero(asked.cached))
        self._service.metrics.texts_answered(
            request.scope["route"].path, cached, len(texts) - cached - len(asked.failures)
        )
        return asked


def _told(space: EmbeddingSpace) -> dict[str, Any]:
    return {"model": space.model, "dimensions": space.dimension, "space": space.id}


class _Tokenizers:
    """A tokenizer of each space, for counts and for those who send tokens."""

    def __init__(self) -> None:
        self._of: dict[str, _Counter] = {}

    def of(self, server: VectorServer) -> "_Counter":
        if server.space.id not in self._of:
            self._of[server.space.id] = _Counter(server)
        return self._of[server.space.id]

    async def count(self, server: VectorServer, texts: Sequence[str], asked: VectorRequest) -> int:
        """Tokens of all texts: the model counted those that it has just embedded."""
        cached = [text for text, is_cached in zip(texts, asked.cached, strict=True) if is_cached]
        total = int(asked.tokens[~asked.cached].sum())
        if not cached:
            return total
        counter = self.of(server)
        if len(cached) <= _TEXTS_COUNTED_AT_ONCE:
            return total + counter.count(cached)
        loop = asyncio.get_running_loop()
        return total + await loop.run_in_executor(None, counter.count, cached)


class _Counter:
    def __init__(self, server: VectorServer) -> None:
        self._embedder = server.embedder
        self._most = server.space.max_tokens

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return self._embedder.new_tokenizer()

    def count(self, texts: Sequence[str]) -> int:
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=True)
        return sum(min(len(one), self._most or len(one)) for one in encoded)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids.

        Raises:
            ServiceError: the model has no such token.
        """
        if max(tokens) >= self._tokenizer.get_vocab_size():
            raise ServiceError(
                400,
                "unknown_token",
                f"Tokens are those of the model's own vocabulary, of "
                f"{self._tokenizer.get_vocab_size():,}; {max(tokens)} is none. Send text instead.",
                field="input",
            )
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)


def _texts(given: str | list[str] | list[int] | list[list[int]], counter: _Counter) -> list[str]:
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], int):
        return [counter.decode(given)]  # pyright: ignore[reportArgumentType]
    return [one if isinstance(one, str) else counter.decode(one) for one in given]  # pyright: ignore[reportArgumentType]
