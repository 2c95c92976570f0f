"""The embedding cache in one DuckDB file: no server, safe for several processes in turn."""

import logging
import os
import random
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from pydantic import Field

from resources.caches.base import (
    CachedVectors,
    EmbeddingCache,
    FoundVectors,
    Lookups,
    Removed,
    Retention,
    SpaceStatistics,
    no_vectors,
)
from resources.caches.duckdb_file import (
    CacheLockedError,
    DuckDBEngine,
    log_of,
    opening_error,
    remove_unfinished_copy,
    says_damaged,
    set_aside,
)
from resources.caches.duckdb_tables import (
    ROWS_PER_BATCH,
    add_lookups,
    compact,
    find_vectors,
    held_prefixes,
    held_rows,
    invalidate_entries,
    list_spaces,
    listed_hashes,
    prune_entries,
    put_vectors,
    read_lookups,
    read_statistics,
)
from resources.caches.key_filter import KeyFilter
from resources.caches.vectors import check_shape
from resources.disk_usage import bytes_in
from resources.duckdb_engine import duckdb
from resources.errors import InvalidInputError
from resources.identity.embedding_space import EmbeddingSpace

_log = logging.getLogger(__name__)

_HASHES_PER_SLICE = 262_144
_HASTE = 0.5

_Result = TypeVar("_Result")
_Item = TypeVar("_Item")


