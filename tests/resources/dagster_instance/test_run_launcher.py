"""The launcher tells Dagster's run monitoring whether a run's process is there."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.launcher import WorkerStatus

from resources.dagster_instance.run_launcher import WatchedRunLauncher
from tests.support.instance import shipped_instance

RUN = dg.DagsterRun(job_name="job", run_id="run")
HealthOfARunIn = Callable[[int], WorkerStatus]


@pytest.fixture
def health_of_a_run_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HealthOfARunIn]:
    with shipped_instance(tmp_path) as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, WatchedRunLauncher)

        def health(process: int) -> WorkerStatus:
            monkeypatch.setattr(launcher, "_process", lambda _: (process, time.time()))
            return launcher.check_run_worker_health(RUN).status

        yield health


def test_a_process_that_runs_is_alive(health_of_a_run_in: HealthOfARunIn) -> None:
    assert health_of_a_run_in(os.getpid()) == WorkerStatus.RUNNING


def test_a_process_that_is_gone_is_dead(health_of_a_run_in: HealthOfARunIn) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert health_of_a_run_in(process.pid) == WorkerStatus.FAILED


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="macOS has no waitid before Python 3.13")
def test_a_process_for_which_nobody_has_waited_is_dead(
    health_of_a_run_in: HealthOfARunIn,
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still listed
        assert health_of_a_run_in(process.pid) == WorkerStatus.FAILED
