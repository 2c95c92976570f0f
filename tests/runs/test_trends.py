"""Checks compare a run with the last ones, through Dagster's own instance."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from embedding_assets.runs.history import latest_check_numbers
from embedding_assets.runs.trends import trend
from tests.support.fakes import POISON, CountingEmbedder
from tests.support.instance import instance_in_memory
from tests.support.pipeline import ASSETS, Pipeline, write_jsonl

ASSET = dg.AssetKey(["corpus", "embeddings"])


def record(instance: dg.DagsterInstance, check: str, numbers: Mapping[str, Any]) -> None:
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(
            asset_key=ASSET, check_name=check, passed=True, metadata=dict(numbers)
        )
    )


def speed(chunks_per_second: float, seconds: float = 60.0) -> dict[str, float]:
    return {"chunks_per_second": chunks_per_second, "embedded": seconds * chunks_per_second}


def hits(rate: float) -> dict[str, float]:
    return {"cache_hit_rate": rate, "cache_hits": 1000 * rate, "cache_misses": 1000 * (1 - rate)}


def errors(rate: float, texts: int = 1000) -> dict[str, float]:
    return {"error_rate": rate, "texts": texts}


def compare(check: str, last: list[dict[str, float]], now: dict[str, float], allowed: float) -> Any:
    with instance_in_memory() as instance:
        for numbers in last:
            record(instance, check, numbers)
        return trend(instance, dg.AssetCheckKey(ASSET, check), now, allowed=allowed)


@pytest.mark.parametrize(
    ("check", "last", "bad", "fair"),
    [
        ("throughput", [speed(n) for n in (90, 100, 110)], speed(49), speed(51)),
        ("cache_hit_rate", [hits(r) for r in (0.8, 0.9, 0.95)], hits(0.3), hits(0.5)),
        ("error_rate", [errors(r) for r in (0.1, 0.1, 0.2)], errors(0.7), errors(0.5)),
    ],
)
def test_much_worse_than_the_last_runs_is_noticed_and_a_little_worse_is_not(
    check: str, last: list[dict[str, float]], bad: dict[str, float], fair: dict[str, float]
) -> None:
    assert compare(check, last, bad, 0.5).worse
    assert not compare(check, last, fair, 0.5).worse
    assert not compare(check, last, last[0], 0.5).worse


def test_better_is_never_worse() -> None:
    assert not compare("throughput", [speed(100)] * 5, speed(1000), 0.5).worse
    assert not compare("cache_hit_rate", [hits(0.0)] * 5, hits(1.0), 0.5).worse
    assert not compare("error_rate", [errors(0.9)] * 5, errors(0.0), 0.5).worse


def test_the_change_is_told_against_the_median() -> None:
    found = compare("throughput", [speed(n) for n in (80, 100, 400)], speed(25), 0.5)
    assert found.metadata() == {"runs_compared": 3, "median_of_last_runs": 100, "change": -0.75}
    usual = "the median of the last 3 runs is 100"
    assert found.told("{:.0f}".format) == f" That is much worse than usual: {usual}."


def test_runs_over_many_partitions_do_not_hide_each_other(tmp_path: Path) -> None:
    days = 50
    records = [
        {"id": str(day), "created": f"2026-01-01T0{day}:00:00", "text": f"text {day}"}
        for day in range(3)
    ]
    source = write_jsonl(tmp_path / "source.jsonl", records)
    pipeline = Pipeline(
        tmp_path,
        str(source),
        settings={
            "source": {"fields": {"timestamp": "created"}},
            "partitions": {"by": "day", "start": "2026-01-01"},
        },
    )
    assert pipeline.partitions is not None
    keys = pipeline.partitions.get_partition_keys()
    for run in range(3):
        pipeline.run(keys[0], keys[days - 1], assets=ASSETS if run == 0 else ["embeddings"])
    check = dg.AssetCheckKey(ASSET, "cache_hit_rate")
    found = latest_check_numbers(pipeline._instance, check, lambda _: True, runs=3)
    assert [run["cache_hit_rate"] for run in found] == [1, 1, 0]


def test_with_too_little_history_nothing_is_claimed() -> None:
    found = compare("throughput", [speed(100)] * 2, speed(1), 0.5)
    assert not found.worse
    assert found.metadata() == {"runs_compared": 2}
    assert compare("throughput", [], speed(1), 0.5).metadata() == {"runs_compared": 0}


def test_runs_that_embedded_nothing_or_next_to_nothing_do_not_count_for_throughput() -> None:
    idle = {"chunks_per_second": 0.0, "embedded": 0}
    starting_up = speed(5, seconds=0.4)
    found = compare("throughput", [speed(100), idle, starting_up] * 3 + [idle] * 5, speed(20), 0.5)
    assert (found.runs, found.median, found.worse) == (3, 100, True)
    for no_measurement in (idle, starting_up):
        assert compare("throughput", [speed(100)] * 5, no_measurement, 0.5).runs == 0


def test_runs_that_looked_up_or_tried_nothing_do_not_count() -> None:
    empty = {"cache_hit_rate": 1.0, "cache_hits": 0, "cache_misses": 0}
    assert compare("cache_hit_rate", [empty] * 5, hits(0.0), 0.5).runs == 0
    assert compare("error_rate", [errors(0.0, texts=0)] * 5, errors(1.0), 0.5).runs == 0


def test_alternation_of_new_and_old_documents_is_no_alarm() -> None:
    assert not compare("cache_hit_rate", [hits(1.0)] * 6 + [hits(0.0)], hits(0.0), 0.5).worse


def test_only_the_last_runs_count_and_they_are_few_to_read() -> None:
    found = compare("throughput", [speed(1000)] * 60 + [speed(100)] * 10, speed(90), 0.5)
    assert (found.runs, found.median, found.worse) == (10, 100, False)


def test_results_of_another_shape_in_the_history_are_passed_over() -> None:
    strange = {"chunks_per_second": "fast", "embedded": 7}
    assert compare("throughput", [strange] * 5, speed(10), 0.5).runs == 0  # type: ignore[list-item]


def _documents(folder: Path, first: int, last: int, text: str) -> None:
    write_jsonl(
        folder / "a.jsonl",
        [{"id": f"d{n}", "text": f"Document {n} {text}"} for n in range(first, last)],
    )


def _results(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    return {e.check_name: e for e in result.get_asset_check_evaluations()}


def test_the_checks_of_real_runs_warn_when_the_hit_rate_falls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(
        tmp_path, str(tmp_path / "a.jsonl"), settings={"partitions": {"by": "bucket", "count": 1}}
    )
    _documents(tmp_path, 0, 20, "as it is.")
    first = _results(pipeline.run())["cache_hit_rate"]
    assert first.passed
    assert first.metadata["runs_compared"].value == 0
    # The first run, in which nothing was cached, must have left the window.
    monkeypatch.setattr("embedding_assets.runs.trends._RUNS", 3)
    for _ in range(3):
        assert _results(pipeline.run())["cache_hit_rate"].passed
    _documents(tmp_path, 0, 20, "all rewritten.")
    rewritten = _results(pipeline.run())["cache_hit_rate"]
    assert not rewritten.passed
    assert rewritten.severity is dg.AssetCheckSeverity.WARN
    assert rewritten.metadata["median_of_last_runs"].value == 1.0
    assert rewritten.metadata["change"].value == -1.0


def test_a_rise_of_errors_under_the_limit_warns_and_above_it_is_an_error(tmp_path: Path) -> None:
    pipeline = Pipeline(
        tmp_path,
        str(tmp_path / "a.jsonl"),
        embedder=CountingEmbedder(),
        settings={
            "partitions": {"by": "bucket", "count": 1},
            "checks": {"max_error_rate": 0.9, "max_error_rate_rise": 0.1},
        },
    )
    for start in range(0, 30, 10):
        _documents(tmp_path, start, start + 10, "is fine.")
        assert _results(pipeline.run())["error_rate"].passed
    bad = [{"id": f"bad{n}", "text": f"{n}: {POISON if n < 4 else 'fine'}"} for n in range(8)]
    write_jsonl(tmp_path / "a.jsonl", bad)
    risen = _results(pipeline.run())["error_rate"]
    assert (risen.passed, risen.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert risen.metadata["change"].value == 0.5
    write_jsonl(tmp_path / "a.jsonl", [{"id": f"x{n}", "text": f"{n} {POISON}"} for n in range(3)])
    above = _results(pipeline.run())["error_rate"]
    assert (above.passed, above.severity) == (False, dg.AssetCheckSeverity.ERROR)
