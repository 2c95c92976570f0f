"""Few fat runs over neighbouring partitions, with keys that follow from what the runs are for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition as AssetJob,
)
from pydantic import BaseModel, Field

from resources.identity.content_hash import fingerprint

__all__ = ["AssetJob", "PartitionRun", "SensorCursor", "partition_runs", "partitions_of"]

_RANGE_START = "dagster/asset_partition_range_start"
_RANGE_END = "dagster/asset_partition_range_end"
_PRIORITY = "dagster/priority"


class SensorCursor(BaseModel):
    """What one tick of a sensor tells the next, and what makes the keys of its runs its own."""

    epoch: str = Field(default_factory=lambda: uuid4().hex[:8])
    """Chosen at the first tick, so that keys of runs never repeat those from before a reset."""
    generation: int = 0
    """Counts ticks that compared: what changes and changes back is requested both times."""

    @property
    def name(self) -> str:
        return f"{self.epoch}-{self.generation}"


@dataclass(frozen=True)
class PartitionRun:
    """One run over partitions that follow each other."""

    partitions: Sequence[str]

    def request(
        self, key: str, state: Mapping[str, object], tags: Mapping[str, str] | None = None
    ) -> dg.RunRequest:
        """The request of this run.

        Args:
            key: begins the run key.
            state: what the run is for, by partition; a part of the key, too.
            tags: more tags of the run.
        """
        first, last = self.partitions[0], self.partitions[-1]
        states = "".join(f"{p}\n{state.get(p)}\n" for p in self.partitions)
        one = first == last
        return dg.RunRequest(
            run_key=f"{key}-{first}...{last}-{fingerprint(states, 8).hex()}",
            partition_key=first if one else None,
            tags={
                # The queue starts it before the runs of a backfill, whose priority is 0.
                _PRIORITY: "1",
                **({} if one else {_RANGE_START: first, _RANGE_END: last}),
                **(tags or {}),
            },
        )


def partitions_of(request: dg.RunRequest, known: Sequence[str]) -> list[str]:
    """The partitions for which `PartitionRun.request` asks.

    Args:
        request: one of its.
        known: all partition keys, in order.
    """
    if request.partition_key is not None:
        return [request.partition_key]
    first, last = (known.index(request.tags[tag]) for tag in (_RANGE_START, _RANGE_END))
    return list(known[first : last + 1])


def partition_runs(
    wanted: Sequence[str], known: Sequence[str], partitions_per_run: int | None, max_runs: int
) -> tuple[list[PartitionRun], list[str]]:
    """Cuts partitions into runs of neighbours.

    Args:
        wanted: partition keys.
        known: all partition keys, in order.
        partitions_per_run: maximum number of partitions of one run; None: no limit.
        max_runs: maximum number of runs.

    Returns:
        The runs, the newest partitions first for those are looked for most, and the partitions that
        are left over.
    """
    position = {partition: number for number, partition in enumerate(known)}
    runs: list[list[str]] = []
    for partition in sorted(wanted, key=position.__getitem__):
        follows = runs and position[runs[-1][-1]] + 1 == position[partition]
        if follows and (partitions_per_run is None or len(runs[-1]) < partitions_per_run):
            runs[-1].append(partition)
        else:
            runs.append([partition])
    runs.reverse()
    left = [partition for run in runs[max_runs:] for partition in run]
    return [PartitionRun(run) for run in runs[:max_runs]], left
