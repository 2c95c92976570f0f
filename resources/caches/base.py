"""The cache of vectors: (embedding space, content hash) -> vector, shared by all collections."""

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone

import dagster as dg
import numpy as np
import pyarrow as pa
from pydantic import PrivateAttr

from resources.caches.key_filter import KeyFilter
from resources.errors import EmbeddingAssetsError, InvalidInputError, NotFoundError
from resources.identity.embedding_space import EmbeddingSpace

HASHES_PER_LOOKUP = 65_536
"""How many a stage asks for at once: enough to make opening the cache cheap, in a few megabytes."""
_HASHES_PER_PAGE = 8_192
_SECONDS_BETWEEN_SAVES = 60
"""How often the counts of look-ups are added to those in the cache, besides at the end of a run."""


class CacheUnavailableError(EmbeddingAssetsError):
    """The cache cannot be reached by an operation that is useless without it."""


@dataclass(frozen=True)
class CachedVectors:
    """The answer to one look-up.

    Attributes:
        found: shape (n,), bool; which of the n hashes asked for the cache holds.
        vectors: shape (n, dimension), float32; rows that were not found are zero.
        rejected: entries that were there but no valid vector of the space: treated as not found.
    """

    found: np.ndarray
    vectors: np.ndarray
    rejected: int


@dataclass(frozen=True)
class FoundVectors:
    """Part of the answer to one look-up.

    Attributes:
        numbers: shape (m,), int64; which of the hashes asked for, counted from 0.
        vectors: shape (m, dimension), float32.
        rejected: as in `CachedVectors`, of this part.
    """

    numbers: np.ndarray
    vectors: np.ndarray
    rejected: int


@dataclass(frozen=True)
class SpaceStatistics:
    """What the cache holds of one embedding space.

    Attributes:
        space_id: the space's id.
        model: its model's name; "" where the cache has forgotten it.
        dimension: length of its vectors; 0 where the cache has forgotten it.
        entries: vectors held.
        bytes: their size, without what the database adds.
        hits: keys found by `get`, all runs together.
        misses: keys not found.
    """

    space_id: str
    model: str
    dimension: int
    entries: int
    bytes: int
    hits: int
    misses: int


@dataclass(frozen=True)
class Lookups:
    """How many keys of one space `get` was asked for on one day (UTC)."""

    space_id: str
    day: date
    hits: int
    misses: int


@dataclass(frozen=True)
class Removed:
    """Entries of one space that were removed, or would be."""

    space_id: str
    entries: int
    bytes: int


@dataclass(frozen=True)
class Retention:
    """What `prune` leaves: it removes what is older than `max_age`, then the oldest of the rest.

    Attributes:
        max_age: how long ago an entry may have been written.
        max_bytes: how large the rest may be, as `SpaceStatistics.bytes` counts.
    """

    max_age: timedelta | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.max_age is None and self.max_bytes is None:
            raise InvalidInputError(
                "Say what to prune: entries above an age, above a total size, or both"
            )

    def oldest_kept(self, written: np.ndarray, sizes: np.ndarray, now: float) -> float:
        """The time before which entries are removed; those written at one time go together.

        Args:
            written: shape (n,), seconds since 1970.
            sizes: shape (n,), bytes.
            now: seconds since 1970.
        """
        limit = -np.inf if self.max_age is None else now - self.max_age.total_seconds()
        if self.max_bytes is None:
            return limit
        times, position = np.unique(written, return_inverse=True)
        per_time = np.bincount(position, weights=sizes, minlength=len(times))
        total = np.cumsum(per_time[::-1])[::-1]  # of this time and all later ones
        kept = times[total <= self.max_bytes]
        return max(limit, kept[0] if len(kept) else np.inf)


