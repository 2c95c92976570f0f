"""Processes that share a rate limit, and a server that counts what reaches it."""

import os
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from resources.limits.base import VARIABLE, Limits
from tests.support.checkout import PROJECT

_PROCESS = """
import os, random, socket, sys, time
from pathlib import Path
from resources.limits.base import Limits
from resources.limits.from_url import rate_limiter_from_url
port, folder, requests, tokens, window, seconds = sys.argv[1:]
limits = Limits(int(requests) or None, int(tokens) or None)
url, folder = os.environ.get("EMBEDDING_RATE_LIMITER"), Path(folder)
limiter = rate_limiter_from_url(
    url, folder.name, folder, limits, window=float(window), lease=10.0
)
connection = socket.create_connection(("127.0.0.1", int(port)))
connection.sendall(b"0\\n"); connection.recv(1)  # waits until all are there
end = time.monotonic() + float(seconds)
generator = random.Random(os.getpid())
while time.monotonic() < end:
    taken = generator.randint(1, 60)
    grant = limiter.acquire(taken * 2)  # an estimate, twice what is taken
    connection.sendall(b"%d\\n" % taken); connection.recv(1)
    limiter.settle(grant, taken)
"""


class _Counter(socketserver.ThreadingTCPServer):
    """Counts requests and tokens, with the time at which they arrive."""

    daemon_threads = True

    def __init__(self, processes: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.arrivals: list[tuple[float, int]] = []
        self.start = threading.Barrier(processes)


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, _Counter)
        while line := self.rfile.readline():
            if int(line):
                server.arrivals.append((time.monotonic(), int(line)))
            else:
                server.start.wait(60)
            self.wfile.write(b".")


def run_processes(
    processes: int,
    limits: Limits,
    window: float,
    windows: int,
    folder: Path,
    environment: Mapping[str, str],
) -> list[tuple[float, int]]:
    """Lets processes send as much as the limiter grants, for so many windows.

    Args:
        processes: how many.
        limits: of requests and tokens in a window; None for no limit.
        window: seconds.
        windows: how long.
        folder: where they share the limiter's files.
        environment: more variables, such as the limiter's Redis.

    Returns:
        For each request that reached the server its time, in seconds, and its tokens.
    """
    variables = {**os.environ, "PYTHONPATH": str(PROJECT)}
    variables.pop(VARIABLE, None)
    with _Counter(processes) as server, ExitStack() as stack:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        port = str(server.server_address[1])
        numbers = (limits.requests or 0, limits.tokens or 0, window, window * windows)
        command = [sys.executable, "-c", _PROCESS, port, str(folder), *map(str, numbers)]
        running = [
            stack.enter_context(subprocess.Popen(command, env={**variables, **environment}))
            for _ in range(processes)
        ]
        for process in running:
            assert process.wait(60 + 10 * window * windows) == 0
        server.shutdown()
    return server.arrivals


def most_in_a_window(arrivals: list[tuple[float, int]], window: float) -> tuple[int, int]:
    """Most requests, and most tokens, in any window."""
    arrivals = sorted(arrivals)
    first = requests = tokens = most_requests = most_tokens = 0
    for moment, taken in arrivals:
        requests += 1
        tokens += taken
        while arrivals[first][0] <= moment - window:
            requests -= 1
            tokens -= arrivals[first][1]
            first += 1
        most_requests, most_tokens = max(requests, most_requests), max(tokens, most_tokens)
    return most_requests, most_tokens


def used_of(arrivals: list[tuple[float, int]], limits: Limits, duration: float) -> float:
    """The greater share, of the requests or the tokens for so many seconds, that was used.

    Args:
        arrivals: from `run_processes`.
        limits: for all of the duration.
        duration: seconds, from the first arrival on.
    """
    begin = min(moment for moment, _ in arrivals)
    during = [taken for moment, taken in arrivals if moment <= begin + duration]
    return max(
        len(during) / (limits.requests or float("inf")),
        sum(during) / (limits.tokens or float("inf")),
    )
