"""One Dagster run over a range of partitions, of which each finished one stays finished."""

import logging
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import dagster as dg

# An event costs Dagster about 26 ms. A partition that took longer than this is recorded as soon as
# it is done, so that even a killed process leaves it recorded; the others when the step ends.
_RECORD_AT_ONCE_AFTER_SECONDS = 1.0
_PROGRESS_SECONDS = 5.0


def is_long(seconds: float) -> bool:
    """Whether what took so long should be made durable at once, rather than with its neighbours."""
    return seconds > _RECORD_AT_ONCE_AFTER_SECONDS


class RangeRun:
    """Records what a step has finished, partition by partition.

    At the end of a step Dagster records all its partitions; if the step fails, none. This records
    the finished ones in that case too.
    """

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context = context
        self.partitions = list(context.partition_keys)
        self._unrecorded: dict[str, dict[str, Any]] = {}
        self._started = time.monotonic()

    def __enter__(self) -> "RangeRun":
        return self

    def finish(self, partition: str, metadata: Mapping[str, Any]) -> None:
        """Call this when everything of the partition is durable."""
        plain = {key: _plain(value) for key, value in metadata.items()}
        self._context.add_asset_metadata(plain, partition_key=partition)
        self._unrecorded[partition] = plain
        now = time.monotonic()
        if is_long(now - self._started) and len(self.partitions) > 1:
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
    """A line in the log every few seconds, never one an item."""

    def __init__(self, log: logging.Logger, what: str, total: int | None = None) -> None:
        self._log, self._what, self._total = log, what, total
        self._started = self._last = time.monotonic()
        self.done = 0

    def advance(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if now - self._last < _PROGRESS_SECONDS:
            return
        self._last = now
        rate = self.done / (now - self._started)
        if self._total:
            left = (self._total - self.done) / rate
            self._log.info(
                f"{self.done:,} of {self._total:,} {self._what} "
                f"({self.done / self._total:.0%}), {rate:,.0f}/s, {left:,.0f} s left"
            )
        else:
            self._log.info(f"{self.done:,} {self._what}, {rate:,.0f}/s")


def peak_memory_mb() -> float:
    """The most memory this process has had resident since it started, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # bytes there, KiB here


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
