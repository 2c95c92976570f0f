"""One Dagster run over a range of partitions, of which each finished one stays finished."""

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Any, TypeVar

import dagster as dg

from embedding_assets.runs.memory import give_back_freed_memory

# An event costs Dagster about 26 ms. A partition that took longer than this is recorded as soon as
# it is done, so that even a killed process leaves it recorded; the others when the step ends.
_RECORD_AT_ONCE_AFTER_SECONDS = 1.0
# None of a group is recorded before all of it is done, so it is not much.
_BYTES_TOGETHER = 1_000_000
_PARTITIONS_TOGETHER = 64  # each has some files open at a time
# Dagster keeps each number of each partition twice, in some 300 bytes: with thousands of partitions
# that is much of its event log.
_FEW_PARTITIONS = 100
_PROGRESS_SECONDS = 5.0
_LINES_OF_RATE = 6

Opened = TypeVar("Opened")


def is_long(seconds: float) -> bool:
    """Whether what took so long should be made durable at once, rather than with its neighbours."""
    return seconds > _RECORD_AT_ONCE_AFTER_SECONDS


def small_ones_together(
    partitions: Iterable[str],
    opened: Callable[[str], AbstractContextManager[Opened]],
    size: Callable[[Opened], int],
) -> Iterator[list[Opened]]:
    """Groups partitions that are too small to be worth a lookup, a call or a commit of their own.

    Args:
        partitions: in the order in which they are wanted.
        opened: opens what is needed of a partition; it is closed when its group is done.
        size: bytes of an opened partition.

    Yields:
        Neighbours that have at most `_BYTES_TOGETHER`, or one partition.
    """
    with ExitStack() as stack:
        group: list[Opened] = []
        open_now, together = stack.enter_context(ExitStack()), 0
        for partition in partitions:
            own = stack.enter_context(ExitStack())
            one = own.enter_context(opened(partition))
            more = size(one)
            full = together + more > _BYTES_TOGETHER or len(group) == _PARTITIONS_TOGETHER
            if group and full:
                yield group
                open_now.close()
                group, together = [], 0
            group.append(one)
            together += more
            open_now.push(own.pop_all())
        if group:
            yield group


class RangeRun:
    """Records what a step has finished, partition by partition.

    At the end of a step Dagster records all its partitions; if the step fails, none. This records
    the finished ones in that case too.

    Args:
        context: the step's.
        essential: the numbers that each partition keeps in a run over very many; None: all.
    """

    def __init__(
        self, context: dg.AssetExecutionContext, essential: Collection[str] | None = None
    ) -> None:
        self._context = context
        self.partitions = list(context.partition_keys)
        few = len(self.partitions) <= _FEW_PARTITIONS
        self._essential = None if few else essential
        self._unrecorded: dict[str, dict[str, Any]] = {}
        self._started = time.monotonic()

    def __enter__(self) -> "RangeRun":
        give_back_freed_memory()
        return self

    def finish(self, finished: Mapping[str, Mapping[str, Any]]) -> None:
        """Call this with the metadata of partitions when everything of them is durable."""
        for partition, metadata in finished.items():
            plain = {
                key: _plain(value)
                for key, value in metadata.items()
                if self._essential is None or key in self._essential
            }
            self._context.add_asset_metadata(plain, partition_key=partition)
            self._unrecorded[partition] = plain
        now = time.monotonic()
        if len(self.partitions) > 1 and is_long((now - self._started) / max(1, len(finished))):
            self._record()
        self._started = now

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error_type is not None:
            self._record()

    def _record(self) -> None:
        for partition, metadata in self._unrecorded.items():
            self._context.log_event(
                dg.AssetMaterialization(
                    asset_key=self._context.asset_key, partition=partition, metadata=metadata
                )
            )
        self._unrecorded.clear()


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
            self._log.info(self._line(now))
            self._lines.append((now, self.done))

    def finish(self) -> None:
        """The last line, whatever the time; none if nothing was done."""
        if self.done or any(self._counts.values()):
            seconds = max(time.monotonic() - self._started, 1e-9)
            rate = self.done / seconds
            self._log.info(
                f"{self.done:,} {self._what} in {seconds:,.1f} s, {rate:,.0f}/s" + self._told()
            )

    def _line(self, now: float) -> str:
        of = f" of {self._total:,}" if self._total else ""
        line = f"{self.done:,}{of} {self._what}"
        share = self._share()
        if self._partitions and self._partitions > 1:
            line += f" (partition {self._begun:,} of {self._partitions:,}, {share:.0%})"
        elif share:
            line += f" ({share:.0%})"
        # Of the last lines only: what the cache holds goes by quickly, and then comes the rest.
        before, done_before = self._lines[0]
        line += f", {(self.done - done_before) / (now - before):,.0f}/s"
        if share:
            line += f", {(now - self._started) * (1 - share) / share:,.0f} s left"
        return line + self._told()

    def _share(self) -> float:
        """How much is done, from 0 to 1; 0 if that is not known."""
        if self._total:
            return min(1.0, self.done / self._total)
        if not self._partitions or not self._begun:
            return 0.0
        within = (self.done - self._done_before) / self._expected if self._expected else 0.0
        before = self._begun - self._under_way
        return (before + self._under_way * min(1.0, within)) / self._partitions

    def _told(self) -> str:
        told = [f"{count:,} {name}" for name, count in self._counts.items()]
        if "cached" in self._counts and self.done:
            told.append(f"hit rate {self._counts['cached'] / self.done:.0%}")
        return f": {', '.join(told)}" if told else ""


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Yields a dictionary that holds `seconds` afterwards."""
    result: dict[str, float] = {}
    started = time.perf_counter()
    try:
        yield result
    finally:
        result["seconds"] = time.perf_counter() - started


def _plain(value: Any) -> Any:
    # Dagster refuses numpy numbers in metadata.
    return value.item() if hasattr(value, "item") else value
