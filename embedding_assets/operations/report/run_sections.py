"""How the runs of a collection went, and what they refused."""

import math
from collections.abc import Sequence
from datetime import datetime, timezone

from embedding_assets.artifacts.quarantine import (
    QuarantineReason,
    quarantine_files,
    quarantine_reasons,
    read_quarantine,
)
from embedding_assets.collection.settings import CheckSettings
from embedding_assets.operations.report.page import Section, Table
from embedding_assets.operations.report.plots import Panel, history_plot
from embedding_assets.runs.history import PartitionNumbers, RunNumbers, by_run, total
from resources.artifact_stores.base import ArtifactStore

_TOP = 10
_POINTS = 200
_LAST_RUNS = 5
_QUARANTINE_FILES = 2_000


def runs_section(history: Sequence[PartitionNumbers], checks: CheckSettings) -> Section:
    """The numbers of the last runs, plotted over time where there are several."""
    if not history:
        return Section("Runs", "No materialisation of `embeddings` is recorded yet.")
    points = by_run(history)[-_POINTS:]
    picture = None
    if len(points) > 1:
        picture = history_plot([point.time for point in points], history_panels(points, checks))
    about = "Times are in UTC. A long run is several points."
    return Section("Runs", about, picture, table=_last(history))


def _last(history: Sequence[PartitionNumbers]) -> Table:
    runs: dict[str, list[PartitionNumbers]] = {}
    for entry in history:
        runs.setdefault(entry.run_id, []).append(entry)
    rows = []
    for entries in list(runs.values())[:_LAST_RUNS]:
        run = total(entries)
        rows.append(
            (
                f"{datetime.fromtimestamp(run.time, timezone.utc):%Y-%m-%d %H:%M}",
                f"{run.partitions:,}",
                f"{run.sums.get('chunks', 0):,.0f}",
                f"{run.sums.get('embedded', 0):,.0f}",
                _or_dash(run.ratio("embedded", "seconds_embedding"), ",.1f"),
                _or_dash(run.ratio("cache_hits", "distinct_chunks"), ".1%"),
                f"{run.sums.get('errors', 0):,.0f}",
                run.run_id[:8],
            )
        )
    columns = (
        "last runs", "partitions", "chunks", "embedded", "chunks/s", "cache hits", "errors", "run",
    )  # fmt: skip
    return Table(columns, rows, numbers=frozenset(range(1, 7)))


def _or_dash(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def history_panels(runs: Sequence[RunNumbers], checks: CheckSettings) -> list[Panel]:
    """What is shown of runs, with the thresholds of the checks."""
    panels = [
        Panel(
            "Throughput [chunks/s]",
            [run.ratio("embedded", "seconds_embedding") for run in runs],
            checks.min_chunks_per_second or None,
            "warns",
        ),
        Panel(
            "Cache hit rate [%]",
            [100 * run.ratio("cache_hits", "distinct_chunks") for run in runs],
            100 * checks.min_cache_hit_rate or None,
            "warns",
            top=100,
        ),
        Panel(
            "Error rate [%]",
            [100 * run.ratio("errors", "cache_misses") for run in runs],
            100 * checks.max_error_rate,
            "fails",
            above=True,
        ),
        Panel("Tokens embedded", [run.sums.get("tokens", 0.0) for run in runs], sum=True),
    ]
    if any(run.sums.get("dollars") for run in runs):
        panels.append(Panel("Cost [$]", [run.sums.get("dollars", 0.0) for run in runs], sum=True))
    return panels


def slowest_section(history: Sequence[PartitionNumbers]) -> Section:
    newest: dict[str, PartitionNumbers] = {}
    for entry in history:
        newest.setdefault(entry.partition, entry)
    slowest = sorted(newest.values(), key=_seconds, reverse=True)
    return Section(
        "Slowest partitions",
        table=Table(
            ("partition", "seconds in embeddings", "chunks", "embedded", "run"),
            [
                (
                    entry.partition,
                    f"{_seconds(entry):,.1f}",
                    f"{entry.numbers.get('chunks', 0):,.0f}",
                    f"{entry.numbers.get('embedded', 0):,.0f}",
                    entry.run_id[:8],
                )
                for entry in slowest[:_TOP]
            ],
            numbers=frozenset((1, 2, 3)),
        ),
    )


def _seconds(entry: PartitionNumbers) -> float:
    return entry.numbers.get("seconds", entry.numbers.get("seconds_embedding", 0.0))


def refused(artifacts: ArtifactStore, collection: str) -> tuple[list[QuarantineReason], int]:
    """What is in quarantine now, by reason, and the files that were too many to read."""
    files = quarantine_files(artifacts, collection)
    entries = read_quarantine(artifacts, files[:_QUARANTINE_FILES])
    return quarantine_reasons(entries), len(files[_QUARANTINE_FILES:])


def refused_section(reasons: Sequence[QuarantineReason], unread: int) -> Section:
    if not reasons:
        return Section("Refused", "Nothing is in quarantine.")
    return Section(
        "Refused",
        f"{unread:,} more files of the quarantine were not read." if unread else "",
        table=Table(
            ("reason", "records", "such as"),
            [(reason.reason, f"{reason.records:,}", reason.example) for reason in reasons[:_TOP]],
            numbers=frozenset((1,)),
        ),
    )
