"""Runs the assets of one collection in this process, through Dagster, and tells what happened."""

import logging
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run_iterator
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)
from dagster._utils.interrupts import capture_interrupts, check_captured_interrupt
from dagster._utils.warnings import suppress_dagster_warnings

from embedding_assets.collection.collection import CollectionAssets
from embedding_assets.operations.run_failure import RunFailure, run_failure
from resources.dagster_instance.executor import one_process_executor

Status = Literal["succeeded", "failed", "interrupted"]

_SUMMED = {
    "documents": (
        "documents", "added", "changed", "unchanged", "deleted", "quarantined",
        "deletions_withheld",
    ),
    "deduplicated_chunks": ("chunks", "distinct_chunks", "tokens_to_embed"),
    "embeddings": (
        "chunks", "distinct_chunks", "cache_hits", "cache_misses", "embedded", "errors", "tokens",
        "tokens_truncated", "tokens_unknown", "left_to_fallback", "fallback_vectors",
        "fallback_errors", "cache_entries_rejected", "dollars",
    ),
    "vector_index": (
        "rows", "rows_written", "rows_removed", "documents_withheld", "fallback_rows",
    ),
}  # fmt: skip
"""The numbers of partitions of which the sum says something."""


class BuildWatcher:
    """Is told of a build while it goes on; this one does nothing."""

    def begin(self, run_id: str, partitions: Sequence[str]) -> None:
        """A run over these partitions begins."""

    def event(self, event: dg.DagsterEvent) -> None:
        """What Dagster itself tells of the run."""

    def message(self, level: int, asset: str, text: str) -> None:
        """A line of the run's log, of INFO and above; `asset` is "" outside of all assets.

        It may come from any thread.
        """


@dataclass(frozen=True)
class CheckOutcome:
    """What became of a check.

    Attributes:
        asset: without the collection's name.
        check: its name.
        passed: whether all was well.
        severity: how bad it is if not: "WARN" or "ERROR".
        description: a sentence.
        numbers: that it judged, and what else it tells in a word.
    """

    asset: str
    check: str
    passed: bool
    severity: str
    description: str
    numbers: Mapping[str, Any]


@dataclass
class Build:
    """What one or more runs over the partitions of a collection did.

    Attributes:
        collection: its name.
        partitions: those that were asked for.
        status: whether the runs came to their end.
        failure: why the last run did not; None: it did, or it was interrupted.
        runs: their ids in Dagster.
        started: when the first began, in UTC.
        seconds: how long they took together.
        numbers: by asset, summed over the partitions.
        seconds_by_asset: how long each took.
        checks: the last outcome of each, or the last that was bad.
    """

    collection: str
    partitions: list[str]
    status: Status = "succeeded"
    failure: RunFailure | None = None
    runs: list[str] = field(default_factory=list)
    started: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    seconds: float = 0.0
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds_by_asset: dict[str, float] = field(default_factory=dict)
    checks: list[CheckOutcome] = field(default_factory=list)

    def failed_checks(self, severity: str) -> list[CheckOutcome]:
        """Those that did not pass, of a severity: "WARN" or "ERROR"."""
        return [one for one in self.checks if not one.passed and one.severity == severity]


def build(
    collection: CollectionAssets,
    assets: Sequence[Any],
    resources: Mapping[str, Any],
    runs: Iterable[Sequence[str]],
    instance: dg.DagsterInstance,
    watcher: BuildWatcher | None = None,
) -> Build:
    """Runs the four assets of a collection, as `dagster asset materialize` would.

    Everything of a run is as Dagster's own command line does it: executor, pools, signals, events.
    Only the collection's own assets are loaded.

    Args:
        collection: whose assets they are.
        assets: its assets, and what they depend on.
        resources: by resource key.
        runs: partitions that follow each other, of which each run takes some.
        instance: where the runs are recorded.
        watcher: is told how it goes; by default Dagster logs to stderr.
    """
    parts = [list(partitions) for partitions in runs]
    result = Build(collection.name, [partition for part in parts for partition in part])
    job = _job(collection, assets, resources, watcher)
    began = time.monotonic()
    # Dagster itself would be interrupted at any place of what lies between the steps.
    with capture_interrupts():
        for partitions in parts:
            _Run(collection, job, partitions, instance, watcher or BuildWatcher()).add_to(result)
            if result.status != "succeeded":
                break
    result.seconds = time.monotonic() - began
    return result


