"""Requests until one succeeds or no hope is left, within the server's limits and the budget."""

import hashlib
import logging
import os
import threading
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from resources.embedders.base import HARMLESS_TEXT, Role
from resources.embedders.openai.client import OpenAIClient
from resources.embedders.openai.failures import Failure, Reply
from resources.embedders.openai.learned import Form, Memory
from resources.embedders.openai.patience import RULES, Next, Patience
from resources.embedders.openai.protocol import Vectors, read, reported_limits
from resources.embedders.openai.settings import OpenAISettings
from resources.embedders.pricing import FREE, Budget, Price, price_of, prices_file
from resources.errors import (
    EmbeddingError,
    SettingsError,
    TextError,
)
from resources.identity.embedding_space import canonical_json
from resources.limits.base import (
    VARIABLE,
    GivenUpError,
    Grant,
    LimitError,
    Limits,
    RateLimiter,
    Usage,
)
from resources.limits.concurrency import AdaptiveConcurrency
from resources.limits.from_url import rate_limiter_from_url

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Attempt:
    """What one request brought, which one it was, whether others were in flight, and its cost."""

    found: Vectors | Failure
    number: int
    crowded: bool
    dollars: float


class TooManyTextsError(TextError):
    """The server does not take so many texts in a request, or not in time.

    Attributes:
        most: how many to send instead.
    """

    def __init__(self, message: str, most: int) -> None:
        super().__init__(message)
        self.most = most


