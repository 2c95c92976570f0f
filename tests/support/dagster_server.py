"""A real webserver and a real daemon on this machine, and what the UI asks them by GraphQL."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import psutil

from tests.support.checkout import PROJECT
from tests.support.instance import shipped_instance

_LAUNCH = """
mutation ($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}"""
_STATUS = """
query ($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill { status error { message } runs { id status } }
  }
}"""
_CANCEL = """
mutation ($id: String!) { cancelPartitionBackfill(backfillId: $id) { __typename } }"""
_REEXECUTE = """
mutation ($params: ReexecutionParams!) {
  reexecutePartitionBackfill(reexecutionParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}"""


class DagsterServer:
    """`dagster-webserver` and `dagster-daemon` with the project's own dagster.yaml."""

    def __init__(self, home: Path, module: str, environment: dict[str, str]) -> None:
        with shipped_instance(home):
            self.home = home  # made here, for processes that make it at the same time may break it
        self._module = module
        self._environment = {
            **os.environ,
            **environment,
            "DAGSTER_HOME": str(home),
            "PYTHONPATH": str(PROJECT),
            "PYTHONWARNINGS": "ignore",
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def start(self) -> None:
        self.start_daemon()
        self._start("webserver", "dagster_webserver", "-h", "127.0.0.1", "-p", str(self.port))
        self.until(self._answers, "the webserver answers")

    def start_daemon(self) -> None:
        self._start("daemon", "dagster._daemon", "run")

    def kill_daemon(self) -> None:
        """Kills the daemon, its code server and all runs at once, as a power loss would."""
        daemon = psutil.Process(self._processes.pop("daemon").pid)
        for process in [*daemon.children(recursive=True), daemon]:
            process.kill()
        daemon.wait()

    def stop(self) -> None:
        for process in self._processes.values():
            tree = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for child in tree:
                if child.is_running():
                    child.kill()
        self._processes.clear()

    def launch_backfill(self, assets: Sequence[dg.AssetKey], partitions: Sequence[str]) -> str:
        params = {
            "assetSelection": [{"path": key.path} for key in assets],
            "partitionNames": list(partitions),
        }
        return self._backfill_id(self.query(_LAUNCH, params=params)["launchPartitionBackfill"])

    def backfill(self, backfill_id: str) -> dict[str, Any]:
        return self.query(_STATUS, id=backfill_id)["partitionBackfillOrError"]

    def cancel_backfill(self, backfill_id: str) -> None:
        self.query(_CANCEL, id=backfill_id)

    def resume_backfill(self, backfill_id: str) -> str:
        """The UI's "re-execute from failure": what is missing, in a new backfill."""
        params = {"parentRunId": backfill_id, "strategy": "FROM_FAILURE"}
        answer = self.query(_REEXECUTE, params=params)["reexecutePartitionBackfill"]
        return self._backfill_id(answer)

    @staticmethod
    def _backfill_id(answer: dict[str, Any]) -> str:
        if "backfillId" not in answer:
            raise RuntimeError(f"no backfill was launched: {answer}")
        return answer["backfillId"]

    def query(self, query: str, **variables: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                result = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"HTTP {error.code}: {error.read()[:1_000]!r}") from error
        if result.get("errors"):
            raise RuntimeError(str(result["errors"])[:1_000])
        return result["data"]

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 300) -> Any:
        """Waits for what another process does, and returns what the condition returned."""
        deadline = time.monotonic() + seconds
        while True:
            if outcome := condition():
                return outcome
            if time.monotonic() > deadline:
                logs = "\n".join(
                    f"--- {log.name}\n{log.read_text()[-3_000:]}" for log in self.home.glob("*.log")
                )
                raise TimeoutError(f"Waited {seconds} s until {what}.\n{logs}")
            for name, process in self._processes.items():
                if process.poll() is not None:
                    log = (self.home / f"{name}.log").read_text()[-3_000:]
                    raise RuntimeError(f"{name} ended with {process.returncode}:\n{log}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            return bool(self.query("{ assetNodes { id } }")["assetNodes"])  # it knows the assets
        except (OSError, RuntimeError):
            return False

    def _start(self, name: str, *module_and_arguments: str) -> None:
        with (self.home / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", *module_and_arguments, "-m", self._module],
                cwd=PROJECT,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


@contextmanager
def dagster_server(home: Path, module: str, environment: dict[str, str]) -> Iterator[DagsterServer]:
    server = DagsterServer(home, module, environment)
    try:
        server.start()
        yield server
    finally:
        server.stop()
