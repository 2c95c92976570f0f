"""Between HTTP and the service: bodies in, JSON out, and who has left or will not wait longer."""

import asyncio
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from embedding_assets.service.errors import ServiceError
from embedding_assets.service.keys import without_secrets
from embedding_assets.service.settings import ServiceSettings
from embedding_assets.service.vectors import VectorRequest, VectorServer

DEADLINE = "X-Request-Timeout"
_Body = TypeVar("_Body", bound=BaseModel)
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


async def read_body(request: Request, settings: ServiceSettings) -> bytes:
    """The body of JSON, if it is small enough and comes in time.

    Raises:
        ServiceError: it is something else, too large or too slow, or the client has left.
    """
    kind, declared = b"", b"0"
    for name, value in request.scope["headers"]:
        if name == b"content-type":
            kind = value
        elif name == b"content-length":
            declared = value
    if not _is_json(kind):
        raise ServiceError(
            415,
            "unsupported_media_type",
            "The body is to be JSON and to be sent as such, with the header Content-Type: "
            "application/json; with curl: -H 'content-type: application/json'.",
        )
    if declared.isdigit() and int(declared) > settings.max_body:
        raise _too_large(settings.max_body)

    parts, size, more = [], 0, True
    try:
        with _Within(settings.body_seconds):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ServiceError(499, "client_left", "The client has left.")
                part, more = message.get("body", b""), message.get("more_body", False)
                size += len(part)
                if size > settings.max_body:
                    raise _too_large(settings.max_body)
                parts.append(part)
    except TimeoutError:
        raise _too_slow(settings) from None
    return b"".join(parts)


@lru_cache(64)
def _is_json(media_type: bytes) -> bool:
    """A page of another origin can send any other type without asking the browser first."""
    kind = media_type.partition(b";")[0].strip().lower()
    return kind == b"application/json" or (
        kind.startswith(b"application/") and kind.endswith(b"+json")
    )


async def body_to_file(request: Request, path: Path, settings: ServiceSettings) -> None:
    """Writes a body that may be large to a file; no part of it may let wait for long.

    Raises:
        ServiceError: it is too large, too slow, or the client has left.
    """
    size, most = 0, settings.job_bytes
    loop = asyncio.get_running_loop()
    parts = aiter(request.stream())
    with path.open("wb") as file:
        while True:
            try:
                with _Within(settings.body_seconds):
                    part = await anext(parts)
            except StopAsyncIteration:
                return
            except ClientDisconnect:
                raise ServiceError(499, "client_left", "The client has left.") from None
            except TimeoutError:
                raise _too_slow(settings) from None
            size += len(part)
            if size > most:
                raise _too_large(most)
            await loop.run_in_executor(None, file.write, part)


class _Within:
    """As `asyncio.timeout` of Python 3.11; `asyncio.wait_for` would make a task each time.

    Raises:
        TimeoutError: it took longer.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_over = False

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._cancel)

    def _cancel(self) -> None:
        self._is_over = True
        if self._task is not None:
            self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        self._timer.cancel()
        if self._is_over and kind is asyncio.CancelledError:
            raise TimeoutError from None


def _too_large(most: int) -> ServiceError:
    return ServiceError(
        413, "body_too_large", f"A request may have {most:,} bytes: send fewer texts in each."
    )


def _too_slow(settings: ServiceSettings) -> ServiceError:
    return ServiceError(
        408,
        "body_too_slow",
        f"The request did not arrive within {settings.body_seconds:g} s.",
    )


def parsed_query(model: type[_Body], request: Request) -> _Body:
    """The parameters of a URL as what they are to be.

    Raises:
        ServiceError: one of them is wrong, or there is no such.
    """
    return parsed(model, orjson.dumps(dict(request.query_params)))


def parsed(model: type[_Body], body: bytes) -> _Body:
    """A body of JSON as what it is to be.

    Raises:
        ServiceError: it is none; it names the first field that is wrong, and quotes nothing.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = first["loc"]
    field = ".".join(str(part) for part in place if not _is_of_union(part))
    raise ServiceError(
        400 if first["type"] == "json_invalid" else 422,
        "invalid_json" if first["type"] == "json_invalid" else "invalid_request",
        f"{field}: {first['msg']}" if field else first["msg"],
        field=field or None,
    )


def _is_of_union(part: int | str) -> bool:
    """Pydantic names the member of a union as if it were a field."""
    return isinstance(part, str) and ("[" in part or part in ("str", "int"))


def check_texts(texts: list[str], field: str, settings: ServiceSettings) -> None:
    """Raises ServiceError if there are too many texts, or one is too long."""
    if len(texts) > settings.max_texts:
        raise ServiceError(
            422,
            "too_many_texts",
            f"A request may have {settings.max_texts:,} texts, and has {len(texts):,}.",
            field=field,
        )
    for index, text in enumerate(texts):
        if len(text) > settings.max_characters:
            raise ServiceError(
                422,
                "text_too_long",
                f"A text may have {settings.max_characters:,} characters; number {index} has "
                f"{len(text):,}.",
                field=f"{field}.{index}" if len(texts) > 1 else field,
            )


def seconds_left(request: Request, settings: ServiceSettings) -> float:
    """How long the client waits, by its header.

    Raises:
        ServiceError: the header holds no number of seconds.
    """
    said = request.headers.get(DEADLINE)
    if said is None:
        return settings.deadline
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ServiceError(
            422, "invalid_deadline", f"{DEADLINE} is a number of seconds above 0.", field=DEADLINE
        )
    return min(seconds, settings.deadline)


async def answered(
    server: VectorServer, asked: VectorRequest, request: Request, seconds: float
) -> None:
    """Waits for vectors, as long as the client does.

    Args:
        server: was asked.
        asked: what it was asked for.
        request: its body has been read.
        seconds: that are left.

    Raises:
        ServiceError: the model failed, the time is over, or the client has left.
    """
    if asked.done is None:
        return
    # After the body only this comes; a client that has left is no reason to embed.
    left = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({asked.done, left}, timeout=seconds, return_when="FIRST_COMPLETED")
        if asked.done.done():
            asked.done.result()
            return
        server.abandon(asked)
        if left.done():
            raise ServiceError(499, "client_left", "The client has left.")
        raise ServiceError(
            504, "deadline_exceeded", f"It was not done within {seconds:g} s.", retry_after=1.0
        )
    except asyncio.CancelledError:
        server.abandon(asked)
        raise
    finally:
        left.cancel()


def json_response(
    content: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """JSON, in which vectors may be arrays of float32."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, dict(headers or {}), "application/json")


def error_response(error: ServiceError) -> Response:
    """An error as OpenAI's clients read it, which has all that others need."""
    kind = _TYPES.get(error.status) or (
        "server_error" if error.status >= 500 else "invalid_request_error"
    )
    body: dict[str, Any] = {
        "message": without_secrets(error.message),
        "type": kind,
        "param": error.field and without_secrets(error.field),
        "code": error.code,
    }
    if error.retry_after is not None and math.isfinite(error.retry_after):
        body["retry_after"] = math.ceil(error.retry_after * 1000) / 1000
    return json_response({"error": body}, error.status, error.headers)
