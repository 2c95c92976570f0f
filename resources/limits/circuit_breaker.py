"""Stop asking what fails, and ask again when it may be back (Nygard, "Release It!", 2007)."""

import threading
import time
from collections.abc import Callable

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


class CircuitBreaker:
    """Open for 1 s after a failure, twice as long after each further one, 30 s at most.

    After a pause one caller tries; the others go on being refused until it has succeeded.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._open_until = 0.0
        self._trying = False

    def allows(self) -> bool:
        """Whether to try now."""
        with self._lock:
            now = self._clock()
            if not self._failures:
                return True
            if now < self._open_until:
                return False
            self._open_until = now + self._pause()
            self._trying = True
            return True

    def failed(self) -> None:
        with self._lock:
            if self._failures and not self._trying:
                return  # another caller's failure opened it while this one was under way
            self._failures += 1
            self._trying = False
            self._open_until = self._clock() + self._pause()

    def succeeded(self) -> bool:
        """Returns whether it had failed before."""
        with self._lock:
            failures, self._failures, self._trying = self._failures, 0, False
            return failures > 0

    def _pause(self) -> float:
        return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(self._failures - 1, 10))
