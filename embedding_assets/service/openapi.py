"""How an endpoint is described in the OpenAPI document, while its body is parsed only once."""

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
    schema = body.model_json_schema(ref_template=f"#/components/schemas/{body.__name__}.{{model}}")
    schema.pop("$defs", None)
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


def errors() -> dict[int | str, dict[str, Any]]:
    """The answers that are no success."""
    return {
        status: {"model": ErrorAnswer, "description": description}
        for status, description in _ERRORS.items()
    }
