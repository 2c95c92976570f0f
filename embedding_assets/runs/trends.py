"""Trends: a run's number against those of the last runs, as one more reason for a check to warn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import dagster as dg

from embedding_assets.runs.history import latest_check_numbers

_RUNS = 10
_RUNS_NEEDED = 3
_SECONDS_OF_EMBEDDING = 1.0
"""The throughput of a run that embedded for less than this is that of starting up."""


@dataclass(frozen=True)
class Trend:
    """How a number compares with the last runs.

    Attributes:
        runs: how many runs it was compared with.
        median: theirs; None if there are too few.
        change: the number minus the median; of a throughput, divided by the median.
        worse: worse than the median by more than is allowed, and than every one of those runs.
            The second keeps quiet where good and bad runs alternate, such as runs over new
            documents (nothing cached) and over old ones (everything cached).
    """

    runs: int = 0
    median: float | None = None
    change: float | None = None
    worse: bool = False

    def metadata(self) -> dict[str, Any]:
        numbers: dict[str, Any] = {"runs_compared": self.runs}
        if self.median is not None:
            numbers |= {"median_of_last_runs": self.median, "change": self.change}
        return numbers

    def told(self, form: Callable[[float], str]) -> str:
        """A sentence, with a space before it; "" if there is nothing to compare with.

        Args:
            form: writes such a number for people.
        """
        if self.median is None:
            return ""
        usual = f"the median of the last {self.runs} runs is {form(self.median)}"
        return (
            f" That is much worse than usual: {usual}." if self.worse else f" {usual.capitalize()}."
        )


@dataclass(frozen=True)
class _Rule:
    """How a run is compared with the last ones by one of its numbers."""

    number: str
    counts: Callable[[Mapping[str, float]], bool]
    """Whether a run with these numbers says anything at all."""
    good_is_high: bool
    relative: bool = False


_RULES = {
    "throughput": _Rule(
        "chunks_per_second",
        lambda run: (
            run.get("embedded", 0) > _SECONDS_OF_EMBEDDING * run.get("chunks_per_second", 0) > 0
        ),
        good_is_high=True,
        relative=True,
    ),
    "cache_hit_rate": _Rule(
        "cache_hit_rate",
        lambda run: run.get("cache_hits", 0) + run.get("cache_misses", 0) > 0,
        good_is_high=True,
    ),
    "error_rate": _Rule("error_rate", lambda run: run.get("texts", 0) > 0, good_is_high=False),
}


def last_throughputs(instance: dg.DagsterInstance, embeddings: dg.AssetKey) -> list[float]:
    """Tokens a second of the last runs that embedded for long enough to tell, newest first."""
    check = dg.AssetCheckKey(embeddings, "throughput")
    runs = latest_check_numbers(instance, check, _RULES["throughput"].counts, runs=_RUNS)
    return [run["tokens_per_second"] for run in runs]


def trend(
    instance: dg.DagsterInstance,
    check: dg.AssetCheckKey,
    numbers: Mapping[str, Any],
    *,
    allowed: float,
) -> Trend:
    """Compares a run with those that earlier runs recorded with the same check.

    Args:
        instance: of the runs.
        check: `throughput`, `cache_hit_rate` or `error_rate` of an asset.
        numbers: the metadata of this run's result.
        allowed: how much worse than the median it may be, as in `Trend.change`, positive.
    """
    rule = _RULES[check.name]
    if not rule.counts(numbers):
        return Trend()
    runs = latest_check_numbers(instance, check, rule.counts, runs=_RUNS)
    if len(runs) < _RUNS_NEEDED:
        return Trend(len(runs))
    last = [run[rule.number] for run in runs]
    usual, now = median(last), numbers[rule.number]
    change = (now - usual) / (usual if rule.relative else 1)
    if rule.good_is_high:
        worse = change < -allowed and now < min(last)
    else:
        worse = change > allowed and now > max(last)
    return Trend(len(last), usual, change, worse)
