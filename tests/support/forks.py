"""Processes that begin as copies of one that has imported Dagster and the assets.

To import these takes longer than most of what a process does in a test.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["dagster._cli", "embedding_assets.definitions", "embedding_assets.project"]
)


class ForkedDagster:
    """Dagster's command line, `dagster ARGUMENTS`, with those methods of `subprocess.Popen`."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "output"
            os.mkfifo(output)
            self._process = FORKS.Process(target=_dagster, args=(arguments, environment, output))
            self._process.start()
            self.stdout = output.open(errors="replace")  # when the process has opened it, too
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("dagster", timeout or 0)
        return self._process.exitcode

    def communicate(self) -> tuple[str, None]:
        """What is left of its output, when it has ended."""
        with self.stdout:
            rest = self.stdout.read()
        self.wait()
        return rest, None

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def _dagster(arguments: Sequence[str], environment: Mapping[str, str], output: Path) -> None:
    descriptor = os.open(output, os.O_WRONLY)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["dagster", *arguments]
    from dagster._cli import main

    main()
