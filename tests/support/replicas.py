"""The real command `embedding-assets serve`, in processes of its own, and clients that load it."""

import itertools
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from tests.support.checkout import PROJECT
from tests.support.instance import dagster_home
from tests.support.pipeline import write_jsonl
from tests.support.project import Project
from tests.support.service import wait_until


def serve_environment(
    folder: Path, documents: Sequence[Mapping[str, Any]], models: Path
) -> dict[str, str]:
    """Of commands in a new project with one collection, which is called notes."""
    project = Project(folder)
    project.write(
        {
            "name": "notes",
            "source": {"path": str(write_jsonl(folder / "notes.jsonl", documents))},
            "partitions": {"by": "bucket", "count": 1},
        }
    )
    data = folder / "data"
    data.mkdir()
    (data / "models").symlink_to(models)
    return {
        "PATH": str(Path(sys.executable).parent),
        "PYTHONPATH": f"{folder}:{PROJECT}",
        "DAGSTER_HOME": str(dagster_home(folder / "home")),
        "HOME": str(folder),
    }


def command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).parent / "embedding-assets"), *arguments]


_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)/\n")


class Replica:
    """One server; what it says is in a file of the project's folder."""

    def __init__(self, folder: Path, environment: Mapping[str, str], name: str = "replica") -> None:
        self.port = 0
        self.log = folder / f"{name}.log"
        self._folder, self._environment = folder, dict(environment)
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it, again after it was killed at the same port; `ready` waits for it."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command("serve", "--port", str(self.port)),
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def ready(self) -> None:
        def is_ready() -> bool:
            said = self.log.read_text()
            assert self.process.poll() is None, said
            if (where := _ADDRESS.search(said)) is None:
                return False
            self.port = int(where[1])
            try:
                return httpx.get(f"{self.url}/ready", timeout=30).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(is_ready, 120)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """As a process manager does; it ends without a fault."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) in (0, -signal.SIGTERM), self.log.read_text()


@contextmanager
def replicas(
    folder: Path, environment: Mapping[str, str], count: int = 2
) -> Iterator[list[Replica]]:
    """Servers of the same project, once all are ready; those that live are ended."""
    started = [Replica(folder, environment, f"replica-{number}") for number in range(count)]
    try:
        for one in started:
            one.ready()
        yield started
        for one in started:
            if one.process.poll() is None:
                one.end()
    finally:
        for one in started:
            one.kill()


Body = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A request of a client, and what came of it.

    Attributes:
        client: number of the client.
        url: of the server.
        path: that was asked.
        body: that was sent.
        began: when, on the clock of `time.monotonic`.
        ended: when the answer was there.
        answer: None if there is none.
        error: why there is none.
    """

    client: int
    url: str
    path: str
    body: Body
    began: float
    ended: float
    answer: httpx.Response | None
    error: httpx.TransportError | None

    @property
    def status(self) -> int:
        return 0 if self.answer is None else self.answer.status_code


class Load:
    """Clients that ask all the time until the block ends, each of the servers in turn."""

    def __init__(
        self,
        urls: Sequence[str],
        request: Callable[[int], tuple[str, Body]],
        clients: int = 8,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Asks nothing yet.

        Args:
            urls: of the servers.
            request: path and body of the request of a number; each number is asked once.
            clients: how many.
            headers: of each request.
        """
        self.asked: list[Asked] = []
        self._urls, self._request, self._headers = urls, request, dict(headers or {})
        self._numbers = itertools.count()
        self._over = threading.Event()
        self._failed: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(clients)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(120)
        if error is None and self._failed:
            raise self._failed[0]

    def wait_for(self, count: int, of: Callable[[Asked], bool] = lambda _: True) -> None:
        """Waits until so many more requests of a kind have come to an end."""
        before = len(self.asked)

        def are_there() -> bool:
            assert not self._failed, self._failed
            return sum(map(of, self.asked[before:])) >= count

        wait_until(are_there, 120)

    def _run(self, client: int) -> None:
        try:
            with httpx.Client(timeout=60, headers=self._headers) as session:
                for url in itertools.cycle(self._urls):
                    if self._over.is_set():
                        return
                    path, body = self._request(next(self._numbers))
                    self.asked.append(_ask(session, client, url, path, body))
        except BaseException as error:
            self._failed.append(error)


def _ask(session: httpx.Client, client: int, url: str, path: str, body: Body) -> Asked:
    began, answer, error = time.monotonic(), None, None
    try:
        answer = session.post(url + path, json=body)
    except httpx.TransportError as caught:
        error = caught
    return Asked(client, url, path, body, began, time.monotonic(), answer, error)
