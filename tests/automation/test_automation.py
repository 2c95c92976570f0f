"""Schedules and sensors, on real files and with Dagster's own instance and runs."""

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    SensorInstigatorData,
)

from embedding_assets.automation.failure_sensor import failure_sensor
from embedding_assets.component import collection_definitions
from embedding_assets.documents.deletions import DeletionGuard
from embedding_assets.documents.spool import Spool
from resources.notifier import LogNotifier, WebhookNotifier
from tests.support.fakes import POISON, CountingEmbedder
from tests.support.instance import instance_in_memory, shipped_instance
from tests.support.pipeline import ASSETS, Pipeline, write_jsonl

DAILY = {
    "source": {"fields": {"timestamp": "created"}},
    "partitions": {"by": "day", "start": "2024-01-01"},
}


class Automated:
    """A collection whose sensors are evaluated, and whose requests are run, as the daemon does."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance, **settings: Any) -> None:
        self.archive = folder / "archive"
        self.archive.mkdir(parents=True, exist_ok=True)
        source = settings.pop("path", str(self.archive))
        self.instance = instance
        self.pipeline = Pipeline(folder, source, settings={**DAILY, **settings})
        own = collection_definitions(self.pipeline.collection)
        self.definitions = dg.Definitions(
            assets=own.assets,
            jobs=own.jobs,
            schedules=own.schedules,
            sensors=own.sensors,
            resources=self.pipeline.resources,
            executor=dg.in_process_executor,
        )
        self.repository = self.definitions.get_repository_def()
        self.cursors: dict[str, str | None] = {}
        self.run_keys: set[str] = set()
        self.assets: Sequence[str] = ASSETS

    def write(self, name: str, *documents: Mapping[str, Any]) -> Path:
        return write_jsonl(self.archive / name, documents)

    def look(self, sensor: str, *, record: bool = True) -> Any:
        """One tick; with `record=False` its outcome is lost, as when the daemon is killed."""
        name = f"corpus_{sensor}"
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursors.get(name),
            repository_def=self.repository,
            resources=self.pipeline.resources,
        ) as context:
            data = self.repository.get_sensor_def(name).evaluate_tick(context)
        if record and data.cursor:
            self.cursors[name] = data.cursor
        return data

    def requested(self, sensor: str) -> list[str]:
        """The partitions, or ranges of them, that a tick requests."""
        data = self.look(sensor)
        assert data.run_requests or data.skip_message, "a tick without runs says why"
        return [_range(request) for request in data.run_requests]

    def execute(self, sensor: str, *, succeed: bool = True) -> list[str]:
        """A tick and its runs; a run key that was used before starts nothing, as in Dagster."""
        data = self.look(sensor)
        ranges = []
        for request in data.run_requests:
            if request.run_key in self.run_keys:
                continue
            self.run_keys.add(request.run_key)
            first, _, last = _range(request).partition("...")
            ranges.append(_range(request))
            result = self.pipeline.run(
                first,
                last or first,
                assets=self.assets,
                instance=self.instance,
                raise_on_error=succeed,
            )
            assert result.success is succeed
        return ranges

    def titles(self) -> dict[str, str]:
        return {row["document_id"]: row["title"] for row in self.pipeline.rows()}


def _range(request: dg.RunRequest) -> str:
    if request.partition_key:
        return request.partition_key
    tags = request.tags
    return (
        f"{tags['dagster/asset_partition_range_start']}"
        f"...{tags['dagster/asset_partition_range_end']}"
    )


def document(name: str, day: int, title: str = "first", month: int = 1) -> dict[str, str]:
    return {
        "id": name,
        "title": title,
        "text": f"The text of document {name}.",
        "created": f"2024-{month:02d}-{day:02d}T12:00:00Z",
    }


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with instance_in_memory() as instance:
        yield instance


@pytest.fixture
def automated(tmp_path: Path, instance: dg.DagsterInstance) -> Automated:
    return Automated(tmp_path, instance)


@pytest.fixture
def documents_only(automated: Automated) -> None:
    """Its runs end with what the source sensor looks at."""
    automated.assets = ["documents"]


def test_new_changed_and_deleted_files_are_requested_once_each_and_exactly(
    automated: Automated,
) -> None:
    automated.write("a.jsonl", document("a", 1), document("b", 2))
    automated.write("c.jsonl", document("c", 20))
    assert automated.execute("source") == ["2024-01-20", "2024-01-01...2024-01-02"]
    assert automated.titles() == {"a": "first", "b": "first", "c": "first"}
    assert automated.execute("source") == []

    automated.write("a.jsonl", document("a", 1), document("b", 2, "second"))
    assert automated.execute("source") == ["2024-01-02"]
    assert automated.titles() == {"a": "first", "b": "second", "c": "first"}

    (automated.archive / "c.jsonl").unlink()
    assert automated.execute("source") == ["2024-01-20"]
    assert automated.titles() == {"a": "first", "b": "second"}
    assert automated.execute("source") == []


def test_at_the_first_start_of_both_sensors_the_source_sensor_alone_requests(
    tmp_path: Path,
) -> None:
    with shipped_instance(tmp_path / "home") as instance:
        automated = Automated(
            tmp_path, instance, automation={"source_sensor": {"max_runs_per_tick": 1}}
        )
        automated.write("a.jsonl", document("a", 1), document("b", 9), document("c", 20))
        location = RegisteredCodeLocationOrigin("here")
        origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "all"), "corpus_source")

        def is_now(status: InstigatorStatus) -> None:
            data = SensorInstigatorData(cursor=automated.cursors.get("corpus_source"))
            instance.update_instigator_state(
                InstigatorState(origin, InstigatorType.SENSOR, status, data)
            )

        on, off = InstigatorStatus.RUNNING, InstigatorStatus.STOPPED
        instance.add_instigator_state(
            InstigatorState(origin, InstigatorType.SENSOR, off, SensorInstigatorData())
        )
        everything = ["2024-01-20", "2024-01-09", "2024-01-01"]
        assert automated.look("reconcile", record=False).run_requests
        is_now(on)
        for partition in everything:
            assert automated.requested("reconcile") == []
            assert "Waits until the source sensor" in automated.look("reconcile").skip_message
            assert automated.execute("source") == [partition]
            is_now(on)
        assert automated.requested("reconcile") == automated.requested("source") == []
        assert "compared" in automated.look("reconcile").skip_message

        automated.write("a.jsonl", document("a", 1, "second"), document("b", 9), document("c", 20))
        assert automated.requested("reconcile") == ["2024-01-01"], "what a lost tick left"
        is_now(off)
        assert automated.look("reconcile").run_requests is not None


def test_a_document_that_gets_another_date_leaves_its_old_partition(automated: Automated) -> None:
    automated.write("a.jsonl", document("a", 1), document("b", 2))
    automated.execute("source")
    automated.write("a.jsonl", document("a", 9), document("b", 2))
    assert automated.execute("source") == ["2024-01-09", "2024-01-01"]
    assert {row["document_id"]: row["partition"] for row in automated.pipeline.rows()} == {
        "a": "2024-01-09",
        "b": "2024-01-02",
    }


def test_what_changes_and_changes_back_is_requested_both_times(automated: Automated) -> None:
    for title in ("first", "second", "first"):
        automated.write("a.jsonl", document("a", 1, title))
        assert automated.execute("source") == ["2024-01-01"]
        assert automated.titles() == {"a": title}


def test_what_changes_back_before_its_run_has_read_it_is_requested_all_the_same(
    automated: Automated, monkeypatch: pytest.MonkeyPatch
) -> None:
    automated.write("a.jsonl", document("a", 1))
    automated.execute("source")
    automated.write("a.jsonl", document("a", 1, "second"))
    assert automated.requested("source") == ["2024-01-01"]
    documents = Spool.documents

    def changes_back(*given: Any) -> Any:
        automated.write("a.jsonl", document("a", 1))
        assert automated.requested("source") == ["2024-01-01"]
        return documents(*given)

    with monkeypatch.context() as patched:
        patched.setattr(Spool, "documents", changes_back)
        automated.pipeline.run("2024-01-01")  # the first of the two runs
    assert automated.titles() == {"a": "second"}
    automated.pipeline.run("2024-01-01")
    assert automated.titles() == {"a": "first"}
    assert automated.requested("source") == []


@pytest.mark.usefixtures("documents_only")
def test_a_tick_that_is_lost_asks_again_for_the_same_runs(automated: Automated) -> None:
    automated.write("a.jsonl", document("a", 1))
    automated.execute("source")
    automated.write("a.jsonl", document("a", 1, "second"))
    lost = automated.look("source", record=False).run_requests
    again = automated.look("source").run_requests
    assert [r.run_key for r in lost] == [r.run_key for r in again] != []
    assert automated.look("source").run_requests == []


def test_a_backfill_before_the_first_tick_leaves_nothing_to_request(automated: Automated) -> None:
    automated.write("a.jsonl", document("a", 1), document("b", 5))
    automated.pipeline.run("2024-01-01", "2024-01-10", instance=automated.instance)
    assert automated.requested("source") == []


@pytest.mark.usefixtures("documents_only")
def test_a_touched_file_with_the_same_documents_requests_nothing(automated: Automated) -> None:
    path = automated.write("a.jsonl", document("a", 1))
    automated.execute("source")
    os.utime(path, (1, 1))
    assert automated.requested("source") == []


@pytest.mark.usefixtures("documents_only")
def test_a_file_replaced_by_one_of_equal_size_and_time_is_noticed(automated: Automated) -> None:
    path = automated.write("a.jsonl", document("a", 1))
    os.utime(path, (0, 0))
    automated.execute("source")
    automated.write("a.jsonl", document("a", 1, "other"))
    os.utime(path, (0, 0))
    assert automated.requested("source") == ["2024-01-01"]


@pytest.mark.usefixtures("documents_only")
def test_of_many_files_one_change_is_one_request(automated: Automated) -> None:
    for number in range(300):
        automated.write(f"{number}.jsonl", document(str(number), 1 + number % 28))
    assert automated.execute("source") == ["2024-01-01...2024-01-28"]
    assert automated.requested("source") == []
    automated.write("123.jsonl", document("123", 1 + 123 % 28, "second"))
    assert automated.requested("source") == [f"2024-01-{1 + 123 % 28:02d}"]


def test_a_tick_requests_a_limited_number_of_runs_and_the_next_goes_on(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    automated = Automated(
        tmp_path, instance, automation={"source_sensor": {"max_runs_per_tick": 2}}
    )
    automated.write("a.jsonl", *(document(str(day), day) for day in (1, 3, 5, 7, 9)))
    assert automated.requested("source") == ["2024-01-09", "2024-01-07"]
    assert automated.requested("source") == ["2024-01-05", "2024-01-03"]
    assert automated.requested("source") == ["2024-01-01"]
    assert automated.requested("source") == []


def test_files_beyond_the_time_of_a_tick_are_looked_into_by_the_next(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    automated = Automated(
        tmp_path, instance, automation={"source_sensor": {"seconds_per_tick": 1e-9}}
    )
    for number in range(3):
        automated.write(f"{number}.jsonl", document(str(number), 1 + 2 * number))
    seen = [automated.requested("source") for _ in range(4)]
    assert seen == [["2024-01-01"], ["2024-01-03"], ["2024-01-05"], []]


def test_a_file_too_long_for_a_tick_touches_every_partition(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    automated = Automated(
        tmp_path,
        instance,
        partitions={"by": "bucket", "count": 4},
        automation={"source_sensor": {"seconds_per_tick": 1e-9}},
    )
    automated.write("a.jsonl", *(document(str(number), 1) for number in range(1_500)))
    assert automated.requested("source") == ["bucket_0...bucket_3"]
    assert automated.requested("source") == []


def test_only_the_partitions_that_read_a_file_are_requested_for_it(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    automated = Automated(tmp_path, instance, path=str(tmp_path / "archive" / "%Y" / "%m-%d.jsonl"))
    # The stray document has the date of a partition whose run does not read this file.
    automated.write("2024/01-03.jsonl", document("a", 3), document("stray", 9))
    assert automated.execute("source") == ["2024-01-03"]
    automated.write("2024/01-03.jsonl", document("a", 3, "second"))
    assert automated.execute("source") == ["2024-01-03"]
    assert automated.titles() == {"a": "second"}


@pytest.mark.usefixtures("documents_only")
def test_a_file_of_which_every_record_is_refused_reaches_the_quarantine(
    automated: Automated,
) -> None:
    automated.write("a.jsonl", document("a", 1))
    automated.execute("source")
    automated.write("bad.jsonl", {"id": "x", "created": "2024-01-02"})
    assert len(automated.execute("source")) == 1
    assert [row["document_id"] for row in automated.pipeline.quarantine()] == ["x"]
    (automated.archive / "bad.jsonl").unlink()
    automated.execute("source")
    assert automated.pipeline.quarantine() == []


@pytest.mark.usefixtures("documents_only")
def test_a_file_of_which_every_document_is_of_no_partition_reaches_the_quarantine(
    automated: Automated,
) -> None:
    automated.write("a.jsonl", document("a", 1))
    automated.execute("source")
    automated.write("old.jsonl", {**document("x", 1), "created": "1999-01-01"})
    assert len(automated.execute("source")) == 1
    assert [row["reason"] for row in automated.pipeline.quarantine()] == ["outside_partitions"]
    (automated.archive / "old.jsonl").unlink()
    automated.execute("source")
    assert automated.pipeline.quarantine() == []


def test_when_a_document_goes_its_refused_duplicate_takes_its_place(automated: Automated) -> None:
    automated.write("old.jsonl", document("a", 1, "older"))
    automated.write("new.jsonl", document("a", 9, "newer"))
    automated.execute("source")
    assert automated.titles() == {"a": "newer"}
    (automated.archive / "new.jsonl").unlink()
    assert automated.execute("source") == ["2024-01-09", "2024-01-01"]
    assert automated.titles() == {"a": "older"}


def test_an_archive_that_is_not_there_deletes_nothing(automated: Automated) -> None:
    path = automated.write("a.jsonl", document("a", 1))
    automated.execute("source")
    path.unlink()
    data = automated.look("source")
    assert data.run_requests == []
    assert "no file is not taken to mean" in (data.skip_message or "")


@pytest.mark.usefixtures("documents_only")
def test_a_file_that_cannot_be_read_is_looked_into_again(automated: Automated) -> None:
    automated.write("a.jsonl", document("a", 1))
    missing = automated.archive / "b.jsonl"
    missing.symlink_to(automated.archive / "nowhere")
    automated.execute("source")
    assert automated.requested("source") == []
    write_jsonl(automated.archive / "nowhere", [document("b", 4)])
    (automated.archive / "nowhere").rename(automated.archive / ".hidden")
    missing.unlink()
    missing.symlink_to(automated.archive / ".hidden")
    assert automated.execute("source") == ["2024-01-04"]


def test_deletions_that_are_withheld_are_requested_once_and_again_when_somebody_agrees(
    automated: Automated,
) -> None:
    kept, lost = document("kept", 20), [document(f"d{i}", 1 + i % 2) for i in range(12)]
    automated.write("a.jsonl", kept)
    automated.write("export.jsonl", *lost)
    assert automated.execute("source") == ["2024-01-20", "2024-01-01...2024-01-02"]

    automated.write("export.jsonl")
    assert automated.execute("source") == ["2024-01-01...2024-01-02"]
    assert len(automated.titles()) == 13
    for sensor in ("source", "reconcile", "source", "reconcile"):
        assert automated.requested(sensor) == []
        said = automated.look(sensor).skip_message
        assert "The deletion of 12 documents of 2024-01-01...2024-01-02 is withheld until" in said
        assert "`embedding-assets accept corpus --partition 2024-01-01...2024-01-02`" in said

    automated.write("a.jsonl", document("kept", 20, "second"))  # another change is another run
    assert automated.execute("source") == ["2024-01-20"]
    assert automated.execute("source") == automated.execute("reconcile") == []

    automated.pipeline.opened.accept_deletions("2024-01-02")
    assert automated.requested("reconcile") == ["2024-01-02"]
    assert automated.execute("source") == ["2024-01-02"]
    assert len(automated.titles()) == 7
    assert automated.requested("source") == automated.requested("reconcile") == []

    automated.write("export.jsonl", *lost)
    assert sorted(automated.execute("source")) == ["2024-01-01...2024-01-02"]
    assert automated.titles() == {"kept": "second", **{d["id"]: "first" for d in lost}}
    assert "withheld" not in automated.look("source").skip_message
    assert automated.requested("reconcile") == []


def test_what_a_killed_run_left_of_deletions_withheld_is_cleared_away(
    automated: Automated, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = [document(f"d{i}", 1) for i in range(12)]
    automated.write("export.jsonl", *lost)
    automated.execute("source")
    automated.write("export.jsonl")
    automated.execute("source")
    automated.write("export.jsonl", *lost)
    with monkeypatch.context() as patch:
        patch.setattr(DeletionGuard, "forget", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        automated.execute("source", succeed=False)
    assert automated.pipeline.opened.withheld() == {"2024-01-01": 12}
    assert automated.execute("reconcile") == ["2024-01-01"]
    assert automated.pipeline.opened.withheld() == {}
    assert automated.requested("reconcile") == []


def test_an_agreement_is_requested_once_though_its_run_has_not_begun(automated: Automated) -> None:
    automated.write("export.jsonl", *(document(f"d{i}", 1) for i in range(12)))
    automated.write("other.jsonl", document("kept", 2))
    automated.execute("source")
    automated.write("export.jsonl")
    automated.execute("source")
    automated.pipeline.opened.accept_deletions("2024-01-01")
    lost = automated.look("source", record=False).run_requests
    assert [_range(request) for request in lost] == ["2024-01-01"]
    assert [request.run_key for request in automated.look("source").run_requests] == [
        request.run_key for request in lost
    ]
    assert automated.requested("source") == []


def test_the_cursor_stays_small_and_two_inventories_are_kept(automated: Automated) -> None:
    for number in range(50):
        automated.write(f"{number}.jsonl", document(str(number), 1 + number % 28))
        if number % 10 == 0:
            automated.requested("source")
    assert len(automated.cursors["corpus_source"] or "") < 300
    kept = automated.pipeline.artifacts.list_keys("corpus/automation/source_sensor/")
    assert len(kept) == 2


def test_a_failed_run_is_requested_again(automated: Automated) -> None:
    automated.write("a.jsonl", document("a", 1))
    automated.pipeline.resources["corpus_embedder"] = CountingEmbedder(fails_always=True)
    assert automated.execute("source", succeed=False) == ["2024-01-01"]
    automated.pipeline.resources["corpus_embedder"] = automated.pipeline.embedder
    assert automated.execute("source") == []
    assert automated.execute("reconcile") == ["2024-01-01"]
    assert automated.titles() == {"a": "first"}
    assert automated.requested("reconcile") == []


def test_changes_that_no_tick_saw_are_found_by_comparison(automated: Automated) -> None:
    automated.write("a.jsonl", document("a", 1), document("b", 2))
    automated.write("c.jsonl", document("c", 20))
    assert automated.execute("reconcile") == ["2024-01-20", "2024-01-01...2024-01-02"]
    assert automated.requested("reconcile") == []
    automated.write("a.jsonl", document("a", 1), document("b", 2, "second"))
    (automated.archive / "c.jsonl").unlink()
    assert automated.execute("reconcile") == ["2024-01-20", "2024-01-02"]
    assert automated.titles() == {"a": "first", "b": "second"}


def test_rows_lost_from_the_store_are_requested(automated: Automated) -> None:
    automated.write("a.jsonl", document("a", 1), document("b", 2))
    automated.execute("source")
    (row,) = [row for row in automated.pipeline.rows() if row["document_id"] == "b"]
    space = automated.pipeline.embedder.space
    table = automated.pipeline.store._open("corpus", space)
    table.delete(f"chunk_id = '{row['chunk_id']}'")
    assert automated.execute("reconcile") == ["2024-01-02"]
    assert automated.titles() == {"a": "first", "b": "first"}


def test_documents_refused_by_the_embedder_are_no_difference(automated: Automated) -> None:
    automated.write("a.jsonl", document("a", 1), {**document("p", 1), "text": POISON})
    automated.execute("source")
    assert automated.requested("reconcile") == []


def test_what_runs_do_not_mend_is_requested_a_few_times_and_then_reported(
    automated: Automated,
) -> None:
    automated.write("a.jsonl", document("a", 1))
    keys = set()
    for _ in range(3):
        (request,) = automated.look("reconcile").run_requests
        keys.add(request.run_key)
    assert len(keys) == 3
    for _ in range(2):
        data = automated.look("reconcile")
        assert data.run_requests == []
        assert "still differ after 3 runs: 2024-01-01" in data.skip_message
    automated.write("a.jsonl", document("a", 1, "second"))
    assert automated.requested("reconcile") == ["2024-01-01"]


def test_attempts_are_counted_though_a_tick_compares_only_some_partitions(
    tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By its name in the package the module is hidden behind the function of that name.
    module = import_module("embedding_assets.automation.reconcile_sensor")
    monkeypatch.setattr(module, "_PARTITIONS_PER_SCAN", 2)
    automated = Automated(
        tmp_path,
        instance,
        partitions={"by": "bucket", "count": 4},
        automation={"reconcile_sensor": {"seconds_per_tick": 1e-9, "max_attempts": 2}},
    )
    automated.write("a.jsonl", *(document(str(number), 1) for number in range(20)))
    ticks = [automated.requested("reconcile") for _ in range(6)]
    halves = [["bucket_0...bucket_1"], ["bucket_2...bucket_3"]]
    assert ticks == [*halves, *halves, [], []]


def test_of_an_id_in_files_of_two_periods_the_later_stays_in_the_index(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    automated = Automated(tmp_path, instance, path=str(tmp_path / "archive" / "%Y" / "%m-%d.jsonl"))
    automated.write("2024/01-01.jsonl", document("a", 1, "older"), document("b", 1))
    automated.write("2024/01-02.jsonl", document("a", 2, "newer"))
    newer = {"a": "newer", "b": "first"}
    for partition in ("2024-01-02", "2024-01-01", "2024-01-02", "2024-01-01"):
        automated.pipeline.run(partition, instance=instance)
        assert automated.titles()["a"] == "newer"
    assert automated.titles() == newer
    assert automated.requested("source") == []
    assert automated.requested("reconcile") == []
    # Without the newer record the older one is missed.
    automated.write("2024/01-02.jsonl", document("c", 2))
    assert automated.execute("source") == ["2024-01-02"]
    assert automated.execute("reconcile") == ["2024-01-01"]
    assert automated.titles() == {"a": "older", "b": "first", "c": "first"}
    assert automated.requested("reconcile") == []


@pytest.mark.parametrize("name", ["corpus_update", "corpus_accept_deletions"])
def test_the_comparison_waits_for_runs_of_the_collection(automated: Automated, name: str) -> None:
    automated.write("a.jsonl", document("a", 1))
    job = automated.definitions.resolve_job_def(name)
    with instance_in_memory() as automated.instance:
        run = automated.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        data = automated.look("reconcile")
        assert data.run_requests == []
        assert f"Waits until run {run.run_id[:8]}" in data.skip_message
        automated.instance.report_run_canceled(run)
        assert automated.requested("reconcile") == ["2024-01-01"]


def test_rows_under_partitions_of_an_older_scheme_move_or_go(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    yearly = Automated(tmp_path, instance, partitions={"by": "year", "start": "2024-01-01"})
    deleted = document("deleted", 3), document("deleted too", 20)
    yearly.write("a.jsonl", document("a", 1), document("b", 2), *deleted)
    yearly.execute("source")
    yearly.write("a.jsonl", document("a", 1), document("b", 2))
    daily = Automated(tmp_path, instance)
    daily.pipeline.run("2024-01-01", "2024-01-03", instance=instance)
    places = {row["document_id"]: row["partition"] for row in daily.pipeline.rows()}
    assert places == {"a": "2024-01-01", "b": "2024-01-02", "deleted too": "2024"}
    assert daily.execute("reconcile") == ["2024-01-20"]
    assert daily.titles() == {"a": "first", "b": "first"}
    assert daily.requested("reconcile") == []


def test_rows_from_before_a_later_start_go(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    automated = Automated(tmp_path, instance)
    automated.write("a.jsonl", document("a", 1), document("b", 2))
    automated.execute("source")
    later = Automated(tmp_path, instance, partitions={"by": "day", "start": "2024-01-02"})
    (last,) = later.execute("reconcile")
    assert later.titles() == {"b": "first"}
    assert last > "2024-01-02"  # any run removes what belongs to no partition
    assert [row["document_id"] for row in later.pipeline.quarantine()] == ["a"]
    assert later.requested("reconcile") == []


def test_until_the_new_partitions_have_run_the_rows_of_the_old_scheme_stay(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    yearly = Automated(tmp_path, instance, partitions={"by": "year", "start": "2024-01-01"})
    yearly.write("a.jsonl", document("a", 1), document("b", 2), document("c", 2, month=2))
    yearly.execute("source")
    monthly = Automated(tmp_path, instance, partitions={"by": "month", "start": "2024-01-01"})
    monthly.pipeline.run("2024-02", instance=instance)
    places = {row["document_id"]: row["partition"] for row in monthly.pipeline.rows()}
    assert places == {"a": "2024", "b": "2024", "c": "2024-02"}


@pytest.mark.parametrize(
    ("by", "moment", "closed"),
    [
        ("day", "2024-03-01T02:00", "2024-02-29"),
        ("week", "2024-01-15T02:00", "2024-01-08"),
        ("month", "2024-03-01T02:00", "2024-02"),
        ("year", "2025-01-01T02:00", "2024"),
    ],
)
def test_the_schedule_runs_the_partition_just_closed(
    tmp_path: Path, instance: dg.DagsterInstance, by: str, moment: str, closed: str
) -> None:
    automated = Automated(tmp_path, instance, partitions={"by": by, "start": "2024-01-01"})
    data = _scheduled(automated, moment)
    assert [r.partition_key for r in data.run_requests or ()] == [closed]
    # The first period has not ended yet on its first day.
    assert "no partition has closed" in (_scheduled(automated, "2024-01-01T02:00").skip_message)


def test_the_schedule_of_buckets_runs_all_of_them(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    automated = Automated(tmp_path, instance, partitions={"by": "bucket", "count": 4})
    data = _scheduled(automated, "2024-03-01T02:00")
    assert [_range(r) for r in data.run_requests or ()] == ["bucket_0...bucket_3"]
    assert data.run_requests[0].run_key != (
        _scheduled(automated, "2024-03-02T02:00").run_requests[0].run_key
    )


def _scheduled(automated: Automated, moment: str) -> Any:
    schedule = automated.repository.get_schedule_def("corpus_schedule")
    with dg.build_schedule_context(
        instance=automated.instance,
        scheduled_execution_time=datetime.fromisoformat(moment).replace(tzinfo=timezone.utc),
        repository_def=automated.repository,
    ) as context:
        return schedule.evaluate_tick(context)


def test_time_partitions_have_a_freshness_policy_and_buckets_only_if_asked(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    def hours(name: str, **settings: Any) -> set[float | None]:
        graph = Automated(tmp_path / name, instance, **settings).definitions.resolve_asset_graph()
        policies = [graph.get(dg.AssetKey(["corpus", asset])).freshness_policy for asset in ASSETS]
        return {p and p.fail_window.to_timedelta().total_seconds() / 3600 for p in policies}  # pyright: ignore

    assert hours("day") == {36}
    assert hours("bucket", partitions={"by": "bucket", "count": 2}) == {None}
    assert hours("set", automation={"freshness_hours": 5}) == {5}


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[Any]]]:
    received: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if "babble" in self.path:
                self.wfile.write(b"no answer in HTTP\r\n\r\n")
                return
            self.send_response(500 if "refuse" in self.path else 200)
            self.end_headers()

        def log_message(self, format: str, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/secret-token", received
        server.shutdown()
        thread.join()


def _tell_about_a_failure(notifier: Any) -> Any:
    @dg.asset
    def breaks() -> None:
        raise RuntimeError("the disk is full")

    job = dg.Definitions(
        assets=[breaks], jobs=[dg.define_asset_job("job", executor_def=dg.in_process_executor)]
    ).resolve_job_def("job")
    with instance_in_memory() as instance:
        result = job.execute_in_process(instance=instance, raise_on_error=False)
        with dg.build_run_status_sensor_context(
            "run_failure",
            dagster_event=result.get_run_failure_event(),
            dagster_instance=instance,
            dagster_run=result.dagster_run,
            resources={"notifier": notifier},
        ).for_run_failure() as context:
            return failure_sensor()(context)


def test_a_failed_run_is_told_to_the_webhook(
    webhook: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, received = webhook
    monkeypatch.setenv("EMBEDDING_WEBHOOK_URL", url)
    skipped = _tell_about_a_failure(WebhookNotifier())
    assert "The webhook answered 200" in str(skipped.skip_message)
    (message,) = received
    assert "job, no partitions" in message["text"]


@pytest.mark.parametrize(
    "url",
    [
        "", "nonsense", "http://127.0.0.1:9/secret-token", "http://[/secret-token",
        "http://127.0.0.1:secret-token/", "http://127.0.0.1:9/secret-token x", "refuse", "babble",
    ],
)  # fmt: skip
def test_a_webhook_that_does_not_work_is_said_without_its_secret(
    webhook: tuple[str, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    url: str,
) -> None:
    if url in ("refuse", "babble"):
        url = f"{webhook[0]}/{url}"
    monkeypatch.setenv("EMBEDDING_WEBHOOK_URL", url)
    said = WebhookNotifier(timeout=5).notify("Run x failed", "details")
    assert said.startswith("It was written to the log. ")
    assert "Run x failed: details" in caplog.text
    assert "secret-token" not in said + caplog.text


def test_without_a_webhook_a_failed_run_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    _tell_about_a_failure(LogNotifier())
    assert "failed: job, no partitions" in caplog.text
