"""What the log says while a step runs."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedding_assets.runs.progress import Progress
from tests.support.instance import instance_in_memory
from tests.support.pipeline import Pipeline, write_jsonl


class Clock:
    """Time that a test lets pass."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    stand_in = SimpleNamespace(monotonic=clock.monotonic)
    monkeypatch.setattr("embedding_assets.runs.progress.time", stand_in)
    return clock


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


LOG = logging.getLogger("progress")


def test_many_items_make_a_line_every_five_seconds(clock: Clock, lines: Any) -> None:
    progress = Progress(LOG, "chunks embedded", 10_000)
    for _ in range(1_000):
        clock.now += 0.0101
        progress.advance()
    assert len(lines()) == 2
    assert lines()[0] == "496 of 10,000 chunks embedded (5%), 99/s, 96 s left"


def test_what_became_of_the_items_and_the_hit_rate_are_told(clock: Clock, lines: Any) -> None:
    progress = Progress(LOG, "chunks", 200)
    progress.advance(60, cached=60)
    progress.advance(30, embedded=30)
    clock.now = 5
    progress.advance(10, embedded=9, errors=1)
    assert lines() == [
        "100 of 200 chunks (50%), 20/s, 5 s left: 60 cached, 39 embedded, 1 errors, hit rate 60%"
    ]


def test_time_left_over_partitions_whose_sizes_are_not_known(clock: Clock, lines: Any) -> None:
    progress = Progress(LOG, "documents", partitions=4)
    progress.begin(100)
    progress.advance(100)
    progress.begin(1_000)
    clock.now = 6
    progress.advance(500, split=500)
    assert lines() == ["600 documents (partition 2 of 4, 38%), 100/s, 10 s left: 500 split"]


def test_the_rate_is_that_of_the_last_half_minute(clock: Clock, lines: Any) -> None:
    progress = Progress(LOG, "chunks")
    progress.advance(1_000_000)
    for _ in range(8):
        clock.now += 5
        progress.advance(50)
    assert lines()[0] == "1,000,050 chunks, 200,010/s"
    assert lines()[-1].endswith(", 10/s")


def test_nothing_done_yet_is_no_division_by_zero(clock: Clock, lines: Any) -> None:
    for progress in (
        Progress(LOG, "chunks", 10),
        Progress(LOG, "chunks", 0),
        Progress(LOG, "chunks", partitions=3),
    ):
        clock.now += 5
        progress.advance(0, cached=0)
        progress.finish()
    assert [line.partition(",")[0] for line in lines()[:1]] == ["0 of 10 chunks"]


def test_the_last_line_tells_everything(clock: Clock, lines: Any) -> None:
    progress = Progress(LOG, "documents written", partitions=2)
    progress.begin()
    clock.now = 2
    progress.advance(10, added=7, deleted=0)
    progress.finish()
    assert lines() == ["10 documents written in 2.0 s, 5/s: 7 added, 0 deleted"]


def test_a_run_tells_added_changed_unchanged_deleted_and_errors_in_few_lines(
    tmp_path: Path,
) -> None:
    pipeline = Pipeline(
        tmp_path, str(tmp_path / "a.jsonl"), settings={"partitions": {"by": "bucket", "count": 2}}
    )
    records = [{"id": f"d{n}", "text": f"Number {n}."} for n in range(500)]
    write_jsonl(tmp_path / "a.jsonl", records)
    pipeline.run()
    records[0]["text"] = "Changed."
    write_jsonl(tmp_path / "a.jsonl", [*records[:-2], {"id": "new", "text": "New."}, {"id": "bad"}])
    with instance_in_memory() as instance:
        result = pipeline.run(instance=instance)
        told = [
            entry.user_message
            for entry in instance.all_logs(result.run_id)
            if entry.level == logging.INFO and not entry.is_dagster_event
        ]
    (documents,) = [line for line in told if "documents written" in line]
    assert documents.endswith(": 1 added, 1 changed, 497 unchanged, 2 deleted, 1 errors")
    (split,) = [line for line in told if "split" in line]
    assert split.endswith(": 497 unchanged, 2 split")
    assert len(told) < 6
