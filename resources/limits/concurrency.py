"""As many requests in flight as the server takes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from resources.limits.base import GivenUpError


class AdaptiveConcurrency:
    """Additive increase, multiplicative decrease, with slow start, as TCP does (RFC 5681).

    It begins with one request, so that all others know the limits that the first answer tells.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = 1.0
        self._slow_start = True
        self._begun = 0
        self._in_flight: set[int] = set()
        self._crowded: set[int] = set()
        self._decreased_at = 0
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        return int(self._limit)

    @contextmanager
    def slot(self, timeout: float | None = None) -> Iterator[int]:
        """Waits for its turn; yields the number of the request, for `succeeded` and `failed`.

        Raises:
            GivenUpError: its turn did not come within so many seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._in_flight) < self.limit, timeout):
                raise GivenUpError
            self._begun += 1
            number = self._begun
            self._in_flight.add(number)
            if len(self._in_flight) > 1:
                self._crowded |= self._in_flight
        try:
            yield number
        finally:
            with self._changed:
                self._in_flight.discard(number)
                self._crowded.discard(number)
                self._changed.notify_all()

    def is_crowded(self, number: int) -> bool:
        """Whether others were in flight while this request was, which still has its slot."""
        with self._changed:
            return number in self._crowded

    def succeeded(self) -> None:
        with self._changed:
            growth = 1.0 if self._slow_start else 1.0 / self._limit
            self._limit = min(self._most, self._limit + growth)
            self._changed.notify_all()

    def failed(self, number: int) -> None:
        """The server is overloaded. Requests that began before the last decrease count no more."""
        with self._changed:
            if number > self._decreased_at:
                self._limit = max(1.0, self._limit / 2)
                self._slow_start = False
                self._decreased_at = self._begun

    def too_many(self, number: int) -> int:
        """This request was late because of the others: henceforth at most half as many.

        Returns:
            How many that are.
        """
        with self._changed:
            if number > self._decreased_at:
                self._most = max(1, self.limit // 2)
                self._limit = min(self._limit, self._most)
                self._slow_start = False
                self._decreased_at = self._begun
            return self._most

    def at_most(self, most: int) -> None:
        """Sets the maximum, which `too_many` lowers."""
        with self._changed:
            self._most = most