class DuckDBEmbeddingCache(EmbeddingCache):
    """One table a space. DuckDB lets one process at a time open a file, so: open, act, close.

    Whoever uses the file first takes `<path>.lock`: threads, resources of the same process, and
    processes take turns, and nobody creates, opens or renames the file at the same time.
    """

    path: str = Field(default="data/cache.duckdb", description="The DuckDB file.")
    lock_timeout: float = Field(
        default=60.0, description="Seconds to wait while another process holds the file."
    )

    @property
    def kind(self) -> str:
        return "duckdb"

    def contains(self, space: EmbeddingSpace, content_hashes: pa.Array) -> np.ndarray:
        found = np.zeros(len(content_hashes), dtype=bool)
        if len(content_hashes) and self._is_there():
            held = self._act(lambda database: held_rows(database, space, content_hashes), space)
            found[held["number"]] = True
        return found

    def get(self, space: EmbeddingSpace, content_hashes: pa.Array) -> CachedVectors:
        if not len(content_hashes):
            return no_vectors(space, 0)
        answer = no_vectors(space, len(content_hashes))
        rejected = 0
        with closing(self.find(space, content_hashes)) as parts:
            for part in parts:
                answer.vectors[part.numbers] = part.vectors
                answer.found[part.numbers] = True
                rejected += part.rejected
        return replace(answer, rejected=rejected)

    def find(
        self, space: EmbeddingSpace, content_hashes: pa.Array
    ) -> Generator[FoundVectors, None, None]:
        # One look at the file however many are asked for: each reads all keys, and where the
        # vectors lie scattered most of those too.
        found = np.zeros(len(content_hashes), dtype=bool)
        if len(content_hashes) and self._is_there():
            with self._turn() as deadline:
                try:
                    with self._open(space.dimension, deadline) as database:
                        for part in find_vectors(database, space, content_hashes):
                            found[part.numbers] = True
                            yield part
                except duckdb.Error as error:
                    self._set_aside_if_damaged(error)  # what was not found by then is not there
        if len(content_hashes):
            self.count_lookup(space, found)

    def put(self, space: EmbeddingSpace, content_hashes: pa.Array, vectors: np.ndarray) -> None:
        check_shape(space, content_hashes, vectors)
        if len(content_hashes):
            self._act(lambda database: put_vectors(database, space, content_hashes, vectors), space)

    def statistics(self) -> list[SpaceStatistics]:
        self.save_lookups()
        return self._act_if_there(read_statistics)

    def lookups(self) -> list[Lookups]:
        self.save_lookups()
        return self._act_if_there(read_lookups)

    def _save_lookups(self, counted: Sequence[Lookups]) -> None:
        try:
            self._act_if_there(lambda database: add_lookups(database, counted))
        except (duckdb.Error, OSError, CacheLockedError) as error:
            _log.warning(f"Look-ups of the cache were not counted: {error}")

    def prune(
        self, retention: Retention, space_id: str | None = None, *, dry_run: bool = False
    ) -> list[Removed]:
        removed = self._act_if_there(
            lambda database: prune_entries(database, retention, space_id, dry_run=dry_run)
        )
        return self._smaller(removed, dry_run)

    def invalidate(
        self,
        content_hashes: pa.Array | None = None,
        space_id: str | None = None,
        *,
        dry_run: bool = False,
    ) -> list[Removed]:
        if content_hashes is None and space_id is None:
            raise InvalidInputError("Say what to invalidate: content hashes, a space, or both.")
        removed = self._act_if_there(
            lambda database: invalidate_entries(database, content_hashes, space_id, dry_run=dry_run)
        )
        return self._smaller(removed, dry_run)

    def hasty(self) -> EmbeddingCache:
        return self.model_copy(update={"lock_timeout": min(self.lock_timeout, _HASTE)})

    def version(self) -> object:
        path = Path(self.path)
        return tuple(
            (status.st_mtime_ns, status.st_size, status.st_ino)
            for part in (path, log_of(path))
            if (status := _status(part))
        )

    def key_filter(self, space: EmbeddingSpace) -> KeyFilter | None:
        # Each look-up opens the file and compares with every entry's prefix: 36 ms for a million.
        version = self.version()
        prefixes = self._act_if_there(lambda database: [held_prefixes(database, space)])
        return KeyFilter(version, np.sort(np.concatenate([*prefixes, np.zeros(0, np.uint64)])))

    def spaces(self) -> list[EmbeddingSpace]:
        return self._act_if_there(list_spaces)

    def scan(self, space: EmbeddingSpace) -> Iterator[tuple[pa.Array, np.ndarray]]:
        # The file is free for others after each page, and the hashes of one slice of all possible
        # ones are listed at a time: whatever others write or remove, no entry is shown twice.
        (count,) = [s.entries for s in self.statistics() if s.space_id == space.id] or [0]
        step = max(1, 256 * _HASHES_PER_SLICE // max(1, count))
        for first in range(0, 256, step):
            for listed in self._act_if_there(
                lambda database, first=first: [listed_hashes(database, space, first, first + step)]
            ):
                for start in range(0, len(listed), ROWS_PER_BATCH):
                    page = listed.slice(start, ROWS_PER_BATCH)
                    answer = self._act(
                        lambda database, page=page: list(find_vectors(database, space, page)), space
                    )
                    for part in answer:
                        yield page.take(pa.array(part.numbers)), part.vectors

    def bytes_used(self) -> int | None:
        path = Path(self.path)
        return bytes_in(path) + bytes_in(path.with_name(f"{path.name}.wal"))

    def _act_if_there(
        self, action: Callable[[duckdb.DuckDBPyConnection], list[_Item]]
    ) -> list[_Item]:
        return self._act(action) if self._is_there() else []

    def _is_there(self) -> bool:
        """Whether there is a file: who only asks makes none."""
        return Path(self.path).exists()

    def _smaller(self, removed: list[Removed], dry_run: bool) -> list[Removed]:
        """Gives the room of removed entries back to the file system."""
        if removed and not dry_run:
            self._act(lambda database: compact(database, Path(self.path)))
        return removed

    def _act(
        self,
        action: Callable[[duckdb.DuckDBPyConnection], _Result],
        space: EmbeddingSpace | None = None,
    ) -> _Result:
        """Opens the file, acts and closes; if the file is damaged, does so with a new one.

        Args:
            action: what to do.
            space: where it may write or let the log be written; None: nowhere, or everywhere.
        """
        dimension = space.dimension if space else 0
        with self._turn() as deadline:
            try:
                with self._open(dimension, deadline) as database:
                    return action(database)
            except duckdb.Error as error:
                self._set_aside_if_damaged(error)
            with self._open(dimension, deadline) as database:
                return action(database)

    @contextmanager
    def _turn(self) -> Iterator[float]:
        """Waits until nobody else uses the file; yields the time until which may be waited."""
        path = Path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self.lock_timeout
        try:
            lock = FileLock(f"{path}.lock").acquire(self.lock_timeout, poll_interval=0.01)
        except Timeout as error:
            raise self._locked(opening_error(path)) from error
        with lock:
            remove_unfinished_copy(path)
            yield deadline

    def _set_aside_if_damaged(self, error: duckdb.Error) -> None:
        if not says_damaged(error):
            raise error  # permissions, a full disk: renaming the file would not help
        set_aside(Path(self.path), error)

    @contextmanager
    def _open(self, dimension: int, deadline: float) -> Iterator[duckdb.DuckDBPyConnection]:
        """Opens the file, in a turn that began before; see `_act` for the dimension."""
        engine = DuckDBEngine(Path(self.path))
        database = None
        try:
            while database is None:
                try:
                    database = engine.open(dimension)
                except duckdb.IOException as error:
                    if "could not set lock" not in str(error).lower():
                        raise
                    if time.monotonic() > deadline:
                        raise self._locked(str(error)) from error
                    time.sleep(random.uniform(0.01, 0.1))
            yield database
            database.close()
            engine.close_file()
        except BaseException:
            if database is not None:
                database.close()
            engine.close()
            raise

    def _locked(self, reason: str) -> CacheLockedError:
        return CacheLockedError(
            f"The embedding cache {self.path} was in use by another process for "
            f"{self.lock_timeout:.0f} s. Stop that process, or raise 'lock_timeout' "
            f"of the embedding_cache resource. DuckDB said: {reason}"
        )


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