class EmbeddingCache(dg.ConfigurableResource, ABC):
    """Vectors by embedding space and content hash; `get` never returns a broken vector.

    A `put` that was acknowledged survives a killed process, unless a server that several machines
    share was at fault: then the run goes on, and `faults` counts.
    """

    _tally: "_Tally" = PrivateAttr(default_factory=lambda: _Tally())

    @property
    @abstractmethod
    def kind(self) -> str:
        """What holds the vectors, as Dagster calls it: duckdb, redis."""

    @abstractmethod
    def contains(self, space: EmbeddingSpace, content_hashes: pa.Array) -> np.ndarray:
        """Says which hashes are held, without reading vectors.

        Args:
            space: the embedding space.
            content_hashes: n values of `CONTENT_HASH_TYPE`.

        Returns:
            Shape (n,), bool.
        """

    @abstractmethod
    def get(self, space: EmbeddingSpace, content_hashes: pa.Array) -> CachedVectors:
        """Reads vectors; each was checked with `valid_vectors`.

        Args:
            space: the embedding space.
            content_hashes: n distinct values of `CONTENT_HASH_TYPE`.
        """

    def find(
        self, space: EmbeddingSpace, content_hashes: pa.Array
    ) -> Generator[FoundVectors, None, None]:
        """Streams what `get` would find, in any order, in memory that does not grow with n.

        Close the iterator if you do not come to its end, and use the cache for nothing else before:
        it may be locked.

        Args:
            space: the embedding space.
            content_hashes: n distinct values of `CONTENT_HASH_TYPE`.
        """
        for start in range(0, len(content_hashes), _HASHES_PER_PAGE):
            answer = self.get(space, content_hashes.slice(start, _HASHES_PER_PAGE))
            rows = np.flatnonzero(answer.found)
            vectors = answer.vectors if len(rows) == len(answer.found) else answer.vectors[rows]
            yield FoundVectors(start + rows, vectors, answer.rejected)

    @abstractmethod
    def put(self, space: EmbeddingSpace, content_hashes: pa.Array, vectors: np.ndarray) -> None:
        """Stores vectors durably before it returns; what is there already is kept if valid.

        Args:
            space: the embedding space.
            content_hashes: n distinct values of `CONTENT_HASH_TYPE`.
            vectors: shape (n, dimension), float32.

        Raises:
            ValueError: the shape is not that of the hashes and the space.
        """

    @abstractmethod
    def statistics(self) -> list[SpaceStatistics]:
        """What is held and was asked for, by space.

        Raises:
            CacheUnavailableError: the cache cannot be reached.
        """

    @abstractmethod
    def lookups(self) -> list[Lookups]:
        """The look-ups by space and day, oldest first.

        Raises:
            CacheUnavailableError: the cache cannot be reached.
        """

    @abstractmethod
    def prune(
        self, retention: Retention, space_id: str | None = None, *, dry_run: bool = False
    ) -> list[Removed]:
        """Removes entries by age and size.

        Args:
            retention: what may stay.
            space_id: look at this space only.
            dry_run: remove nothing, only say what would be.

        Raises:
            CacheUnavailableError: the cache cannot be reached.
        """

    @abstractmethod
    def invalidate(
        self,
        content_hashes: pa.Array | None = None,
        space_id: str | None = None,
        *,
        dry_run: bool = False,
    ) -> list[Removed]:
        """Removes the entries of some hashes, of a space, or of some hashes in a space.

        Args:
            content_hashes: values of `CONTENT_HASH_TYPE`; None: all of the space.
            space_id: the space; None: the hashes in every space.
            dry_run: remove nothing, only say what would be.

        Raises:
            InvalidInputError: neither hashes nor a space were given.
            CacheUnavailableError: the cache cannot be reached.
        """

    def bytes_used(self) -> int | None:
        """What it takes on a disk of this machine; None: it is elsewhere."""
        return None

    def hasty(self) -> "EmbeddingCache":
        """The same entries, for somebody who would rather do without than wait for a lock."""
        return self

    def version(self) -> object:
        """Another value whenever something was written or removed; costs next to nothing.

        None: it cannot be told.
        """
        return None

    def key_filter(self, space: EmbeddingSpace) -> KeyFilter | None:  # noqa: ARG002
        """What is held now, where a look-up costs much more than to ask this; None: just look.

        Its size, and the time it takes, grow with the entries of the space.

        Raises:
            CacheUnavailableError: the cache cannot be reached.
        """
        return None

    @abstractmethod
    def spaces(self) -> list[EmbeddingSpace]:
        """The spaces that the cache holds vectors of."""

    @abstractmethod
    def scan(self, space: EmbeddingSpace) -> Iterator[tuple[pa.Array, np.ndarray]]:
        """Streams the valid entries of a space: distinct content hashes and their vectors.

        What is written meanwhile may be left out.

        Raises:
            CacheUnavailableError: the cache cannot be reached.
        """

    def faults(self) -> dict[str, int]:
        """What this resource could not do because its server failed; empty where there is none."""
        return {}

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        del context
        self.save_lookups()

    def save_lookups(self) -> None:
        """Adds the look-ups counted in this process to those that the cache keeps."""
        if counted := self._tally.drained():
            self._save_lookups(counted)

    def count_lookup(self, space: EmbeddingSpace, found: np.ndarray) -> None:
        """Counts one look-up of keys.

        Args:
            space: the embedding space.
            found: shape (n,), bool.
        """
        hits = int(np.count_nonzero(found))
        if self._tally.add(space.id, hits, len(found) - hits):
            self.save_lookups()

    @abstractmethod
    def _save_lookups(self, counted: Sequence[Lookups]) -> None:
        """Adds to the counts that are kept. Failing to is not worth a failed run."""


