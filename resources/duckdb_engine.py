"""DuckDB, made to give back what it has freed; to be imported from here."""

import atexit
import os
from collections.abc import Callable, Hashable

# Its allocator (jemalloc) reads this once, when it is loaded. By default it keeps freed memory for
# ten seconds in case that it is wanted again: 55 MB in a run that indexes 200,000 chunks. Without
# any such time, queries that allocate much took up to a third longer.
os.environ.setdefault("DUCKDB_JE_MALLOC_CONF", "dirty_decay_ms:50,muzzy_decay_ms:0")

import duckdb

__all__ = ["IdleDuckDB", "duckdb"]


class IdleDuckDB:
    """Keeps a DuckDB without a file for its next use: to start one takes 30 ms of processor time.

    Who takes it attaches what databases they need, and detaches them before it is kept again.
    """

    def __init__(self) -> None:
        # At most one, after what it was started for; list operations are atomic.
        self._kept: list[tuple[Hashable, duckdb.DuckDBPyConnection]] = []
        # A forked process has none of DuckDB's threads, and waits for them for ever.
        os.register_at_fork(before=self.close)
        atexit.register(self.close)

    def take(
        self, purpose: Hashable, start: Callable[[], duckdb.DuckDBPyConnection]
    ) -> duckdb.DuckDBPyConnection:
        """The one that was started for the same purpose, if it is kept; else a new one."""
        try:
            kept_for, database = self._kept.pop()
        except IndexError:
            return start()
        if kept_for == purpose:
            return database
        database.close()
        return start()

    def keep(self, purpose: Hashable, database: duckdb.DuckDBPyConnection) -> None:
        self.close()
        self._kept.append((purpose, database))

    def close(self) -> None:
        while self._kept:
            try:
                self._kept.pop()[1].close()
            except IndexError:  # another thread has taken it
                return
