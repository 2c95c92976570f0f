"""How an endpoint is described in the OpenAPI document, while its body is parsed only once."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from embedding_assets.service.schemas import ErrorAnswer

_ERRORS = {
    400: "The body is no JSON, or asks for what cannot be.",
    401: "An API key is needed.",
    403: "The API key does not allow it, or there are none and a page of another site asks.",
    404: "There is no such model or collection.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The request does not say that its body is JSON.",
    421: "There are no API keys, and the request is for another host than this machine.",
    422: "A field is wrong.",
    429: "Over the limit of requests, texts or tokens a minute.",
    500: "A defect of the service's; its log says more.",
    503: "Too much is waiting, or a model cannot be reached.",
    504: "It was not done in time.",
}


def described(body: type[BaseModel], answer: type[BaseModel] | None) -> dict[str, Any]:
    """Arguments of a route: its body is in the document, and is parsed by the endpoint."""
    schema = body.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    return {
        "response_model": answer,
        "responses": errors(),
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": schema}},
            }
        },
    }


def _inlined(part: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema that refers to nothing, as it stands outside of the document's own schemas."""
    if isinstance(part, list):
        return [_inlined(each, definitions) for each in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _inlined(definitions[part["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(value, definitions) for name, value in part.items()}


def described_upload(
    route: dict[str, Any], options: type[BaseModel], media_types: Iterable[str]
) -> dict[str, Any]:
    """Arguments of a route whose body may be a file, too; then the options are in the URL."""
    file = {"schema": {"type": "string", "format": "binary"}}
    extra = route["openapi_extra"]
    extra["requestBody"]["content"] |= dict.fromkeys(media_types, file)
    extra["parameters"] = [
        {"in": "query", "name": name, "required": False, "schema": schema}
        for name, schema in options.model_json_schema()["properties"].items()
    ]
    return route


def errors() -> dict[int | str, dict[str, Any]]:
    """The answers that are no success."""
    return {
        status: {"model": ErrorAnswer, "description": description}
        for status, description in _ERRORS.items()
    }