@suppress_dagster_warnings
def _job(
    collection: CollectionAssets,
    assets: Sequence[Any],
    resources: Mapping[str, Any],
    watcher: BuildWatcher | None,
) -> dg.JobDefinition:
    definitions = dg.Definitions(
        assets=assets,
        resources=resources,
        executor=one_process_executor,
        loggers={"console": _told_to(watcher, collection)} if watcher else None,
    )
    job = definitions.resolve_implicit_global_asset_job_def()
    return job.get_subset(asset_selection=_keys(collection))


def _keys(collection: CollectionAssets) -> frozenset[dg.AssetKey]:
    return frozenset(collection.asset_key(asset) for asset in collection.ASSETS)


def _told_to(watcher: BuildWatcher, collection: CollectionAssets) -> dg.LoggerDefinition:
    """The console of a run, in whose place somebody is told."""

    class Tells(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told = record.dagster_meta  # pyright: ignore[reportAttributeAccessIssue]
            if told["dagster_event"] is None:
                asset = (told["step_key"] or "").removeprefix(f"{collection.name}__")
                watcher.message(record.levelno, asset, told["orig_message"])

    @dg.logger(dg.Field(dg.Permissive()))
    def console(_: dg.InitLoggerContext) -> logging.Logger:
        logger = logging.Logger("build", logging.INFO)
        logger.addHandler(Tells())
        return logger

    return console


@dataclass
class _Run:
    """One run over some partitions."""

    collection: CollectionAssets
    job: dg.JobDefinition
    partitions: Sequence[str]
    instance: dg.DagsterInstance
    watcher: BuildWatcher

    def add_to(self, result: Build) -> None:
        """Runs, and adds to what was done so far."""
        numbers: dict[tuple[str, str | None], Mapping[str, Any]] = {}
        failures: list[dg.DagsterEvent] = []
        interrupted = False
        with closing(self._events(result)) as events:
            for event in events:
                self.watcher.event(event)
                interrupted = interrupted or check_captured_interrupt()
                if event.is_step_materialization:
                    made = event.step_materialization_data.materialization
                    # A slow partition is recorded at once, and again at the end of the step.
                    numbers[made.asset_key.path[-1], made.partition] = made.metadata
                elif event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
                    _add_check(result, self._outcome(event))
                elif event.is_step_success and event.step_key:
                    asset = event.step_key.removeprefix(f"{self.collection.name}__")
                    seconds = event.step_success_data.duration_ms / 1000
                    result.seconds_by_asset[asset] = (
                        result.seconds_by_asset.get(asset, 0.0) + seconds
                    )
                elif event.is_step_failure or event.is_failure:
                    failures.append(event)
        for (asset, _), metadata in numbers.items():
            _add_numbers(result.numbers.setdefault(asset, {}), asset, metadata)
        if failures:
            result.failure = run_failure(failures, self.collection.name)
            interrupted = interrupted or result.failure.interrupted
            result.status = "failed"
        if interrupted:
            result.status, result.failure = "interrupted", None

    def _events(self, result: Build) -> Generator[dg.DagsterEvent, None, None]:
        first, last = self.partitions[0], self.partitions[-1]
        run = self.instance.create_run_for_job(
            self.job,
            tags=self.job.get_tags_for_partition_key(first, _keys(self.collection))
            if first == last
            else {ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last},
            asset_selection=_keys(self.collection),
        )
        result.runs.append(run.run_id)
        self.watcher.begin(run.run_id, self.partitions)
        if self.job.loggers:  # of this process alone: who runs it again in the UI has another
            run = run._replace(run_config={"loggers": {"console": {}}})
        yield from execute_run_iterator(InMemoryJob(self.job), run, self.instance)

    def _outcome(self, event: dg.DagsterEvent) -> CheckOutcome:
        found = event.asset_check_evaluation_data
        spec = self.job.asset_layer.asset_graph.get(found.asset_check_key)
        return CheckOutcome(
            found.asset_key.path[-1],
            found.check_name,
            found.passed,
            found.severity.value,
            found.description or spec.description or "",
            {name: one.value for name, one in found.metadata.items() if _is_plain(one.value)},
        )


def _add_check(result: Build, outcome: CheckOutcome) -> None:
    """The last outcome counts, except that none hides one that was worse."""
    for place, known in enumerate(result.checks):
        if (known.asset, known.check) == (outcome.asset, outcome.check):
            if known.passed or not outcome.passed:
                result.checks[place] = outcome
            return
    result.checks.append(outcome)


def _add_numbers(sums: dict[str, float], asset: str, metadata: Mapping[str, Any]) -> None:
    for name in _SUMMED.get(asset, ()):
        if name in metadata:
            sums[name] = sums.get(name, 0) + metadata[name].value


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)
