"""What a server with OpenAI's embeddings interface answers, and what it means.

https://platform.openai.com/docs/api-reference/embeddings, with the deviations of other servers:
floats instead of base64, null for NaN, no `usage`, other names for the model.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from resources.embedders.openai.failures import Failure, Reply, failure_of
from resources.limits.base import Limits, ReportedLimits


@dataclass(frozen=True)
class Vectors:
    """The vectors of a whole answer, and what they cost.

    Attributes:
        vectors: shape (n, dimension), float32, in the order of the texts.
        tokens: that the server charges for; None where it does not say.
    """

    vectors: np.ndarray
    tokens: int | None


def read(
    reply: Reply, model: str, texts: int, dimension: int, answers_as: str | None = None
) -> Vectors | Failure:
    """Checks an answer against the request.

    Args:
        reply: the answer.
        model: that was asked for.
        texts: how many were sent.
        dimension: that each vector must have.
        answers_as: the name with which the server answers, where it is another one.
    """
    content = _json(reply.body)
    if failure := failure_of(reply, content, texts):
        return failure
    if not isinstance(content, dict):
        excerpt = reply.quoted(reply.body, 80)
        # A web page, or "Ollama is running"; JSON that breaks off is the answer of a sick server.
        page = bool(reply.body.strip()) and reply.body.lstrip()[:1] not in (b"{", b"[")
        return Failure(
            "address" if page else "overload",
            f"The answer is no JSON object but begins with {excerpt!r}",
        )
    answered = content.get("model")
    names = [model, answers_as] if answers_as else [model]
    if answered and not any(_same_model(name, str(answered)) for name in names):
        other = reply.quoted(answered, 200)
        expected = " or ".join(map(repr, names))
        return Failure(
            "model",
            f"Expected an answer of model {expected}, but the server answers with {other!r}. Name "
            f"the model that the server runs; or, if that is the one, set answers_as: {other!r}",
        )
    found = _vectors(content.get("data"), texts)
    if isinstance(found, str):
        return Failure("vectors", found)
    if lengths := {len(vector) for vector in found} - {dimension}:
        return Failure(
            "model",
            f"Expected vectors of {dimension} numbers, but the server answers with "
            f"{min(lengths)}. Set 'dimensions' to the length that model {model!r} has there",
        )
    usage = content.get("usage")
    tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
    return Vectors(np.stack(found), tokens if isinstance(tokens, int) and tokens > 0 else None)


def reported_limits(headers: Mapping[str, str]) -> ReportedLimits:
    """The limits that an answer tells, in OpenAI's headers."""

    def number(name: str) -> int | None:
        value = headers.get(f"x-ratelimit-{name}", "").strip()
        return int(value) if value.isdigit() else None

    return ReportedLimits(
        Limits(number("limit-requests") or None, number("limit-tokens") or None),
        Limits(number("remaining-requests"), number("remaining-tokens")),
    )


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except ValueError:
        try:
            return json.loads(body)  # takes NaN and Infinity, as some servers write them
        except (ValueError, RecursionError):
            return None


def _same_model(asked: str, answered: str) -> bool:
    """Servers add a version or a tag, leave out the organisation, or say where the files are."""
    a, b = _bare(asked), _bare(answered)
    return a == b or re.fullmatch(re.escape(a) + r"(-v?\d[\d.-]*|@[\w.-]+)", b) is not None


def _bare(name: str) -> str:
    """A model's name in lower case, without organisation, folder and the tag "latest"."""
    name = name.lower().strip("/").removesuffix(":latest")
    # A snapshot of the model hub: .../models--ORGANISATION--NAME/snapshots/REVISION
    snapshot = re.search(r"models--(?:[^/]*--)?([^/]+?)/snapshots/", name)
    return snapshot.group(1) if snapshot else name.split("/")[-1]


def _vectors(data: Any, texts: int) -> list[np.ndarray] | str:
    """The vectors in the order of the texts, or what is wrong."""
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
        return "The answer has no list 'data' of vectors"
    if len(data) != texts:
        return f"Sent {texts} texts, but {len(data)} vectors came back"
    found: list[np.ndarray | None] = [None] * texts
    for entry in data:
        index = entry.get("index")
        if not isinstance(index, int) or not 0 <= index < texts or found[index] is not None:
            return f"Sent {texts} texts, but an index of the answer is missing, wrong or twice"
        vector = _vector(entry.get("embedding"))
        if vector is None:
            return f"The answer's embedding {index} is no list of numbers"
        found[index] = vector
    return [vector for vector in found if vector is not None]


def _vector(value: Any) -> np.ndarray | None:
    try:
        if isinstance(value, str):
            return np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float32)
        if isinstance(value, list):
            with np.errstate(over="ignore"):
                vector = np.array(value, dtype=np.float32)  # None becomes NaN
            return vector if vector.ndim == 1 else None
    except (binascii.Error, TypeError, ValueError, OverflowError):
        return None
    return None