class Requests:
    """What all threads that use an embedder have in common; asks nobody until the first request."""

    def __init__(self, settings: OpenAISettings, rate_limits: Path) -> None:
        """Notes the settings; nothing is opened before the first request.

        Args:
            settings: of the server, the model and the limits.
            rate_limits: folder in which the processes of this machine share their limits.
        """
        self._settings = settings
        self._rate_limits = rate_limits
        self._client = OpenAIClient(settings)
        asked = canonical_json([settings.base_url, settings.model, settings.dimensions])
        name = hashlib.sha256(asked.encode()).hexdigest()[:24]
        self._memory = Memory(rate_limits / f"{name}.server.json")
        most = settings.max_concurrency
        self._concurrency = AdaptiveConcurrency(min(most, self._memory.known.most_requests or most))
        self._budget = Budget(settings.max_dollars)
        self._lock = threading.Lock()
        self._sent = self._repeated = 0
        self._answered = False
        self._suspects: set[str] = set()
        self.given_up = threading.Event()

    def give_up(self) -> None:
        """Who waits shall wait no more; later requests may wait again."""
        self.given_up.set()
        self.given_up = threading.Event()

    @property
    def known_limits(self) -> Limits:
        """As far as the last request showed them."""
        seen = self._usage.limits
        return Limits(
            seen.requests or self._settings.requests_per_minute,
            seen.tokens or self._settings.tokens_per_minute,
        )

    def statistics(self) -> dict[str, float]:
        """See `OpenAIEmbedder.statistics`."""
        usage = self._usage
        return {
            "requests": self._sent,
            "retries": self._repeated,
            "tokens": usage.tokens,
            "dollars": self._budget.spent,
            "seconds_rate_limited": usage.seconds_waited,
            "rate_limit_utilisation": usage.utilisation,
            "rate_limit_share": usage.share,
        }

    @property
    def most_texts(self) -> int:
        """Of a request, as far as it is known."""
        learned, most = self._memory.known.most_texts, self._settings.max_request_inputs
        return min(learned, most) if learned else most

    def send(
        self, texts: list[str], estimate: int, role: Role, given_up: threading.Event
    ) -> tuple[Vectors, float]:
        """One request, again and again until it succeeds or no hope is left.

        Args:
            texts: as they are sent.
            estimate: an upper bound of their tokens.
            role: questions wait only for seconds.
            given_up: ends the waiting.

        Returns:
            The vectors, and the dollars that they cost, lost answers included.

        Raises:
            TooManyTextsError: they should be sent in parts.
            EmbeddingError: no hope is left; it carries what was spent.
        """
        patience = Patience(
            self._settings, role, len(texts), warm=self._answered, suspect=self._suspected(texts)
        )
        form = self._memory.known.form
        spent = 0.0
        try:
            while True:
                if len(texts) > self.most_texts:  # as another request has shown meanwhile
                    raise TooManyTextsError("Too many texts in a request", self.most_texts)
                harmless = patience.asks_harmless
                sent, most = (
                    ([HARMLESS_TEXT], len(HARMLESS_TEXT)) if harmless else (texts, estimate)
                )
                attempt = self._attempt(sent, most, form, patience, given_up)
                spent += attempt.dollars
                found = attempt.found
                if isinstance(found, Failure):
                    step = patience.after_failure(
                        self._seen(found, attempt), crowded=attempt.crowded
                    )
                else:
                    self._answered = True
                    if not harmless:
                        self._concurrency.succeeded()
                        self._memory.takes(form)
                        self._acquit(texts)
                        return found, spent
                    step = patience.after_harmless()
                form = self._follow(step, texts, form, patience, given_up)
        except GivenUpError as error:
            failure = patience.nobody_waits_longer()
            failure.dollars = spent
            raise failure from error
        except EmbeddingError as error:
            error.dollars += spent
            raise

    def _seen(self, failure: Failure, attempt: _Attempt) -> Failure:
        """Slows down where the server is overloaded; a page is no wrong URL once it was right."""
        if failure.cause == "address" and self._answered:
            failure = replace(failure, cause="overload")
        rule = RULES[failure.cause]
        if failure.cause == "time-out":
            if attempt.crowded:
                most = self._concurrency.too_many(attempt.number)
                self._memory.answers_no_more_than(most)
        elif rule.then == "ask harmless" or rule.between == "pause":
            self._concurrency.failed(attempt.number)
        return failure

    def _follow(
        self,
        step: Next,
        texts: list[str],
        form: Form,
        patience: Patience,
        given_up: threading.Event,
    ) -> Form:
        """Does what comes next; returns the form of the next request."""
        failure = step.failure
        if step.action == "leave out":
            other = form.without(failure.parameter)
            if other is None:
                raise patience.error(step, self._client.key_variable, self._client.proxy)
            _log.info("%s; asking without it", failure.reason)
            form = other
        elif step.action == "shrink":
            most = failure.most_texts or max(1, len(texts) // 2)
            if failure.cause in ("batch", "time-out"):
                self._memory.takes_no_more_than(most)
                self._concurrency.at_most(self._settings.max_concurrency)
            raise TooManyTextsError(f"{self._settings.base_url}: {failure.reason}.", most)
        elif step.action == "split":
            raise self._accused(step, texts)
        elif step.action == "stop":
            raise patience.error(step, self._client.key_variable, self._client.proxy)
        self._count(repeated=1)
        _log.warning("%s; next attempt in %.1f s", failure.reason, step.delay)
        if step.action == "pause":
            self._limiter.pause(step.delay)
        else:
            given_up.wait(step.delay)
        return form

    def _accused(self, step: Next, texts: list[str]) -> EmbeddingError:
        """One of the texts is at fault: whoever has the others sends them without it."""
        error = TextError(f"{self._settings.base_url}: {step.failure.reason}.")
        rule = RULES[step.failure.cause]
        error.proven = rule.then == "ask harmless"
        with self._lock:
            if len(texts) == 1:
                self._suspects.discard(texts[0])
            elif rule.documents > 1 or error.proven:
                self._suspects.update(texts)
        return error

    def _suspected(self, texts: list[str]) -> bool:
        with self._lock:
            return bool(self._suspects) and self._suspects.issuperset(texts)

    def _acquit(self, texts: list[str]) -> None:
        with self._lock:
            self._suspects.difference_update(texts)

    def _attempt(
        self,
        texts: list[str],
        estimate: int,
        form: Form,
        patience: Patience,
        given_up: threading.Event,
    ) -> _Attempt:
        """Sends one request; counts what it cost and what it took of the limits."""
        settings, price = self._settings, self._price
        with self._concurrency.slot(patience.queue_timeout) as number:
            reserved = price.dollars(estimate)
            self._budget.reserve(reserved)
            grant: Grant | None = None
            charged = 0  # tokens
            dollars = 0.0
            reply: Reply | Failure | None = None
            found: Vectors | Failure
            try:
                grant = self._acquire(estimate, patience, given_up)
                charged = estimate  # so long as nothing else is known
                dollars = reserved
                reply = self._client.exchange(texts, form, patience.timeout)
                if isinstance(reply, Failure):
                    found = reply
                else:
                    found = read(
                        reply, settings.model, len(texts), settings.dimension, settings.answers_as
                    )
                    if isinstance(found, Vectors):
                        charged = found.tokens or estimate
                        found = Vectors(found.vectors, charged)
                    dollars = 0.0 if reply.status >= 400 else price.dollars(charged)
                return _Attempt(found, number, self._concurrency.is_crowded(number), dollars)
            finally:
                self._budget.settle(reserved, dollars)
                if grant:
                    self._count(sent=1)
                    headers = reply.headers if isinstance(reply, Reply) else {}
                    self._limiter.settle(grant, charged, reported_limits(headers))

    def _acquire(self, tokens: int, patience: Patience, given_up: threading.Event) -> Grant:
        try:
            return self._limiter.acquire(tokens, given_up, patience.queue_timeout)
        except LimitError as error:
            raise SettingsError(
                f"{error}. Raise tokens_per_minute or requests_per_minute, or lower "
                "chunking.max_tokens"
            ) from error

    def _count(self, sent: int = 0, repeated: int = 0) -> None:
        with self._lock:
            self._sent += sent
            self._repeated += repeated

    @cached_property
    def _price(self) -> Price:
        price = price_of(self._settings.known_as)
        if price is None and self._settings.max_dollars is not None:
            raise SettingsError(
                f"max_dollars needs the price of {self._settings.known_as!r}: add a line to "
                f"{prices_file()}."
            )
        return price or FREE

    @property
    def _usage(self) -> Usage:
        limiter = self.__dict__.get("_made_limiter")  # what describes an embedder needs no key
        return limiter.usage() if limiter else Usage()

    @property
    def _limiter(self) -> RateLimiter:
        with self._lock:
            return self._made_limiter

    @cached_property
    def _made_limiter(self) -> RateLimiter:
        settings = self._settings
        _ = self._client.connected  # a missing key is said before anything is written
        # A provider's limits are of the key and the model. The hash is slow to invert.
        key = (self._client.key or "").encode()
        secret = hashlib.scrypt(key, salt=b"rate limit", n=4096, r=8, p=1)
        identity = hashlib.sha256(
            canonical_json([settings.base_url, settings.model, secret.hex()]).encode()
        ).hexdigest()[:24]
        return rate_limiter_from_url(
            os.environ.get(VARIABLE),
            identity,
            self._rate_limits,
            Limits(settings.requests_per_minute, settings.tokens_per_minute),
            window=settings.rate_limit_window,
            lease=2 * settings.timeout,
        )
