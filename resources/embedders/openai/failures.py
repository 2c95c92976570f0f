"""What a server's refusal means, whichever of the compatible servers and gateways it is.

OpenAI writes `{"error": {"message", "type", "param", "code"}}`; vLLM and text-embeddings-inference
the same without `error`, Google a list of one, LM Studio an error inside a 200, and each has words
of its own for one and the same thing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import numpy as np

Cause = Literal[
    "key", "quota", "model", "address", "setting", "parameter", "batch", "text", "vectors",
    "limit", "fault", "overload", "connection", "time-out",
]  # fmt: skip
"""Why there are no vectors; `patience` says what to do about each."""


@dataclass(frozen=True)
class Failure:
    """Why there are no vectors.

    Attributes:
        cause: of which kind the failure is.
        reason: one sentence.
        seconds: that the server asks to wait; None where it does not say.
        parameter: that the server does not know, where that is the cause.
        most_texts: that the server takes in a request, where it says so.
    """

    cause: Cause
    reason: str
    seconds: float | None = None
    parameter: str | None = None
    most_texts: int | None = None


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
class _Sign:
    """What tells a cause: one of these statuses, and these words, if any are named.

    Attributes:
        statuses: of the answer; 0 is an error inside a 200 that names none; None is any.
        words: looked for in `where`. A server may repeat a text that it refuses, so words that a
            text may hold are looked for under few statuses only.
        where: "codes" of the error, its codes and its "message", or the whole "body".
        says: what is said to people, before what the server said.
    """

    cause: Cause
    statuses: tuple[int, ...] | None
    words: str = ""
    where: Literal["codes", "message", "body"] = "message"
    says: str = "The server refuses the request"


_REFUSED = (400, 413, 422)
_KEY = "The server does not accept the key"
_LIMIT = "The server's rate limit is reached"
_MODEL = "The server does not know this model or URL"
_QUOTA = "The account's quota is used up: raise it with the provider, then run again"
_QUOTA_CODES = (
    r"insufficient_quota|quota_?exceeded\b|billing_(hard|soft)_limit|billing_not_active|"
    r"exceeded_current_quota|insufficient_(credits?|balance|funds)|credits?_exhausted|"
    r"budget_?exceeded|\barrearage\b|freetieronly"
)

# The first that fits counts.
_SIGNS: tuple[_Sign, ...] = (
    _Sign("quota", None, _QUOTA_CODES, "codes", _QUOTA),
    _Sign("quota", (402,), says=_QUOTA),
    _Sign(
        "quota",
        (0, 403, 429),
        rf"{_QUOTA_CODES}|per[ _-]?day|\bdaily\b|per[ _-]?month|monthly|/ ?(day|month)\b|"
        r"(insufficient|out of|not enough|no|exceeded your) (credits?|balance|funds)|"
        r"credit (balance|limit)|budget has been exceeded|billing (hard |soft )?limit",
        "body",
        _QUOTA,
    ),
    _Sign("key", (401, 403), says=_KEY),
    _Sign("key", None, r"\binvalid_api_key|api_key_invalid|authentication_?error", "codes", _KEY),
    _Sign(
        "key",
        (0, 400, 422),
        r"api[ _-]?key (is )?(not valid|invalid|missing|required|expired)|"
        r"(invalid|incorrect|missing|wrong|expired|no) (x-)?api[ _-]?key|api_key_invalid",
        "body",
        _KEY,
    ),
    _Sign("address", (407,), says="The proxy wants to know who asks"),
    _Sign(
        "address",
        (0, 404, 405),
        r"unexpected endpoint|method not allowed|page not found|invalid url|<html",
        "body",
        "The server has no embeddings at this URL",
    ),
    _Sign("model", (404,), says=_MODEL),
    _Sign("model", None, r"model_not_found|deploymentnotfound|invalid_?model\b", "codes", _MODEL),
    _Sign(
        "model", (0, 400), r"\bmodel\S* \S+ (does not exist|not found)|invalid model", says=_MODEL
    ),
    _Sign("limit", (429,), says=_LIMIT),
    _Sign("limit", None, r"rate_?limit|resource_exhausted|throttling", "codes", _LIMIT),
    _Sign(
        "batch",
        _REFUSED,
        r"batch[ _]size\D{0,80}\d|split into more batches|too many (inputs|tokens (in|overall))|"
        r"(in one|per|submitted) batch|number of (inputs|texts)|"
        r"(list|array)\D{0,40}(at most|too long|maximum length)",
        says="The request is too large",
    ),
    _Sign("text", _REFUSED),
    _Sign("text", None, r"invalid_request_error", "codes"),
    _Sign("fault", (424, 500), says="The server fails"),
    _Sign("overload", (0, 408, 409, 425, *range(501, 600)), says="The server fails"),
    _Sign("setting", None),
)

_PARAMETERS = {
    "encoding_format": r"encoding[_ ]?format|\bbase64\b|\bencoding\b.{0,40}\bfloats?\b|"
    r"\bfloats?\b.{0,40}\bencoding\b",
    "dimensions": r"\bdimensions\b|matryoshka|output_dimension",
}


def failure_of(reply: Reply, content: Any, texts: int) -> Failure | None:
    """What a refusal means; None if the answer is none.

    Args:
        reply: the answer.
        content: of its body; None if that is no JSON.
        texts: how many were sent.
    """
    error = _error_in(content)
    if reply.status < 400 and error is None:
        return None
    detail = error or {}
    code, kind, param = _text(detail, "code"), _text(detail, "type"), _text(detail, "param")
    message = reply.quoted(detail.get("message") or reply.body, 300)
    said = f"{reply.status}: {message}" if message else str(reply.status)
    status = reply.status
    if status < 400:  # an error inside a 200
        status = int(code) if re.fullmatch(r"[45]\d\d", code) else 0
    if parameter := _parameter(status, param, message):
        reason = f"The server does not accept '{parameter}' ({said})"
        cause = "parameter" if parameter in _PARAMETERS else "setting"
        return Failure(cause, reason, parameter=parameter)
    codes = " ".join((code, kind, _text(detail, "status")))
    places = {
        "codes": codes,
        "message": f"{codes} {message}",
        "body": f"{codes} {message} {reply.quoted(reply.body, 4000)}",
    }
    sign = next(
        sign
        for sign in _SIGNS
        if (sign.statuses is None or status in sign.statuses)
        and re.search(sign.words, places[sign.where], re.IGNORECASE)
    )
    seconds = wait_asked_for(reply.headers)
    if seconds is None:
        seconds = _wait_in(reply)
    most = _most_texts(message, texts) if sign.cause == "batch" else None
    return Failure(sign.cause, f"{sign.says} ({said})", seconds, most_texts=most)


def _error_in(content: Any) -> dict[str, Any] | None:
    """The error that an answer tells, wherever this server puts it."""
    if isinstance(content, list) and len(content) == 1:
        content = content[0]
    if not isinstance(content, dict):
        return None
    error = content.get("error")
    if isinstance(error, list) and error:
        error = error[0]
    if isinstance(error, dict):
        return error
    if error:
        return {**content, "message": content.get("message") or error}
    if content.get("object") == "error" or ("message" in content and "data" not in content):
        return content
    detail = content.get("detail") or content.get("errors")
    return {"message": detail} if detail and "data" not in content else None


def _text(detail: Mapping[str, Any], name: str) -> str:
    value = detail.get(name)
    return "" if value is None else str(value)


def _parameter(status: int, param: str, message: str) -> str | None:
    if status in _REFUSED and param in (*_PARAMETERS, "model", "user"):
        return param
    if status in (*_REFUSED, 500, 501):
        for name, words in _PARAMETERS.items():
            if re.search(words, message):
                return name
    return None


def _most_texts(message: str, texts: int) -> int | None:
    """How many texts a request may have, if the message says so."""
    limit = r"(?:max\w*|most|larger|more|allowed|limit\w*|up to|>|exceed\w*)\D{0,60}?(\d+)"
    numbers = [int(number) for number in re.findall(limit, message, re.IGNORECASE)]
    return next((number for number in numbers if 1 <= number < texts), None)


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


def _wait_in(reply: Reply) -> float | None:
    """Seconds that Google asks to wait, in its error's details."""
    found = re.search(rb'"retryDelay"\s*:\s*"([\d.]+)s"', reply.body[:20_000])
    return float(found.group(1)) if found else None


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
