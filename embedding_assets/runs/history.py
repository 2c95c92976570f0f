"""What Dagster recorded of earlier runs: the numbers of partitions, of runs, and of checks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import Any

import dagster as dg
from dagster._core.storage.asset_check_execution_record import (
    COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES,
)

_RECORDS_PER_QUERY = 1_000
_PIECES = 100
"""Of the time that a plot shows: what a run recorded in one of them is one point."""
_SHORTEST_PIECE_SECONDS = 60


@dataclass(frozen=True)
class PartitionNumbers:
    """The numeric metadata of one materialisation."""

    run_id: str
    partition: str
    time: float
    """Seconds since 1970."""
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class RunNumbers:
    """The sums over the partitions of one run, or of a part of it if it had very many."""

    run_id: str
    time: float
    """Seconds since 1970, of the last of its materialisations."""
    partitions: int
    sums: Mapping[str, float]

    def ratio(self, part: str, whole: str) -> float:
        """NaN where there is nothing to divide by, so that a plot has a gap there."""
        return self.sums.get(part, 0.0) / (self.sums.get(whole) or float("nan"))


def latest_materializations(
    instance: dg.DagsterInstance, asset: dg.AssetKey, limit: int
) -> list[PartitionNumbers]:
    """The newest materialisations, newest first, a thousand a query (0.2 s with SQLite).

    A partition that a run recorded twice (at once, and again when its step ended) counts once.
    """
    found: dict[tuple[str, str], PartitionNumbers] = {}
    for record in islice(_records(instance, asset, limit), limit):
        materialization = record.asset_materialization
        if materialization is None:
            continue
        key = (record.run_id, materialization.partition or "")
        if key not in found:
            numbers = _completed(_numbers(materialization.metadata))
            found[key] = PartitionNumbers(*key, record.timestamp, numbers)
    return list(found.values())


def _completed(numbers: dict[str, float]) -> dict[str, float]:
    """Partitions of a run over very many keep the rate, and not the time that it was made of."""
    rate = numbers.get("chunks_per_second")
    if rate and "seconds_embedding" not in numbers:
        numbers["seconds_embedding"] = numbers.get("embedded", 0.0) / rate
    return numbers


def _records(instance: dg.DagsterInstance, asset: dg.AssetKey, limit: int) -> Iterator[Any]:
    cursor, more = None, True
    while more:
        page = instance.fetch_materializations(
            asset, limit=min(limit, _RECORDS_PER_QUERY), cursor=cursor
        )
        yield from page.records
        cursor, more = page.cursor, page.has_more and bool(page.records)


def by_run(materializations: Sequence[PartitionNumbers]) -> list[RunNumbers]:
    """Sums over runs; over a long one, in pieces.

    Args:
        materializations: newest first.

    Returns:
        Oldest first.
    """
    if not materializations:
        return []
    start, end = materializations[-1].time, materializations[0].time
    piece = max((end - start) / _PIECES, _SHORTEST_PIECE_SECONDS)
    pieces: dict[tuple[str, int], list[PartitionNumbers]] = {}
    for entry in reversed(materializations):
        pieces.setdefault((entry.run_id, int((entry.time - start) / piece)), []).append(entry)
    return sorted(map(total, pieces.values()), key=attrgetter("time"))


def total(materializations: Sequence[PartitionNumbers]) -> RunNumbers:
    """The sums over partitions of one run."""
    sums: dict[str, float] = {}
    for entry in materializations:
        for name, value in entry.numbers.items():
            sums[name] = sums.get(name, 0.0) + value
    last = max(materializations, key=attrgetter("time"))
    return RunNumbers(last.run_id, last.time, len(materializations), sums)


def latest_check_numbers(
    instance: dg.DagsterInstance,
    check: dg.AssetCheckKey,
    counts: Callable[[Mapping[str, float]], bool],
    *,
    runs: int,
) -> list[Mapping[str, float]]:
    """The numbers that the last runs gave with a check, newest first.

    Args:
        instance: of the runs.
        check: the check.
        counts: whether a result with these numbers counts as a run.
        runs: how many to return at most; four times as many are looked at.
    """
    # One record a run in an indexed table, and with most storages one more for each of its
    # partitions, which stays planned for ever.
    records = instance.event_log_storage.get_asset_check_execution_history(
        check, limit=4 * runs, status=COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES
    )
    evaluations = (record.evaluation for record in records)
    numbers = (
        _numbers(evaluation.metadata)
        for evaluation in evaluations
        if isinstance(evaluation, dg.AssetCheckEvaluation)
    )
    return list(islice(filter(counts, numbers), runs))


def _numbers(metadata: Mapping[str, dg.MetadataValue]) -> dict[str, float]:
    return {
        name: float(entry.value)
        for name, entry in metadata.items()
        if isinstance(entry, dg.IntMetadataValue | dg.FloatMetadataValue)
        and entry.value is not None
    }
