"""Dagster's command line is killed; the same command goes on at once. Nobody waits busily.

With the configuration that ships, its pools included, without a daemon, and with the real model.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import dagster as dg
import psutil
import pytest

from resources.dagster_instance.dead_runs import working_on
from resources.dagster_instance.executor import one_process_executor
from tests.support.checkout import PROJECT
from tests.support.forks import FORKS, ForkedDagster
from tests.support.instance import dagster_home, shipped_instance

Process = subprocess.Popen[str] | ForkedDagster
POOL = "embedding_device"
PROGRAMS = Path(sys.executable).parent
MATERIALIZE = ["asset", "materialize", "--select"]
"""Arguments of `dagster`, in a process that need not import it first."""
PROGRAM = [str(PROGRAMS / "dagster"), *MATERIALIZE]
LAUNCH = [str(PROGRAMS / "dg"), "launch", "--assets"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    (folder / "data").mkdir()
    (folder / "data" / "models").symlink_to(model_cache)
    home = dagster_home(folder / "home")
    _until_its_end(home, "key:peps/*")  # the model is compiled
    return home


@contextmanager
def _materializing(
    home: Path, select: str, command: Sequence[str] = MATERIALIZE
) -> Iterator[Process]:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("DAGSTER")},
        "PYTHONPATH": str(PROJECT),
        "DAGSTER_HOME": str(home),
        "EMBEDDING_DATA_DIR": str(home.parent / "data"),
        "VIRTUAL_ENV": sys.prefix,
    }
    command = [*command, select, "--partition", "2000", "-m", "tests.support.sample_location"]
    if command[0] == MATERIALIZE[0]:
        process = ForkedDagster(command, environment)
    else:
        process = subprocess.Popen(
            command,
            cwd=PROJECT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _line_with(process: Process, *words: str) -> str:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if all(word in line for word in words):
            return line
    pytest.fail(f"never said {words}: {''.join(seen)[-4000:]}")


def _until_the_step_begins(home: Path, process: Process, step: str) -> None:
    with shipped_instance(home) as instance:
        while process.poll() is None:
            # To ask for runs takes a while; before there is one, it is not known to be under way.
            if not any((home / "runs_under_way").glob("*")):
                time.sleep(0.01)
                continue
            for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
                begun = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_START)
                if any(event.step_key == step for event in begun):
                    return
            time.sleep(0.05)
    pytest.fail(f"{step} did not begin: {process.communicate()[0][-4000:]}")


def _until_its_end(home: Path, select: str, command: Sequence[str] = MATERIALIZE) -> str:
    with _materializing(home, select, command) as process:
        output = process.communicate()[0]
    assert process.returncode == 0, output[-4000:]
    return output


def _assert_nothing_is_held(home: Path, runs: int) -> None:
    with shipped_instance(home) as instance:
        assert all(run.is_finished for run in instance.get_runs(limit=runs))
        for pool in instance.event_log_storage.get_concurrency_keys():
            info = instance.event_log_storage.get_concurrency_info(pool)
            assert (info.claimed_slots, info.pending_steps) == ([], [])
    assert list((home / "runs_under_way").iterdir()) == []


@pytest.mark.parametrize(
    ("asset", "number", "command"),
    [
        pytest.param("documents", signal.SIGKILL, MATERIALIZE, marks=pytest.mark.slow),
        pytest.param("deduplicated_chunks", signal.SIGKILL, MATERIALIZE, marks=pytest.mark.slow),
        pytest.param("embeddings", signal.SIGKILL, PROGRAM, marks=pytest.mark.slow),
        pytest.param("embeddings", signal.SIGKILL, LAUNCH, marks=pytest.mark.slow),
        pytest.param("embeddings", signal.SIGTERM, MATERIALIZE, marks=pytest.mark.slow),
        ("embeddings", signal.SIGINT, MATERIALIZE),
        ("vector_index", signal.SIGKILL, MATERIALIZE),
    ],
    ids=lambda value: Path(value[0]).name if isinstance(value, list) else str(value),
)
def test_after_a_kill_the_same_command_goes_on_at_once(
    home: Path, asset: str, number: signal.Signals, command: Sequence[str]
) -> None:
    select = f"key:peps/{asset}"  # so that the first step is the one that needs the place
    with _materializing(home, select, command) as process:
        _until_the_step_begins(home, process, f"peps__{asset}")
        with suppress(subprocess.TimeoutExpired):
            process.wait(random.uniform(0, 0.2))  # any moment; few steps are over by then
        process.send_signal(number)
        process.communicate()
    assert process.returncode != 0, "the process was over before the signal"
    assert "waits for a place" not in _until_its_end(home, select, command)
    _assert_nothing_is_held(home, runs=2)
    with shipped_instance(home) as instance:
        after, before = instance.get_runs(limit=2)
        assert after.status == dg.DagsterRunStatus.SUCCESS
        # Where nothing has changed, a step may be over while its process is still ending.
        over = instance.all_logs(before.run_id, of_type=dg.DagsterEventType.RUN_SUCCESS)
        status = dg.DagsterRunStatus.SUCCESS if over else dg.DagsterRunStatus.FAILURE
        assert before.status == status


def test_the_code_location_that_ships_has_the_executor_that_is_tested_here() -> None:
    from embedding_assets.definitions import defs

    assert defs().executor is one_process_executor


def _hold_the_place(instance: dg.DagsterInstance) -> str:
    run = instance.add_run(dg.DagsterRun("job", status=dg.DagsterRunStatus.STARTED))
    storage = instance.event_log_storage
    storage.initialize_concurrency_limit_to_default(POOL)
    assert storage.claim_concurrency_slot(POOL, run.run_id, "step").is_claimed
    return run.run_id


def test_who_waits_says_for_whom_and_leaves_the_processor_alone(home: Path) -> None:
    with shipped_instance(home) as instance:
        run_id = _hold_the_place(instance)
        with (
            working_on(instance, run_id),
            _materializing(home, "key:peps/embeddings") as process,
        ):
            line = _line_with(process, "INFO", "waits for a place", POOL)
            assert run_id in line
            assert f"process {os.getpid()} on " in line
            used, began = sum(psutil.Process(process.pid).cpu_times()[:2]), time.monotonic()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(5)  # still waiting
            used = sum(psutil.Process(process.pid).cpu_times()[:2]) - used
            assert used / (time.monotonic() - began) < 0.3  # of a core
            instance.report_run_canceled(instance.get_runs(limit=2)[1])
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)
            output = process.communicate()[0]
        assert process.returncode == 0, output[-4000:]
    _assert_nothing_is_held(home, runs=1)


def _work_until_killed(home: Path, ready: Connection) -> None:
    with shipped_instance(home) as instance:
        run_id = _hold_the_place(instance)
        with working_on(instance, run_id):
            ready.send(run_id)
            signal.pause()


def test_who_waits_goes_on_when_the_other_is_killed(home: Path) -> None:
    ready, there = FORKS.Pipe()
    holder = FORKS.Process(target=_work_until_killed, args=(home, there))
    holder.start()
    run_id = ready.recv()
    with _materializing(home, "key:peps/embeddings") as process:
        _line_with(process, "waits for a place", run_id)
        holder.kill()
        output = process.communicate()[0]
    assert process.returncode == 0, output[-4000:]
    _assert_nothing_is_held(home, runs=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait(home: Path, number: signal.Signals) -> None:
    with shipped_instance(home) as instance:
        run_id = _hold_the_place(instance)
        with working_on(instance, run_id):
            with _materializing(home, "key:peps/embeddings") as process:
                _line_with(process, "waits for a place", run_id)
                process.send_signal(number)
                process.communicate()
            assert process.wait() > 0
            assert instance.get_runs(limit=1)[0].is_finished
        instance.report_run_canceled(instance.get_runs(limit=2)[1])
        instance.event_log_storage.free_concurrency_slots_for_run(run_id)
    _assert_nothing_is_held(home, runs=2)
