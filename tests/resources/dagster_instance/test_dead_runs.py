"""A run whose process is gone is told from one that lives, and holds nothing."""

import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import dagster as dg
import pytest

from resources.dagster_instance.dead_runs import (
    end_dead_runs,
    free_places_of_finished_runs,
    holders,
    is_worked_on,
    working_on,
)
from tests.support.instance import shipped_instance

POOL = "embedding_device"
PROCESSES = multiprocessing.get_context("spawn")


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with shipped_instance(tmp_path) as instance:
        instance.event_log_storage.initialize_concurrency_limit_to_default(POOL)
        yield instance


def _begin_a_run(instance: dg.DagsterInstance) -> str:
    """Returns the id of a run that has the pool's one place, or is the next to get it."""
    run = instance.add_run(dg.DagsterRun("job", status=dg.DagsterRunStatus.STARTED))
    instance.event_log_storage.claim_concurrency_slot(POOL, run.run_id, "step")
    return run.run_id


def _killed_at_work(home: Path, run_id: str) -> None:
    with shipped_instance(home) as instance, working_on(instance, run_id):
        os._exit(9)


def _kill_its_process(instance: dg.DagsterInstance, run_id: str) -> None:
    process = PROCESSES.Process(
        target=_killed_at_work, args=(Path(instance.root_directory), run_id)
    )
    process.start()
    process.join()
    assert process.exitcode == 9


def _may_have_the_place(instance: dg.DagsterInstance) -> bool:
    claim = instance.event_log_storage.claim_concurrency_slot(POOL, "another", "step")
    return claim.is_claimed


def test_a_dead_run_has_failed_and_its_place_is_free(instance: dg.DagsterInstance) -> None:
    run_id = _begin_a_run(instance)
    waiting = _begin_a_run(instance)
    _kill_its_process(instance, run_id)
    _kill_its_process(instance, waiting)
    assert is_worked_on(instance, run_id) is False
    assert not _may_have_the_place(instance)
    end_dead_runs(instance)
    assert {run.status for run in instance.get_runs()} == {dg.DagsterRunStatus.FAILURE}
    assert _may_have_the_place(instance)
    assert is_worked_on(instance, run_id) is None


def _event(kind: dg.DagsterEventType) -> dg.DagsterEvent:
    return dg.DagsterEvent(event_type_value=kind.value, job_name="job")


def _killed_over_its_status(home: Path, run_id: str, kind: dg.DagsterEventType) -> None:
    with shipped_instance(home) as instance:
        if kind is not dg.DagsterEventType.RUN_START:
            instance.report_dagster_event(_event(dg.DagsterEventType.RUN_START), run_id)
        with patch.object(type(instance.run_storage), "handle_run_event", lambda *_: os._exit(9)):
            instance.report_dagster_event(_event(kind), run_id)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (dg.DagsterEventType.RUN_SUCCESS, dg.DagsterRunStatus.SUCCESS),
        (dg.DagsterEventType.RUN_FAILURE, dg.DagsterRunStatus.FAILURE),
        (dg.DagsterEventType.RUN_CANCELED, dg.DagsterRunStatus.CANCELED),
        (dg.DagsterEventType.RUN_START, dg.DagsterRunStatus.FAILURE),
    ],
)
def test_a_run_killed_between_an_event_and_its_status_is_finished_as_it_ended(
    instance: dg.DagsterInstance, kind: dg.DagsterEventType, status: dg.DagsterRunStatus
) -> None:
    run = instance.add_run(dg.DagsterRun("job", status=dg.DagsterRunStatus.NOT_STARTED))
    home = Path(instance.root_directory)
    process = PROCESSES.Process(target=_killed_over_its_status, args=(home, run.run_id, kind))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert not instance.get_runs()[0].is_finished
    end_dead_runs(instance)
    assert instance.get_runs()[0].status is status
    assert list((home / "runs_under_way").iterdir()) == []


def test_a_run_is_told_to_be_at_work_from_its_start_until_its_end_is_noted(
    instance: dg.DagsterInstance,
) -> None:
    run_id = instance.add_run(dg.DagsterRun("job")).run_id
    instance.report_dagster_event(_event(dg.DagsterEventType.RUN_START), run_id)
    assert is_worked_on(instance, run_id)
    with working_on(instance, run_id):
        pass
    assert is_worked_on(instance, run_id)
    instance.report_dagster_event(_event(dg.DagsterEventType.RUN_SUCCESS), run_id)
    assert is_worked_on(instance, run_id) is None


def test_who_looks_after_runs_learns_that_a_killed_one_had_come_to_its_end(
    instance: dg.DagsterInstance,
) -> None:
    run = instance.add_run(dg.DagsterRun("job"))
    home, kind = Path(instance.root_directory), dg.DagsterEventType.RUN_SUCCESS
    process = PROCESSES.Process(target=_killed_over_its_status, args=(home, run.run_id, kind))
    process.start()
    process.join()
    instance.run_launcher.check_run_worker_health(run)
    assert instance.get_runs()[0].status is dg.DagsterRunStatus.SUCCESS


def test_a_run_that_somebody_else_ended_is_not_told_to_be_at_work_any_more(
    instance: dg.DagsterInstance,
) -> None:
    run = instance.add_run(dg.DagsterRun("job"))
    instance.report_dagster_event(_event(dg.DagsterEventType.RUN_START), run.run_id)
    with (
        working_on(instance, run.run_id),
        dg.DagsterInstance.from_config(instance.root_directory) as other,
        patch("resources.dagster_instance.home.end_work"),  # as in another process
    ):
        other.report_run_canceled(run)
    assert is_worked_on(instance, run.run_id) is None


def test_the_number_of_a_dead_process_proves_nothing(instance: dg.DagsterInstance) -> None:
    run_id = _begin_a_run(instance)
    _kill_its_process(instance, run_id)
    (record,) = Path(instance.root_directory).glob(f"*/{run_id}")
    record.write_text(f"{os.getpid()} on this machine")
    assert is_worked_on(instance, run_id) is False


def test_a_living_run_keeps_its_place_and_is_named_to_those_who_wait(
    instance: dg.DagsterInstance,
) -> None:
    run_id = _begin_a_run(instance)
    with working_on(instance, run_id):
        assert is_worked_on(instance, run_id) is True
        end_dead_runs(instance)
        # As when somebody reports it as cancelled while its process still works.
        instance.report_run_canceled(instance.get_runs()[0])
        free_places_of_finished_runs(instance, POOL)
        assert not _may_have_the_place(instance)
        (holder,) = holders(instance, POOL)
        assert run_id in holder
        assert f"process {os.getpid()} on " in holder
    assert is_worked_on(instance, run_id) is None
    free_places_of_finished_runs(instance, POOL)
    assert _may_have_the_place(instance)


def test_a_run_of_another_machine_is_left_alone_and_named(instance: dg.DagsterInstance) -> None:
    run_id = _begin_a_run(instance)
    end_dead_runs(instance)
    free_places_of_finished_runs(instance, POOL)
    assert not _may_have_the_place(instance)
    (holder,) = holders(instance, POOL)
    assert run_id in holder
    assert "no process is known on this machine" in holder
