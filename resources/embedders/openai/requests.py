"""Requests until one succeeds or no hope is left, within the server's limits and the budget."""

import hashlib
import logging
import os
import random
import threading
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from resources.embedders.openai.client import OpenAIClient
from resources.embedders.openai.protocol import Failure, Reply, Vectors, read, reported_limits
from resources.embedders.openai.settings import OpenAISettings
from resources.embedders.pricing import FREE, Budget, Price, price_of, prices_file
from resources.errors import (
    CredentialsError,
    EmbedderUnavailableError,
    EmbeddingError,
    SettingsError,
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

_MOST_INCOMPLETE_ANSWERS = 3
_LONGEST_DELAY = 30.0
"""Seconds; of the exponential backoff."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Attempt:
    """What one request brought, which one it was, and what it cost."""

    found: Vectors | Failure
    number: int
    dollars: float


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
        self._concurrency = AdaptiveConcurrency(settings.max_concurrency)
        self._budget = Budget(settings.max_dollars)
        self._lock = threading.Lock()
        self._sent = self._repeated = 0
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

    def send(
        self, texts: list[str], estimate: int, given_up: threading.Event
    ) -> tuple[Vectors, float]:
        """One request, again and again until it succeeds or no hope is left.

        Args:
            texts: as they are sent.
            estimate: an upper bound of their tokens.
            given_up: ends the waiting.

        Returns:
            The vectors, and the dollars that they cost, lost answers included.

        Raises:
            EmbeddingError: no hope is left; it carries what was spent.
        """
        spent = 0.0
        first_failure: float | None = None
        incomplete = failures = 0
        try:
            while True:
                attempt = self._attempt(texts, estimate, given_up)
                spent += attempt.dollars
                found = attempt.found
                if isinstance(found, Vectors):
                    self._concurrency.succeeded()
                    return found, spent
                failures += 1
                first_failure = first_failure or time.monotonic()
                if found.remedy in ("stop", "split"):
                    raise self._error(found)
                if found.remedy == "retry or split":
                    incomplete += 1
                    if incomplete == _MOST_INCOMPLETE_ANSWERS:
                        raise self._error(found)
                else:
                    self._concurrency.failed(attempt.number)
                delay = self._delay(found, failures)
                if time.monotonic() + delay > first_failure + self._settings.max_wait:
                    raise self._error(found, delay)
                self._count(repeated=1)
                _log.warning("%s; next attempt in %.1f s", found.reason, delay)
                if found.remedy == "pause":
                    self._limiter.pause(delay)
                else:
                    given_up.wait(delay)
        except EmbeddingError as error:
            error.dollars += spent
            raise

    def _delay(self, failure: Failure, failures: int) -> float:
        """Seconds until the next attempt."""
        shortest = self._settings.retry_delay
        # Full jitter: AWS Architecture Blog, "Exponential Backoff And Jitter", 2015.
        longest = min(_LONGEST_DELAY, shortest * 2 ** (failures - 1))
        delay = failure.seconds
        # Overloaded servers say "at once" again and again, or when a limit resets that is not
        # spent.
        if delay is None or (failures > 1 and delay < shortest):
            delay = max(delay or 0.0, random.uniform(0, longest))
        return delay

    def _attempt(self, texts: list[str], estimate: int, given_up: threading.Event) -> _Attempt:
        """Sends one request; counts what it cost and what it took of the limits."""
        settings, price = self._settings, self._price
        with self._concurrency.slot() as number:
            reserved = price.dollars(estimate)
            self._budget.reserve(reserved)
            grant: Grant | None = None
            charged = 0  # tokens
            dollars = 0.0
            reply: Reply | str | None = None
            found: Vectors | Failure
            try:
                grant = self._acquire(estimate, given_up)
                charged = estimate  # so long as nothing else is known
                dollars = reserved
                reply = self._client.exchange(texts)
                if isinstance(reply, str):
                    found = Failure("retry", EmbedderUnavailableError, reply)
                else:
                    found = read(reply, settings.model, len(texts), settings.dimension)
                    if isinstance(found, Vectors):
                        charged = found.tokens or estimate
                        found = Vectors(found.vectors, charged)
                    dollars = 0.0 if reply.status >= 400 else price.dollars(charged)
                return _Attempt(found, number, dollars)
            finally:
                self._budget.settle(reserved, dollars)
                if grant:
                    self._count(sent=1)
                    headers = reply.headers if isinstance(reply, Reply) else {}
                    self._limiter.settle(grant, charged, reported_limits(headers))

    def _acquire(self, tokens: int, given_up: threading.Event) -> Grant:
        try:
            return self._limiter.acquire(tokens, given_up)
        except GivenUpError as error:
            raise EmbedderUnavailableError(f"{self._settings.base_url} was given up") from error
        except LimitError as error:
            raise SettingsError(
                f"{error}. Raise tokens_per_minute or requests_per_minute, or lower "
                "chunking.max_tokens"
            ) from error

    def _error(self, failure: Failure, delay: float | None = None) -> EmbeddingError:
        reason, wait = failure.reason, self._settings.max_wait
        if delay is not None and (failure.seconds or 0.0) >= self._settings.retry_delay:
            reason += (
                f". It asks to wait {delay:,.0f} s, longer than max_wait ({wait:,.0f} s) "
                "allows. What is embedded is kept: run again later"
            )
        elif delay is not None:
            reason += (
                f". Given up after max_wait ({wait:,.0f} s). What is embedded is kept: "
                "run again when the server is well"
            )
        elif failure.error is CredentialsError:
            name = self._client.key_variable
            reason += (
                f". Is the environment variable {name} right?"
                if name
                else ". Name the environment variable that holds the key in api_key_env"
            )
        return failure.error(f"{self._settings.base_url}: {reason}.")

    def _count(self, sent: int = 0, repeated: int = 0) -> None:
        with self._lock:
            self._sent += sent
            self._repeated += repeated

    @cached_property
    def _price(self) -> Price:
        price = price_of(self._settings.model)
        if price is None and self._settings.max_dollars is not None:
            raise SettingsError(
                f"max_dollars needs the price of {self._settings.model!r}: add a line to "
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