class _Tally:
    """Look-ups counted in this process and not yet saved."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, date, bool]] = Counter()
        self._saved = time.monotonic()

    def add(self, space_id: str, hits: int, misses: int) -> bool:
        """Returns whether it is time to save."""
        today = datetime.now(timezone.utc).date()
        with self._lock:
            self._counts[space_id, today, True] += hits
            self._counts[space_id, today, False] += misses
            return time.monotonic() - self._saved > _SECONDS_BETWEEN_SAVES

    def drained(self) -> list[Lookups]:
        with self._lock:
            counts, self._counts = self._counts, Counter()
            self._saved = time.monotonic()
        return [
            Lookups(space_id, day, counts[space_id, day, True], counts[space_id, day, False])
            for space_id, day in sorted({key[:2] for key in counts})
        ]


def copy_entries(
    source: EmbeddingCache,
    target: EmbeddingCache,
    space_id: str | None = None,
    advanced: Callable[[int], object] | None = None,
) -> int:
    """Copies vectors from cache to cache, a page at a time; what the target holds is kept.

    The age of a copied entry begins anew.

    Args:
        source: where to read.
        target: where to write.
        space_id: copy this space only.
        advanced: called with the number of entries after each page.

    Returns:
        The number of entries read and written.

    Raises:
        NotFoundError: the source holds nothing of that space.
        CacheUnavailableError: a cache cannot be reached, or the target did not store everything.
    """
    spaces = [space for space in source.spaces() if space_id in (None, space.id)]
    if space_id is not None and not spaces:
        raise NotFoundError(f"The cache holds no vectors of the space '{space_id}'.")
    copied = 0
    for space in spaces:
        for content_hashes, vectors in source.scan(space):
            target.put(space, content_hashes, vectors)
            if lost := target.faults().get("vectors_not_stored"):
                raise CacheUnavailableError(
                    f"The target did not store {lost} vectors after {copied} entries; see the "
                    "warning above. Copy again when it is well: what is there is kept."
                )
            copied += len(content_hashes)
            if advanced is not None:
                advanced(len(content_hashes))
    return copied


def no_vectors(space: EmbeddingSpace, count: int) -> CachedVectors:
    """The answer in which nothing was found."""
    vectors = np.zeros((count, space.dimension), dtype=np.float32)
    return CachedVectors(np.zeros(count, dtype=bool), vectors, 0)
