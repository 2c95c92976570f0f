"""How far a step is: a line in its log every few seconds, whatever it is busy with."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

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
        partition, partitions: how many have begun, of how many; 0 if that is not counted.
        counts: what became of those that are done.
        doing: what it is busy with while it counts nothing; "" if that is not told.
        waited: seconds since anything was counted, or since it began with what it is busy with.
    """

    what: str
    done: int
    total: int | None
    share: float
    rate: float
    seconds_left: float | None
    partition: int = 0
    partitions: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    doing: str = ""
    waited: float = 0.0


def progress_line(reached: Reached, *, details: bool = True) -> str:
    """The one form in which progress is written, in logs and on terminals.

    Args:
        reached: how far it is.
        details: whether to say what became of those that are done.
    """
    busy = f"{reached.doing} for {reached.waited:,.0f} s" if reached.doing else ""
    if busy and not reached.done and not reached.total:
        return busy
    line = f"{reached.done:,}{f' of {reached.total:,}' if reached.total else ''} {reached.what}"
    if reached.partitions > 1 and reached.partition:
        partition = f"partition {reached.partition:,} of {reached.partitions:,}"
        line += f" ({partition}, {reached.share:.0%})"
    elif reached.share:
        line += f" ({reached.share:.0%})"
    if reached.rate >= 0.05:
        # Of less than ten a second the decimal is what tells whether it goes on.
        line += f", {reached.rate:,.{1 if reached.rate < 9.95 else 0}f}/s"
    if reached.seconds_left is not None:
        line += f", {reached.seconds_left:,.0f} s left"
    return line + (_details(reached) if details else "") + (f"; {busy}" if busy else "")


def _details(reached: Reached) -> str:
    details = [f"{count:,} {name}" for name, count in reached.counts.items()]
    if "cached" in reached.counts and reached.done:
        details.append(f"hit rate {reached.counts['cached'] / reached.done:.0%}")
    return f": {', '.join(details)}" if details else ""


def newest_progress() -> "Progress | None":
    """What this process began to count last, for whoever draws how far it is."""
    return _newest[0] if _newest else None


class Progress:
    """A line in the log every few seconds, never one an item.

    As a context manager it also writes lines while nothing is counted, from a thread of its own.
    How much is left is known from `total`, from `partitions`, each announced by `begin`, or from
    `reach`.

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
        self._started = self._said = self._counted = time.monotonic()
        self._begun = self._under_way = self._expected = self._done_before = 0
        self._told_share = 0.0
        self._doing = ""
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.done = 0
        self._marks = self._new_marks()
        """When lines were written of late, and what was done then, in items and as a share."""
        _newest[:] = [self]

    def __enter__(self) -> "Progress":
        self._thread = threading.Thread(target=self._beat, name="progress", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def begin(self, expected: int = 0, partitions: int = 1) -> None:
        """The next partitions begin, with so many items if that is known."""
        self._begun += partitions
        self._under_way = partitions
        self._expected, self._done_before = expected, self.done

    def reach(self, share: float) -> None:
        """So much of the whole is done, from 0 to 1, where neither items nor partitions tell it."""
        self._told_share = share

    def advance(self, count: int = 1, **counts: int) -> None:
        """So many more are done; `counts` tell what became of them, as in `added=3`.

        `cached` is also told as the hit rate.
        """
        self.done += count
        for name, value in counts.items():
            self._counts[name] = self._counts.get(name, 0) + value
        if count:
            self._counted = time.monotonic()
        self._tell_if_due()

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Says what it is busy with while it counts nothing, as in "loading the model"."""
        before, self._doing = self._doing, what
        self._counted = time.monotonic()
        try:
            yield
        finally:
            self._doing = before
            with self._lock:  # what is counted next says nothing of the time that went by here
                self._counted = time.monotonic()
                self._marks = self._new_marks()

    def finish(self) -> None:
        """The last line, whatever the time; none if nothing was done."""
        if self.done or any(self._counts.values()):
            seconds = max(time.monotonic() - self._started, 1e-9)
            rate = self.done / seconds
            self._log.info(
                f"{self.done:,} {self._what} in {seconds:,.1f} s, {rate:,.0f}/s"
                + _details(self.reached())
            )

    def reached(self) -> Reached:
        """How far it is now; may be asked from another thread."""
        now, done, share = time.monotonic(), self.done, self._share()
        # Of the last lines only: what the cache holds goes by quickly, and then comes the rest.
        before, done_before, share_before = self._marks[0]
        seconds = max(now - before, 1e-9)
        left = seconds * (1 - share) / (share - share_before) if share > share_before else None
        waited = now - self._counted
        return Reached(
            self._what,
            done,
            self._total,
            share,
            (done - done_before) / seconds,
            left,
            self._begun,
            self._partitions or 0,
            dict(self._counts),
            self._doing if waited >= _PROGRESS_SECONDS / 2 or not done else "",
            waited,
        )

    def _new_marks(self) -> deque[tuple[float, int, float]]:
        return deque([(time.monotonic(), self.done, self._share())], maxlen=_LINES_OF_RATE)

    def _beat(self) -> None:
        while not self._over.wait(max(0.0, self._said + _PROGRESS_SECONDS - time.monotonic())):
            self._tell_if_due()

    def _tell_if_due(self) -> None:
        if time.monotonic() - self._said < _PROGRESS_SECONDS:
            return
        with self._lock:
            now = time.monotonic()
            if now - self._said < _PROGRESS_SECONDS:  # another thread was first
                return
            self._said = now
            line = progress_line(self.reached())
            self._marks.append((now, self.done, self._share()))
        self._log.info(line)

    def _share(self) -> float:
        """How much is done, from 0 to 1; 0 if that is not known."""
        if self._total:
            return min(1.0, self.done / self._total)
        if not self._partitions or not self._begun:
            return self._told_share
        within = (self.done - self._done_before) / self._expected if self._expected else 0.0
        before = self._begun - self._under_way
        return (before + self._under_way * min(1.0, within)) / self._partitions


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Yields a dictionary that holds `seconds` afterwards."""
    result: dict[str, float] = {}
    started = time.perf_counter()
    try:
        yield result
    finally:
        result["seconds"] = time.perf_counter() - started
