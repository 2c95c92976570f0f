"""The launcher tells Dagster's run monitoring whether a run's process is there."""

import os
import subprocess
import sys
import time

import dagster as dg
import pytest
from dagster._core.launcher import WorkerStatus

from resources.dagster_instance.run_launcher import WatchedRunLauncher


def _health_of_a_run_in(process: int, monkeypatch: pytest.MonkeyPatch) -> WorkerStatus:
    launcher = WatchedRunLauncher()
    monkeypatch.setattr(launcher, "_process", lambda _: (process, time.time()))
    return launcher.check_run_worker_health(dg.DagsterRun(job_name="job", run_id="run")).status


def test_a_process_that_runs_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _health_of_a_run_in(os.getpid(), monkeypatch) == WorkerStatus.RUNNING


def test_a_process_that_is_gone_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert _health_of_a_run_in(process.pid, monkeypatch) == WorkerStatus.FAILED


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="macOS has no waitid before Python 3.13")
def test_a_process_for_which_nobody_has_waited_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still listed
        assert _health_of_a_run_in(process.pid, monkeypatch) == WorkerStatus.FAILED
