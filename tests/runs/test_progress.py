"""What the log says while a step runs."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedding_assets.runs import progress as progress_module
from embedding_assets.runs.progress import Progress, newest_progress, progress_line
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
    assert [line.partition(":")[0] for line in lines()[:1]] == ["0 of 10 chunks"]


def test_the_last_line_tells_everything(clock: Clock, lines: Any) -> None:
    progress = Progress(LOG, "documents written", partitions=2)
    progress.begin()
    clock.now = 2
    progress.advance(10, added=7, deleted=0)
    progress.finish()
    assert lines() == ["10 documents written in 2.0 s, 5/s: 7 added, 0 deleted"]


def test_a_line_comes_by_time_whatever_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "_PROGRESS_SECONDS", 0.001)
    seen = threading.Event()

    class Hears(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            if sum("; waiting for the model for" in line for line in said) == 3:
                seen.set()

    said: list[str] = []
    log = logging.Logger("hears", logging.INFO)
    log.addHandler(Hears())
    with Progress(log, "chunks", 300) as progress:
        progress.advance(12)
        with progress.doing("waiting for the model"):
            assert seen.wait(timeout=10)
    assert said[-1].startswith("12 of 300 chunks (4%)")
    lines_then = len(said)
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]
    assert len(said) == lines_then


def test_what_is_waited_for_is_told_and_does_not_count_as_slowness(clock: Clock) -> None:
    progress = Progress(LOG, "chunks", 300)
    assert newest_progress() is progress, "for whoever draws a bar"
    with progress.doing("starting 'a-model'"):
        clock.now = 40
        told = progress_line(progress.reached())
        assert told == "0 of 300 chunks; starting 'a-model' for 40 s"
    clock.now = 50
    progress.advance(3, embedded=3)
    told = progress_line(progress.reached())
    assert told == "3 of 300 chunks (1%), 0.3/s, 990 s left: 3 embedded"
    assert progress_line(progress.reached(), details=False) == told.partition(":")[0]
    with progress.doing("waiting for 'a-model'"):
        assert progress_line(progress.reached()) == told, "nothing is late yet"
        clock.now = 57
        assert progress_line(progress.reached()).endswith("; waiting for 'a-model' for 7 s")
    unknown = Progress(LOG, "records read")
    with unknown.doing("reading the source"):
        clock.now = 60
        assert progress_line(unknown.reached()) == "reading the source for 3 s"
        unknown.advance(10)
        unknown.reach(0.25)
        assert progress_line(unknown.reached()) == "10 records read (25%), 3.3/s, 9 s left"


def test_every_stage_tells_from_its_beginning_what_it_is_busy_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def beats(progress: Progress) -> None:
        told.append(progress_line(progress.reached()))
        progress._over.wait()

    def doing(progress: Progress, what: str) -> Any:
        assert progress._thread is not None, "else nothing would be told"
        told.append(what)
        return busy(progress, what)

    told: list[str] = []
    busy = Progress.doing
    monkeypatch.setattr(Progress, "_beat", beats)
    monkeypatch.setattr(Progress, "doing", doing)
    source = write_jsonl(tmp_path / "a.jsonl", [{"id": "a", "text": "A text."}])
    settings = {"partitions": {"by": "bucket", "count": 2}}
    Pipeline(tmp_path, str(source), settings=settings).run()
    expected = [
        "looking at the source's files", "reading the source",
        "looking for duplicates and deletions",
        "loading the tokenizer", "asking the cache",
        "starting 'fake'", "waiting for 'fake'",
        "finding the rows that are there", "writing rows",
        "maintaining the search index, removing old versions",
        "reading the rows back", "running the checks",
    ]  # fmt: skip
    assert [what for what in told if what in expected] == expected


def test_how_much_of_a_large_file_is_left_is_known_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[float] = []
    monkeypatch.setattr(Progress, "reach", lambda _, share: reached.append(share))
    records = [{"id": f"d{n}", "text": f"Number {n} says {n * n * 7919}."} for n in range(20_000)]
    write_jsonl(tmp_path / "source" / "a.jsonl", records)
    write_jsonl(tmp_path / "source" / "b.jsonl", records[:10_000])
    pipeline = Pipeline(tmp_path, str(tmp_path / "source"))
    pipeline.run("bucket_00", assets=["documents"])
    assert reached == sorted(reached)
    assert 0.3 < reached[len(reached) // 2] < 0.7
    assert 0.9 < reached[-1] <= 1


def test_a_run_tells_added_changed_unchanged_deleted_and_errors_in_few_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "_PROGRESS_SECONDS", 3_600)  # the last lines alone
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
    (documents,) = [line for line in told if " documents written in " in line]
    assert documents.endswith(": 1 added, 1 changed, 497 unchanged, 2 deleted, 1 errors")
    (split,) = [line for line in told if "split" in line]
    assert split.endswith(": 497 unchanged, 2 split")
    assert len(told) < 6
