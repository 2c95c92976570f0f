"""How many requests, texts and tokens one client may take a minute, decided at once.

Grants are counted in slots of 1/120 window, each until its end is a whole window ago: so no window,
wherever it begins, holds more than the limit, and what was taken is free again after one window to
121/120 of it.
"""

import math
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

SLOTS = 120
Dimension = Literal["requests", "texts", "tokens"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)

_Amounts = Sequence[int]
"""Of requests, texts and tokens."""


@dataclass(frozen=True)
class Quota:
    """What a client may take in any window; None where it is unlimited."""

    requests: int | None = None
    texts: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if any(limit is not None and limit < 0 for limit in self.limits):
            raise ValueError(f"no limit may be negative, got {self}")

    @property
    def limits(self) -> tuple[int | None, int | None, int | None]:
        return self.requests, self.texts, self.tokens

    def share(self, replicas: int) -> "Quota":
        """What one of several replicas may grant by itself: at least one, where there is any."""
        return Quota(*(limit and max(1, limit // replicas) for limit in self.limits))


@dataclass(frozen=True)
class Cost:
    """What a request takes."""

    requests: int = 1
    texts: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        if self.requests < 0 or self.texts < 0 or self.tokens < 0:
            raise ValueError(f"nothing of a cost may be negative, got {self}")

    @property
    def amounts(self) -> tuple[int, int, int]:
        return self.requests, self.texts, self.tokens


@dataclass(frozen=True)
class Verdict:
    """Whether a request may go on, and what is left.

    Attributes:
        allowed: then the cost was taken; else nothing was.
        dimension: the scarcest one: that of which the smallest share is left, or, of a request that
            was refused, that for which it has to wait longest. None: the quota has no limits.
        limit: of that dimension.
        remaining: of that limit, after this request.
        reset: seconds until the window is free again in that dimension.
        retry_after: seconds until the same cost is granted if nothing else is taken meanwhile; 0 if
            it was, infinite if the cost alone exceeds the limit.
    """

    allowed: bool
    dimension: Dimension | None = None
    limit: int | None = None
    remaining: int | None = None
    reset: float = 0.0
    retry_after: float = 0.0


UNLIMITED = Verdict(True)
_NO_WAIT = (0.0, 0.0, 0.0)


class Quotas(ABC):
    """Counts what each client takes; safe between threads."""

    @abstractmethod
    def take(self, client: str, quota: Quota, cost: Cost) -> Verdict:
        """Takes the whole cost in all dimensions, or nothing; never waits for a quota.

        Args:
            client: whose quota it is: the id of a key, or an address.
            quota: of this client now; what it took before counts under another one, too.
            cost: of this request.
        """


class MemoryQuotas(Quotas):
    """The clients of one process.

    A client is forgotten when its window is empty. Those for whom there is no place share one
    window until there is one again, so that a flood of addresses costs neither memory nor the
    quota of anybody who was there before.
    """

    def __init__(
        self,
        window: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_clients: int = 50_000,
    ) -> None:
        """Begins with nothing taken.

        Args:
            window: seconds for which the quotas are meant.
            clock: in seconds; must never go back.
            max_clients: kept at the same time, of some 600 bytes each.
        """
        if window <= 0 or max_clients < 1:
            raise ValueError(
                f"window and max_clients must be positive, got {window} and {max_clients}"
            )
        self._slot = window / SLOTS
        self._clock = clock
        self._max_clients = max_clients
        self._lock = threading.Lock()
        # Whoever asked last is the last.
        self._clients: OrderedDict[str, _Window] = OrderedDict()
        self._others = _Window()

    def __len__(self) -> int:
        """How many clients are kept."""
        return len(self._clients)

    def take(self, client: str, quota: Quota, cost: Cost) -> Verdict:
        limits, wanted = quota.limits, cost.amounts
        if limits == (None, None, None):
            return UNLIMITED
        with self._lock:
            now = self._clock()
            current = math.floor(now / self._slot)
            window = self._window_of(client, current)
            window.forget(current)
            used = window.used.copy()
            allowed = _fits(limits, wanted, used)
            if allowed:
                window.add(current, wanted)
                if window is not self._others and client not in self._clients:
                    self._clients[client] = window
            wait = _NO_WAIT if allowed else self._waits(window, limits, wanted, now)
            return verdict(
                allowed,
                limits,
                wanted,
                used,
                wait,
                lambda i: self._until_free(window.newest(i), now),
            )

    def _window_of(self, client: str, current: int) -> "_Window":
        """The client's own, if it has one; else one that it gets if it takes something."""
        window = self._clients.get(client)
        if window is not None:
            self._clients.move_to_end(client)
            return window
        for _ in range(2):  # two leave for one that comes
            oldest = next(iter(self._clients), None)
            if oldest is not None and self._clients[oldest].is_over(current):
                del self._clients[oldest]
        if len(self._clients) >= self._max_clients:
            return self._others
        self._others.forget(current)
        window = _Window()
        newest = self._others.newest_of_all()
        if newest is not None:
            # All that the others took may have been taken by this one.
            window.add(newest, self._others.used)
        return window

    def _waits(
        self, window: "_Window", limits: Sequence[int | None], wanted: _Amounts, now: float
    ) -> list[float]:
        waits = [*_NO_WAIT]
        for i, (limit, want) in enumerate(zip(limits, wanted, strict=True)):
            if limit is not None and 0 < want <= limit:
                waits[i] = self._until_free(window.frees(i, window.used[i] + want - limit), now)
        return waits

    def _until_free(self, slot: int | None, now: float) -> float:
        """Seconds until a slot does not count any more."""
        if slot is None:
            return 0.0
        free = slot + SLOTS + 1
        seconds = free * self._slot - now
        # Whoever comes back after exactly that time must not be early by a rounding.
        while math.floor((now + seconds) / self._slot) < free:
            seconds += math.ulp(now + seconds)
        return seconds


class _Window:
    """What a client took in the slots that count, oldest first."""

    __slots__ = ("_slots", "used")

    def __init__(self) -> None:
        self._slots: list[list[int]] = []  # number, requests, texts, tokens
        self.used = [0, 0, 0]

    def forget(self, current: int) -> None:
        """Drops the slots whose end is a whole window ago."""
        slots, gone = self._slots, 0
        while gone < len(slots) and slots[gone][0] < current - SLOTS:
            for i in range(3):
                self.used[i] -= slots[gone][i + 1]
            gone += 1
        if gone:
            del slots[:gone]

    def is_over(self, current: int) -> bool:
        return not self._slots or self._slots[-1][0] < current - SLOTS

    def add(self, current: int, amounts: _Amounts) -> None:
        if not self._slots or self._slots[-1][0] != current:
            self._slots.append([current, 0, 0, 0])
        for i, amount in enumerate(amounts):
            self._slots[-1][i + 1] += amount
            self.used[i] += amount

    def frees(self, dimension: int, amount: int) -> int | None:
        """The slot with whose end so much is free again; None if nothing has to be."""
        for slot in self._slots:
            if amount <= 0:
                break
            amount -= slot[dimension + 1]
            if amount <= 0:
                return slot[0]
        return None

    def newest(self, dimension: int) -> int | None:
        """The last slot in which something of a dimension was taken."""
        if self.used[dimension]:
            for slot in reversed(self._slots):
                if slot[dimension + 1]:
                    return slot[0]
        return None

    def newest_of_all(self) -> int | None:
        return self._slots[-1][0] if self._slots else None


def _fits(limits: Sequence[int | None], wanted: _Amounts, used: _Amounts) -> bool:
    """Whether a cost is within all limits; what it takes nothing of cannot refuse it."""
    for limit, want, have in zip(limits, wanted, used, strict=True):
        if want and limit is not None and have + want > limit:
            return False
    return True


def verdict(
    allowed: bool,
    limits: Sequence[int | None],
    wanted: _Amounts,
    used: _Amounts,
    wait: Sequence[float],
    reset: Callable[[int], float],
) -> Verdict:
    """The verdict of what is known of each dimension; at least one has a limit.

    Args:
        allowed: whether the request is granted.
        limits: by dimension.
        wanted: by this request, by dimension.
        used: before it, by dimension.
        wait: seconds until as much as it wants is free, by dimension.
        reset: seconds until all of a dimension is free.
    """
    # Whichever it has to wait for longest, then whichever has the smallest share left.
    longest, least, scarcest, limit = -1.0, math.inf, 0, 0
    for i, own_limit in enumerate(limits):
        if own_limit is None:
            continue
        seconds = math.inf if wanted[i] > own_limit else wait[i]
        left = own_limit - used[i] - (wanted[i] if allowed else 0)
        share = left / own_limit if own_limit else 0.0
        if seconds > longest or (seconds == longest and share < least):
            longest, least, scarcest, limit = seconds, share, i, own_limit
    left = limit - used[scarcest] - (wanted[scarcest] if allowed else 0)
    return Verdict(
        allowed, DIMENSIONS[scarcest], limit, max(0, left), reset(scarcest), max(0.0, longest)
    )
