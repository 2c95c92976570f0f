"""Servers and gateways with OpenAI's embeddings interface, as they document their answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.openai_server import Answer, OpenAIServer, Request

ErrorBody = Callable[[int, str], Any]


def _openai(code: int, message: str) -> Any:
    return {"error": {"message": message, "type": "invalid_request_error", "code": str(code)}}


def _flat(code: int, message: str) -> Any:
    return {"object": "error", "message": message, "type": "BadRequestError", "code": code}


def _google(code: int, message: str) -> Any:
    return [{"error": {"code": code, "message": message, "status": "INVALID_ARGUMENT"}}]


@dataclass(frozen=True)
class CompatibleServer:
    """What a server does otherwise than OpenAI.

    Attributes:
        error: how it writes one.
        answers_as: the model name in its answers; None: the one that was asked for.
        encodings: that it accepts; None among them: it may be left out.
        floats: it writes floats, whichever encoding it was asked for.
        dimensions: the sentence with which it refuses `dimensions`; None: it takes them.
        encoding: the sentence with which it refuses an encoding.
        most_texts: of a request, and the sentence that refuses more.
        refused_key: status and sentence.
        usage: whether it says how many tokens it counted.
    """

    error: ErrorBody = _openai
    answers_as: str | None = None
    encodings: Sequence[str | None] = ("base64", "float", None)
    floats: bool = False
    dimensions: str | None = None
    encoding: str = "encoding_format is not supported"
    most_texts: tuple[int, int, str] | None = None
    refused_key: tuple[int, str] = (401, "Incorrect API key provided")
    usage: bool = True

    def answer(self, server: OpenAIServer, request: Request) -> Answer:
        """What this server says to a request."""
        body = request.body
        if "wrong" in request.headers.get("authorization", ""):
            status, message = self.refused_key
            return Answer(status, self.error(status, message))
        encoding = body.get("encoding_format")
        if encoding not in self.encodings:
            return Answer(400, self.error(400, self.encoding))
        if self.dimensions and "dimensions" in body:
            return Answer(400, self.error(400, self.dimensions))
        if self.most_texts and len(request.texts) > self.most_texts[0]:
            most, status, message = self.most_texts
            return Answer(
                status, self.error(status, message.format(n=len(request.texts), most=most))
            )
        if self.floats:
            body["encoding_format"] = "float"
        changes: dict[str, Any] = {} if self.usage else {"usage": None}
        if self.answers_as:
            changes["model"] = self.answers_as
        return Answer(body=server.content(request, **changes))


SERVERS: dict[str, CompatibleServer] = {
    "Azure OpenAI": CompatibleServer(answers_as="text-embedding-3-small"),
    # A model of Vertex AI behind it takes no encoding at all.
    "LiteLLM": CompatibleServer(
        answers_as="text-embedding-3-small",
        encodings=(None,),
        encoding="litellm.UnsupportedParamsError: vertex_ai does not support parameters: "
        "{'encoding_format': 'base64'}, for model=x. To drop these, set `litellm.drop_params=True`",
        refused_key=(400, "Authentication Error, Invalid API key passed in"),
    ),
    "vLLM": CompatibleServer(
        error=_flat,
        dimensions='Model "BAAI/bge-m3" does not support matryoshka representation, changing '
        "output dimensions will lead to poor results.",
    ),
    "text-embeddings-inference": CompatibleServer(
        error=lambda code, message: {"message": message, "code": code, "type": "Validation"},
        answers_as="/data/models--BAAI--bge-base-en-v1.5/snapshots/a5beb1e3e68b9ab74eb54cfd186867f6",
        most_texts=(32, 422, "batch size {n} > maximum allowed batch size {most}"),
    ),
    "Infinity": CompatibleServer(
        error=lambda code, message: {"error": {"message": message, "type": None, "code": code}},
        refused_key=(401, "Unauthorized"),
    ),
    "Ollama": CompatibleServer(answers_as="nomic-embed-text:latest", floats=True),
    "LM Studio": CompatibleServer(
        error=lambda _, message: {"error": message},
        answers_as="text-embedding-nomic-embed-text-v1.5@q8_0",
        floats=True,
    ),
    "Gemini": CompatibleServer(
        error=_google,
        answers_as="models/gemini-embedding-001",
        floats=True,
        usage=False,
        most_texts=(100, 400, "* BatchEmbedContentsRequest.requests: at most {most} requests can "
                    "be in one batch"),
        refused_key=(400, "API key not valid. Please pass a valid API key."),
    ),
    "Mistral": CompatibleServer(
        error=lambda _, message: {
            "object": "error",
            "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", message.split()[0]],
                                    "msg": "Extra inputs are not permitted"}]},
            "type": "invalid_request_error", "param": None, "code": None,
        },
        dimensions="dimensions",
        encodings=("float", None),
        encoding="encoding_format",
        refused_key=(401, "Unauthorized"),
    ),
}  # fmt: skip
