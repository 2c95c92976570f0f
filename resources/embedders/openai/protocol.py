"""What a server with OpenAI's embeddings interface answers, and what it means.

https://platform.openai.com/docs/api-reference/embeddings, with the deviations of other servers:
floats instead of base64, null for NaN, no `usage`, errors inside a 200.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import numpy as np
import orjson

from resources.errors import (
    CredentialsError,
    EmbedderUnavailableError,
    EmbeddingError,
    ModelError,
    SettingsError,
    TextError,
)
from resources.limits.base import Limits, ReportedLimits


@dataclass(frozen=True)
class Reply:
    """A complete HTTP answer. Header names are in lower case.

    Attributes:
        secret: what nobody may read: servers repeat the key that they refuse.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    secret: str | None = field(default=None, repr=False)

    def quoted(self, said: Any, most: int) -> str:
        """What the server said, in one line; the secret goes before anything is cut off."""
        text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        if self.secret:
            text = text.replace(self.secret, "***")
        return " ".join(text.split())[:most]


@dataclass(frozen=True)
class Vectors:
    """The vectors of a whole answer, and what they cost.

    Attributes:
        vectors: shape (n, dimension), float32, in the order of the texts.
        tokens: that the server charges for; None where it does not say.
    """

    vectors: np.ndarray
    tokens: int | None


@dataclass(frozen=True)
class Failure:
    """Why there are no vectors, and what helps.

    Attributes:
        remedy: "stop": nothing does; "split": one of the texts may be at fault; "pause": nobody
            should send anything for a while; "retry": send it again; "retry or split": send it
            again a few times, then one of the texts may be at fault.
        error: of which kind the failure is.
        reason: one sentence.
        seconds: that the server asks to wait; None where it does not say.
    """

    remedy: Literal["stop", "split", "pause", "retry", "retry or split"]
    error: type[EmbeddingError]
    reason: str
    seconds: float | None = None


def read(reply: Reply, model: str, texts: int, dimension: int) -> Vectors | Failure:
    """Checks an answer against the request.

    Args:
        reply: the answer.
        model: that was asked for.
        texts: how many were sent.
        dimension: that each vector must have.
    """
    content = _json(reply.body)
    error = content.get("error") if isinstance(content, dict) else None
    if reply.status >= 400 or error:
        return _failure(reply, error)
    if not isinstance(content, dict):
        excerpt = reply.quoted(reply.body, 80)
        return Failure(
            "retry",
            EmbedderUnavailableError,
            f"The answer is no JSON object but begins with {excerpt!r}",
        )
    answered = content.get("model")
    if answered and not _same_model(model, str(answered)):
        return Failure(
            "stop",
            ModelError,
            f"Asked for model {model!r}, but the server answers with "
            f"{reply.quoted(answered, 80)!r}. Name the model that the server runs",
        )
    found = _vectors(content.get("data"), texts)
    if isinstance(found, str):
        return Failure("retry or split", TextError, found)
    if lengths := {len(vector) for vector in found} - {dimension}:
        return Failure(
            "stop",
            ModelError,
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


def wait_asked_for(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, by the most exact of its headers."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    after = headers.get("retry-after")
    if after is not None:
        seconds = _number(after)
        if seconds is None:
            seconds = _seconds_until(after)
        if seconds is not None:
            return max(0.0, seconds)
    resets = {
        kind: _duration(headers.get(f"x-ratelimit-reset-{kind}")) for kind in ("requests", "tokens")
    }
    spent = [kind for kind in resets if headers.get(f"x-ratelimit-remaining-{kind}") == "0"]
    waits = [wait for kind in spent or resets if (wait := resets[kind]) is not None]
    return max(waits, default=None)


def _failure(reply: Reply, error: Any) -> Failure:
    detail = error if isinstance(error, dict) else {"message": error}
    code, kind, param = (str(detail.get(key) or "") for key in ("code", "type", "param"))
    message = reply.quoted(detail.get("message") or reply.body, 300)
    said = f"{reply.status}: {message}" if message else str(reply.status)
    seconds = wait_asked_for(reply.headers)
    status = reply.status
    if status < 400:  # an error inside a 200
        status = int(code) if re.fullmatch(r"[45]\d\d", code) else 0
    if "insufficient_quota" in (code, kind) or "billing_hard_limit_reached" in (code, kind):
        return Failure(
            "stop",
            EmbedderUnavailableError,
            f"The account's quota is used up ({said}). Raise it with the provider, then run again",
        )
    if status in (401, 403) or "invalid_api_key" in (code, kind):
        return Failure("stop", CredentialsError, f"The server does not accept the key ({said})")
    if status == 404 or "model_not_found" in (code, kind):
        return Failure("stop", ModelError, f"The server does not know this model or URL ({said})")
    if status == 429 or code == "rate_limit_exceeded" or kind == "rate_limit_error":
        return Failure(
            "pause",
            EmbedderUnavailableError,
            f"The server's rate limit is reached ({said})",
            seconds,
        )
    if param in ("model", "dimensions", "encoding_format", "user"):
        return Failure("stop", SettingsError, f"The server does not accept '{param}' ({said})")
    if status in (400, 413, 422) or kind == "invalid_request_error":
        return Failure("split", TextError, f"The server refuses the request ({said})")
    if status in (0, 408, 409, 425) or status >= 500:
        return Failure("retry", EmbedderUnavailableError, f"The server fails ({said})", seconds)
    return Failure("stop", EmbedderUnavailableError, f"The server refuses the request ({said})")


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except ValueError:
        try:
            return json.loads(body)  # takes NaN and Infinity, as some servers write them
        except (ValueError, RecursionError):
            return None


def _same_model(asked: str, answered: str) -> bool:
    """Servers add a version, leave out the organisation, or say the path of the model's folder."""
    a, b = asked.lower().strip("/"), answered.lower().strip("/")
    if a == b or a.split("/")[-1] == b.split("/")[-1]:
        return True
    return re.fullmatch(re.escape(a) + r"(:latest|-v?\d[\d.-]*)", b) is not None


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


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _seconds_until(date: str) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
    except (TypeError, ValueError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return (moment - datetime.now(timezone.utc)).total_seconds()


_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def _duration(value: str | None) -> float | None:
    """Seconds of "6m0s", "1.5s", "20ms", or of a plain number."""
    if value is None or (number := _number(value)) is not None:
        return None if value is None else max(0.0, number)  # type: ignore[reportPossiblyUnbound]
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", value)
    if not parts or "".join(map("".join, parts)) != value.strip():
        return None
    return sum(float(amount) * _UNITS[unit] for amount, unit in parts)
