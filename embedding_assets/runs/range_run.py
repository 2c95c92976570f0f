"""One Dagster run over a range of partitions, of which each finished one stays finished."""

import time
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any

import dagster as dg

from embedding_assets.collection.table_metadata import PARTITION_ROW_COUNT
from embedding_assets.runs.memory import use_what_is_allowed
from embedding_assets.runs.rounding import rounded
from resources.errors import InvalidInputError, not_permitted

# An event costs Dagster about 26 ms. A partition that took longer than this is recorded as soon as
# it is done, so that even a killed process leaves it recorded; the others when the step ends.
_RECORD_AT_ONCE_AFTER_SECONDS = 1.0
# Dagster keeps each number of each partition twice, in some 300 bytes: with thousands of partitions
# that is much of its event log.
_FEW_PARTITIONS = 100


def is_long(seconds: float) -> bool:
    """Whether what took so long should be made durable at once, rather than with its neighbours."""
    return seconds > _RECORD_AT_ONCE_AFTER_SECONDS


class RangeRun:
    """Records what a step has finished, partition by partition.

    At the end of a step Dagster records all its partitions; if the step fails, none. This records
    the finished ones in that case too. A user's mistake ends the step with its sentence, and is not
    tried again.

    Args:
        context: the step's.
        rows: tells the rows of a partition from its numbers. Dagster shows them as such; not those
            of all partitions together, for which each of them would have to be looked at.
        essential: the numbers that each partition keeps in a run over very many; None: all.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        rows: Callable[[Mapping[str, Any]], int],
        essential: Collection[str] | None = None,
    ) -> None:
        self._context = context
        self.partitions = list(context.partition_keys)
        if not self.partitions:
            raise dg.Failure(_why_none(context.run.tags), allow_retries=False)
        few = len(self.partitions) <= _FEW_PARTITIONS
        self._rows = rows
        self._essential = None if few else essential
        self._unrecorded: dict[str, dict[str, Any]] = {}
        self._started = time.monotonic()

    def __enter__(self) -> "RangeRun":
        use_what_is_allowed()
        return self

    def record(self, finished: Mapping[str, Mapping[str, Any]]) -> None:
        """Call this with the metadata of partitions when everything of them is durable."""
        for partition, metadata in finished.items():
            told = {PARTITION_ROW_COUNT: self._rows(metadata), **metadata}
            plain = {
                key: rounded(value)
                for key, value in told.items()
                if self._essential is None or key in self._essential
            }
            self._context.add_asset_metadata(plain, partition_key=partition)
            self._unrecorded[partition] = plain
        now = time.monotonic()
        if len(self.partitions) > 1 and is_long((now - self._started) / max(1, len(finished))):
            self._record_now()
        self._started = now

    def of_all_partitions(self, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        """What of the metadata of the run as a whole each partition keeps, which no one has."""
        return metadata if self._essential is None else {}

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error_type is not None:
            self._record_now()
        said = str(error) if isinstance(error, InvalidInputError) else not_permitted(error)
        if said:
            raise dg.Failure(said, allow_retries=False) from None

    def _record_now(self) -> None:
        for partition, metadata in self._unrecorded.items():
            self._context.log_event(
                dg.AssetMaterialization(
                    asset_key=self._context.asset_key, partition=partition, metadata=metadata
                )
            )
        self._unrecorded.clear()


def _why_none(tags: Mapping[str, str]) -> str:
    """Dagster itself takes such a range for one over no partition, and calls the run a success."""
    first, last = (tags.get(f"dagster/asset_partition_range_{end}") for end in ("start", "end"))
    return (
        f"There is nothing to do: the range {first}...{last} ends before it begins. Turn it round: "
        f"{last}...{first}."
        if first and last
        else "There is nothing to do: the run is over no partition."
    )
