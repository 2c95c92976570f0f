"""One budget of requests and tokens per minute for every process that uses the same key.

A request is granted if it, all requests in flight, and all that ended within the last window fit
the limit. One that reaches the server within some window was in flight at its beginning, or was
granted later: so no window at the server holds more than the limit, whatever the network's delay,
as long as no request takes more tokens than were asked for. What it did not take is free again as
soon as it ends. Ends are counted in slots of 1/100 window, so 97 to 99 % of a limit can be used.

Providers may enforce a limit over shorter times than they say. So no tenth of a window takes more
than 15 % of it, but for a single request larger than that.
"""

import math
import random
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from resources.errors import EmbeddingAssetsError, InvalidInputError

VARIABLE = "EMBEDDING_RATE_LIMITER"
"""Names the limiter that several machines share."""


class LimitError(InvalidInputError):
    """A single request exceeds the limit, so that no waiting helps."""


class GivenUpError(EmbeddingAssetsError):
    """Who waited was told to wait no more."""


@dataclass(frozen=True)
class Limits:
    """What a provider allows, per window; None where it is unknown or unlimited."""

    requests: int | None = None
    tokens: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True)
class ReportedLimits:
    """What a provider's answer says about its limits.

    Attributes:
        limits: its limits.
        remaining: how much of them it counts as left.
    """

    limits: Limits = NO_LIMITS
    remaining: Limits = Limits()


@dataclass(frozen=True)
class Grant:
    """Leave to send one request; to be settled when the request has ended, however it ended."""

    id: str
    tokens: int


@dataclass(frozen=True)
class Usage:
    """What one limiter granted in this process, and what all together used.

    Attributes:
        requests: granted to this process.
        tokens: taken by this process.
        seconds_waited: summed over its threads, for the budget or for a pause.
        limits: in force.
        utilisation: the share of the limit, of requests or of tokens, whichever is larger, that
            all processes together used in the window before the last grant.
        share: of the limits, that this machine may take by itself: the least of all grants; 1 while
            all that share the limits see each other.
    """

    requests: int = 0
    tokens: int = 0
    seconds_waited: float = 0.0
    limits: Limits = NO_LIMITS
    utilisation: float = 0.0
    share: float = 1.0


@dataclass(frozen=True)
class Answer:
    """How the limiter answers whoever asks to send a request.

    Attributes:
        wait: 0 if granted, -1 if it never can be, else seconds after which to ask again.
        used: requests and tokens, in flight and in the last window.
        limits: in force for requests and tokens; 0 for none.
        paused: seconds for which nothing is sent.
        share: of the limits, that this machine takes by itself.
    """

    wait: float
    used: tuple[float, float]
    limits: tuple[float, float]
    paused: float = 0.0
    share: float = 1.0


def _limits(answer: Answer) -> Limits:
    return Limits(*(int(limit) or None for limit in answer.limits))


class RateLimiter(ABC):
    """Shares a provider's limits among all who send requests with one key; safe between threads."""

    def __init__(
        self, limits: Limits = NO_LIMITS, *, window: float = 60.0, lease: float = 120.0
    ) -> None:
        """Starts with the given limits; it may learn others.

        Args:
            limits: of this key; those that the provider tells hold too, the lower ones win.
            window: seconds for which the limits are meant.
            lease: seconds after which a request that nobody settled counts as ended: its process
                was killed.
        """
        if window <= 0 or lease <= 0:
            raise ValueError(f"window and lease must be positive, got {window} and {lease} s")
        self._limits = limits
        self._window = window
        self._lease = lease
        self._turn = threading.Lock()
        self._guard = threading.Lock()
        self._usage = Usage()

    @abstractmethod
    def _step(self, ask: dict[str, Any]) -> Answer:
        """Does what is asked, as one atomic step for all processes."""

    def acquire(
        self,
        tokens: int,
        given_up: threading.Event | None = None,
        timeout: float | None = None,
    ) -> Grant:
        """Waits until one request of so many tokens is within the limits.

        Args:
            tokens: an upper bound of what the request will take.
            given_up: ends the waiting.
            timeout: seconds to wait at most.

        Raises:
            LimitError: the limit is lower than this one request.
            GivenUpError: `given_up` was set, or the time is over.
        """
        given_up = given_up or threading.Event()
        grant = Grant(uuid4().hex, tokens)
        began = time.monotonic()
        end = began + (math.inf if timeout is None else timeout)
        # The threads of a process wait in turn, so that only one of them asks again and again.
        if not self._turn.acquire(timeout=-1 if timeout is None else timeout):
            raise GivenUpError
        try:
            while True:
                if given_up.is_set():
                    raise GivenUpError
                answer = self._step({"acquire": [grant.id, tokens]})
                if answer.wait == 0:
                    break
                if answer.wait < 0:
                    raise LimitError(
                        f"one request takes up to {tokens:,} tokens, but the limit is "
                        f"{answer.limits[0]:,.0f} requests and {answer.limits[1]:,.0f} tokens "
                        "per minute"
                    )
                if time.monotonic() + answer.wait > end:
                    raise GivenUpError
                given_up.wait(min(answer.wait, 1.0))
        finally:
            self._turn.release()
        with self._guard:
            used = [u / limit for u, limit in zip(answer.used, answer.limits, strict=True) if limit]
            self._usage = Usage(
                self._usage.requests + 1,
                self._usage.tokens,
                self._usage.seconds_waited + time.monotonic() - began,
                _limits(answer),
                max(used, default=0.0),
                min(self._usage.share, answer.share),
            )
        return grant

    def settle(
        self, grant: Grant, tokens: int, reported: ReportedLimits = ReportedLimits()
    ) -> None:
        """Says that a granted request has ended.

        Args:
            grant: from `acquire`.
            tokens: what it took.
            reported: what the answer said about limits.
        """
        limits, remaining = reported.limits, reported.remaining
        answer = self._step(
            {
                "settle": [grant.id, tokens],
                "learn": [limits.requests or 0, limits.tokens or 0],
                "remaining": [
                    -1 if left is None else left for left in (remaining.requests, remaining.tokens)
                ],
            }
        )
        with self._guard:
            self._usage = replace(
                self._usage, tokens=self._usage.tokens + tokens, limits=_limits(answer)
            )

    def pause(self, seconds: float) -> None:
        """No process sends anything for so long."""
        self._step({"pause": seconds})

    @property
    def limits(self) -> Limits:
        """The limits in force now, learned ones included."""
        return _limits(self._step({}))

    @property
    def paused(self) -> float:
        """Seconds for which no process sends anything."""
        return self._step({}).paused

    def usage(self) -> Usage:
        """Costs nothing: it is what the last grant or its end showed."""
        with self._guard:
            return self._usage

    def _complete(self, ask: dict[str, Any]) -> dict[str, Any]:
        nothing = {"acquire": None, "settle": None, "pause": 0, "learn": [0, 0], "outage": None}
        return {
            **nothing,
            "remaining": [-1, -1],
            "limits": [self._limits.requests or 0, self._limits.tokens or 0],
            "window": self._window,
            "lease": self._lease,
            "jitter": random.random(),
            **ask,
        }
