"""Which versions of a table are in use on this machine, so that nobody removes them."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

_GATE = "gate"
_SOON_DONE = 0.5
"""Seconds: who began so lately is waited for, and is nearly always done by then."""


class TableReaders:
    """All processes that use a table in a folder; whoever died counts no more.

    Each holds the lock of a file that is named after the version it has opened. The lock ends with
    its process, whatever became of that. To open a version and to say so is one step for whoever
    removes versions: a gate lets nobody begin meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        """Makes nothing yet.

        Args:
            folder: for the files of those that read this table.
        """
        self._folder = folder

    @contextmanager
    def using(self, open_table: Callable[[], Any]) -> Iterator[Any]:
        """Yields what was opened (None: there is no such table); its version stays until the end.

        Where nothing can be written nothing can be said, and the table is opened all the same.
        """
        table = held = None
        with suppress(OSError), self._gate(fcntl.LOCK_SH):
            table = open_table()
            held = None if table is None else self._hold(table.version)
        try:
            yield open_table() if table is None else table
        finally:
            if held is not None:
                path, descriptor = held
                path.unlink(missing_ok=True)
                os.close(descriptor)

    @contextmanager
    def nobody_begins(self) -> Iterator[int | None]:
        """Waits for those who are soon done; yields the oldest version still in use, if there is.

        Raises:
            OSError: the folder has no locks, or is not to be written to.
        """
        with self._gate(fcntl.LOCK_EX):
            deadline = time.monotonic() + _SOON_DONE
            while (users := self._users()) and max(users.values()) > time.time() - _SOON_DONE:
                if time.monotonic() > deadline:  # the clock of whoever keeps the files is ahead
                    break
                time.sleep(0.005)
            yield min(users, default=None)

    def _users(self) -> dict[int, float]:
        """The versions in use, and when the last user of each began."""
        users: dict[int, float] = {}
        for path in self._folder.iterdir():
            if path.name != _GATE and (began := _began(path)) is not None:
                version = int(path.name.partition("-")[0])
                users[version] = max(began, users.get(version, began))
        return users

    @contextmanager
    def _gate(self, how: int) -> Iterator[None]:
        self._folder.mkdir(exist_ok=True)
        descriptor = _opened(self._folder / _GATE)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)

    def _hold(self, version: int) -> tuple[Path, int]:
        path = self._folder / f"{version}-{uuid4().hex}"
        descriptor = _opened(path)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return path, descriptor


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _began(path: Path) -> float | None:
    """When the user began whose file it is; the file of one that is gone is removed."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # its user has just ended
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.fstat(descriptor).st_mtime
    else:
        path.unlink(missing_ok=True)
        return None
    finally:
        os.close(descriptor)
