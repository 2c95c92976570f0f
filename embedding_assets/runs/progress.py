"""How far a step is: a line in its log every few seconds."""

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_PROGRESS_SECONDS = 5.0
_LINES_OF_RATE = 6
_newest: "list[Progress]" = []


@dataclass(frozen=True)
class Reached:
    """How far something is.

    Attributes:
        what: is counted.
        done: how many.
        total: of how many; None if that is not known.
        share: how much is done, from 0 to 1; 0 if that is not known.
        rate: how many a second, of late.
        seconds_left: None if that is not known.
    """

    what: str
    done: int
    total: int | None
    share: float
    rate: float
    seconds_left: float | None


def newest_progress() -> "Progress | None":
    """What this process began to count last, for whoever draws how far it is."""
    return _newest[0] if _newest else None


class Progress:
    """A line in the log every few seconds, never one an item.

    How much is left is known from `total`, or from `partitions`, each announced by `begin`.

    Args:
        log: gets the lines.
        what: what is counted, for example "documents split".
        total: how many there will be.
        partitions: how many partitions there will be, of as yet unknown sizes.
    """

    def __init__(
        self,
        log: logging.Logger,
        what: str,
        total: int | None = None,
        *,
        partitions: int | None = None,
    ) -> None:
        self._log, self._what, self._total, self._partitions = log, what, total, partitions
        self._started = time.monotonic()
        self._lines = deque([(self._started, 0)], maxlen=_LINES_OF_RATE)
        self._begun = self._under_way = self._expected = self._done_before = 0
        self._counts: dict[str, int] = {}
        self.done = 0
        _newest[:] = [self]

    def begin(self, expected: int = 0, partitions: int = 1) -> None:
        """The next partitions begin, with so many items if that is known."""
        self._begun += partitions
        self._under_way = partitions
        self._expected, self._done_before = expected, self.done

    def advance(self, count: int = 1, **counts: int) -> None:
        """So many more are done; `counts` tell what became of them, as in `added=3`.

        `cached` is also told as the hit rate.
        """
        self.done += count
        for name, value in counts.items():
            self._counts[name] = self._counts.get(name, 0) + value
        now = time.monotonic()
        if now - self._lines[-1][0] >= _PROGRESS_SECONDS:
            self._log.info(self._line())
            self._lines.append((now, self.done))

    def finish(self) -> None:
        """The last line, whatever the time; none if nothing was done."""
        if self.done or any(self._counts.values()):
            seconds = max(time.monotonic() - self._started, 1e-9)
            rate = self.done / seconds
            self._log.info(
                f"{self.done:,} {self._what} in {seconds:,.1f} s, {rate:,.0f}/s" + self._details()
            )

    def reached(self) -> Reached:
        """How far it is now; may be asked from another thread."""
        now, done, share = time.monotonic(), self.done, self._share()
        # Of the last lines only: what the cache holds goes by quickly, and then comes the rest.
        before, done_before = self._lines[0]
        rate = (done - done_before) / max(now - before, 1e-9)
        left = (now - self._started) * (1 - share) / share if share else None
        return Reached(self._what, done, self._total, share, rate, left)

    def _line(self) -> str:
        reached = self.reached()
        of = f" of {self._total:,}" if self._total else ""
        line = f"{reached.done:,}{of} {self._what}"
        if self._partitions and self._partitions > 1:
            line += f" (partition {self._begun:,} of {self._partitions:,}, {reached.share:.0%})"
        elif reached.share:
            line += f" ({reached.share:.0%})"
        line += f", {reached.rate:,.0f}/s"
        if reached.seconds_left is not None:
            line += f", {reached.seconds_left:,.0f} s left"
        return line + self._details()

    def _share(self) -> float:
        """How much is done, from 0 to 1; 0 if that is not known."""
        if self._total:
            return min(1.0, self.done / self._total)
        if not self._partitions or not self._begun:
            return 0.0
        within = (self.done - self._done_before) / self._expected if self._expected else 0.0
        before = self._begun - self._under_way
        return (before + self._under_way * min(1.0, within)) / self._partitions

    def _details(self) -> str:
        details = [f"{count:,} {name}" for name, count in self._counts.items()]
        if "cached" in self._counts and self.done:
            details.append(f"hit rate {self._counts['cached'] / self.done:.0%}")
        return f": {', '.join(details)}" if details else ""


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Yields a dictionary that holds `seconds` afterwards."""
    result: dict[str, float] = {}
    started = time.perf_counter()
    try:
        yield result
    finally:
        result["seconds"] = time.perf_counter() - started
