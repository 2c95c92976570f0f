"""The vectors of one embedding space: from memory, from the cache, or from the model.

Whatever is asked for is known by its content hash, as in the pipeline, so that an answer is the
vector which the pipeline has or would store. A text that several ask for at a time is embedded
once. The cache is read and written in threads of its own, many texts at once: the model never waits
for it, and nobody else for its lock.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

from embedding_assets.service.batching import Batcher, Finished, QueueLimits, TextJob
from embedding_assets.service.errors import ServiceError
from resources.caches.base import CachedVectors, EmbeddingCache
from resources.caches.key_filter import KeyFilter
from resources.caches.memory import VectorMemory
from resources.caches.vectors import hash_array
from resources.embedders.base import Embedder, Role
from resources.errors import EmbeddingError
from resources.identity.content_hash import canonical_text, content_hash, query_hash
from resources.machine import machine

_log = logging.getLogger(__name__)

_BYTES_PER_TOKEN = 4
_MOST_UNWRITTEN = 50_000
"""Vectors that wait for a cache which is locked; more are not kept, but counted."""
_TEXTS_PER_WRITE = 1_024
_SECONDS_BETWEEN_WRITES = 1.0
_FILTER_SHARE = 50
"""At most one part in so many of the memory is for the filter of keys, and of the time for making
it anew."""

_Result = TypeVar("_Result")
Failure = tuple[str, str]
"""A code and a sentence: why a text has no vector."""


class VectorObserver(Protocol):
    """Counts what happens; all methods are called on the event loop."""

    def batch(self, texts: int, tokens: int, seconds: float, waited: Sequence[float]) -> None:
        """The model has embedded a batch; `waited`: how long each text was queued, in seconds."""

    def looked_up(self, hits: int, misses: int, seconds: float) -> None:
        """The cache was asked; 0 seconds where memory or the filter of keys knew it."""

    def written(self, texts: int, seconds: float) -> None:
        """Vectors were put into the cache."""

    def failed(self, kind: str, texts: int) -> None:
        """Texts have no vector, or vectors were not stored."""


@dataclass(eq=False)
class VectorRequest:
    """n texts that somebody waits for.

    Attributes:
        vectors: shape (n, dimension), float32; rows of texts that failed are zero.
        cached: shape (n,), bool; whose vector was there already.
        tokens: shape (n,), int64; as the model counted them, or estimated where it did not work.
        failures: by the number of the text.
        done: set when no text is under way any more; an error of the model's is raised by it.
    """

    vectors: np.ndarray
    cached: np.ndarray
    tokens: np.ndarray
    failures: dict[int, Failure] = field(default_factory=dict)
    done: "asyncio.Future[None] | None" = None
    under_way: set[TextJob] = field(default_factory=set)

    def finish(self, job: TextJob, error: BaseException | None = None) -> None:
        self.under_way.discard(job)
        if self.done is None or self.done.done():
            return
        if error is not None:
            self.done.set_exception(error)
        elif not self.under_way:
            self.done.set_result(None)


class VectorServer:
    """Answers for the texts of one embedding space; all methods are for the event loop's thread."""

    def __init__(
        self,
        embedder: Embedder,
        cache: EmbeddingCache,
        memory: VectorMemory,
        limits: QueueLimits,
        observer: VectorObserver,
    ) -> None:
        self.embedder = embedder
        self.space = embedder.space
        self._cache, self._hasty_cache = cache, cache.hasty()
        self._memory = memory
        self._observer = observer
        self.batcher = Batcher(embedder, limits, self)
        self._jobs: dict[bytes, TextJob] = {}
        self._to_look_up: list[TextJob] = []
        self._is_looking_up = False
        self._unwritten: list[tuple[list[bytes], np.ndarray]] = []
        self._unwritten_texts = 0
        self._counted = [0, 0]
        self._filter: KeyFilter | None = None
        self._filter_due = 0.0
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="cache")
        self._writing: asyncio.Task[None] | None = None
        self._more_to_write = asyncio.Event()
        self.is_loaded = False
        self._users = 0

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for it, nor is about to ask."""
        return not self._users and not self._jobs

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Until the end somebody may ask it, though it is no longer served."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1

    async def start(self) -> None:
        """Loads the model and what tells the cache's keys, and begins to write to the cache.

        Raises:
            EmbeddingError: the model cannot be loaded, or the server of it does not answer.
        """
        if self._writing is None:  # not started before in vain
            self._writing = asyncio.create_task(self._write_for_ever())
        await self._in_thread(self._refresh_filter)
        await self._in_thread(self.batcher.warm_up)
        self.is_loaded = True

    async def stop(self) -> None:
        """Waits until all that was accepted is answered and written."""
        await self.batcher.drain()
        if self._writing is not None:
            self._writing.cancel()
        await self._write()
        await self._in_thread(self._cache.save_lookups)
        self.batcher.close()
        self._threads.shutdown(wait=False)

    def close(self) -> None:
        """Ends it at once, also while it is loaded; nobody has asked it for anything."""
        if self._writing is not None:
            self._writing.cancel()
        self.embedder.give_up()
        self.batcher.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def ask(self, texts: Sequence[str], role: Role, *, is_question: bool) -> VectorRequest:
        """Begins to find the vectors of n texts; `done` of the answer is None if all are there.

        Args:
            texts: in any form; what is embedded is the canonical one, as in the pipeline.
            role: which of the model's prompts goes before each.
            is_question: goes before bulk.

        Raises:
            QueueFullError: so many cannot wait for the model; none of them does.
        """
        keys, known, rows, failures = _keyed(texts, role)
        found = self._memory.get(self.space, keys)
        hits = int(np.count_nonzero(found.found))
        self._counted[0] += hits
        if hits == len(texts):
            return VectorRequest(found.vectors, found.found, np.zeros(hits, dtype=np.int64))
        request = VectorRequest(
            np.zeros((len(texts), self.space.dimension), dtype=np.float32),
            np.zeros(len(texts), dtype=bool),
            np.zeros(len(texts), dtype=np.int64),
            failures,
        )
        request.vectors[rows] = found.vectors
        request.cached[rows] = found.found
        request.tokens[rows] = [2 + len(text) // _BYTES_PER_TOKEN for text in known]
        missing = np.flatnonzero(~found.found).tolist()
        if missing:
            if not is_question:  # texts of like length, so that little is padded
                missing.sort(key=lambda i: -len(known[i]))
            self._begin(request, [(rows[i], keys[i], known[i]) for i in missing], role, is_question)
        return request

    def abandon(self, request: VectorRequest) -> None:
        """Nobody waits for the answer any more."""
        for job in list(request.under_way):
            job.waiting = [one for one in job.waiting if one[0] is not request]
            if not job.waiting and not job.is_started:
                self.batcher.drop(job)
                self._jobs.pop(job.key, None)
        request.under_way.clear()

    def _begin(
        self,
        request: VectorRequest,
        missing: Sequence[tuple[int, bytes, str]],
        role: Role,
        is_question: bool,
    ) -> None:
        new: dict[bytes, TextJob] = {}
        for row, key, text in missing:
            if key not in self._jobs and key not in new:
                tokens = int(request.tokens[row])
                new[key] = TextJob(text, key, role, tokens, is_question)
        if new:
            self.batcher.check_room(len(new), sum(job.tokens for job in new.values()))
            self._jobs |= new
        request.done = asyncio.get_running_loop().create_future()
        for row, key, _ in missing:
            job = self._jobs[key]
            job.waiting.append((request, row))
            request.under_way.add(job)
        if not new:
            return
        jobs = list(new.values())
        keys = self._filter
        if keys is not None and keys.version == self._hasty_cache.version():
            held = keys.may_hold([job.key for job in jobs]).tolist()
            unknown = [job for job, may in zip(jobs, held, strict=True) if not may]
            jobs = [job for job, may in zip(jobs, held, strict=True) if may]
            if unknown:
                self._counted[1] += len(unknown)
                self._observer.looked_up(0, len(unknown), 0.0)
                self.batcher.put(unknown)
        if jobs:
            self._to_look_up += jobs
            if not self._is_looking_up:
                self._is_looking_up = True
                self._task(self._look_up())

    async def _look_up(self) -> None:
        """Asks the cache for all that has come meanwhile, until nothing has."""
        try:
            while self._to_look_up:
                jobs, self._to_look_up = self._to_look_up, []
                started = time.perf_counter()
                answer = await self._in_thread(lambda jobs=jobs: self._read(jobs))
                seconds = time.perf_counter() - started
                if answer is None:
                    self._observer.failed("cache_unavailable", len(jobs))
                    self.batcher.put([job for job in jobs if not job.is_dropped])
                    continue
                hits = int(np.count_nonzero(answer.found))
                self._observer.looked_up(hits, len(jobs) - hits, seconds)
                held = [job for job, is_held in zip(jobs, answer.found, strict=True) if is_held]
                if held:
                    self._answer(held, answer.vectors[answer.found], cached=True)
                rest = [job for job, is_held in zip(jobs, answer.found, strict=True) if not is_held]
                self.batcher.put([job for job in rest if not job.is_dropped])
        finally:
            self._is_looking_up = False

    def _read(self, jobs: Sequence[TextJob]) -> CachedVectors | None:
        """In a thread: what the cache has; None if it cannot be read now."""
        try:
            answer = self._hasty_cache.get(self.space, hash_array([job.key for job in jobs]))
        except Exception as error:
            _log.warning("The cache was not asked, its texts are embedded: %s", error)
            return None
        if self._filter is not None and time.monotonic() >= self._filter_due:
            self._refresh_filter()
        return answer

    def _refresh_filter(self) -> None:
        """In a thread."""
        started = time.monotonic()
        try:
            found = self._hasty_cache.key_filter(self.space)
        except Exception as error:
            _log.warning("The keys of the cache were not read: %s", error)
            found = None
        if found is not None and found.prefixes.nbytes > machine().memory // _FILTER_SHARE:
            found = None
        self._filter = found
        self._filter_due = time.monotonic() + _FILTER_SHARE * (time.monotonic() - started)

    # --- What the batcher tells -------------------------------------------------------------------

    def finished(self, finished: Finished, seconds: float, waited: Sequence[float]) -> None:
        jobs, batch = finished.jobs, finished.batch
        self._observer.batch(len(jobs), int(batch.tokens.sum()), seconds, waited)
        for job, tokens in zip(jobs, batch.tokens.tolist(), strict=True):
            for request, row in job.waiting:
                request.tokens[row] = tokens
        whole = [row for row, error in enumerate(finished.errors) if error is None]
        good = [jobs[row] for row in whole]
        vectors = batch.vectors if len(whole) == len(jobs) else batch.vectors[whole]
        if good:
            self._answer(good, vectors, cached=False)
            self._keep([job.key for job in good], vectors)
        for job, error in zip(jobs, finished.errors, strict=True):
            if error is not None:
                self._observer.failed(error[0], 1)
                self._jobs.pop(job.key, None)
                for request, row in job.waiting:
                    request.failures[row] = error
                    request.finish(job)

    def failed(self, jobs: Sequence[TextJob], error: BaseException) -> None:
        self._observer.failed("model_failed", len(jobs))
        if isinstance(error, EmbeddingError):
            told = ServiceError(503, "model_unavailable", str(error), retry_after=1.0)
        else:
            _log.error("The model failed", exc_info=error)
            told = ServiceError(500, "internal", "The model failed; the server's log says why.")
        for job in jobs:
            self._jobs.pop(job.key, None)
            for request, _ in job.waiting:
                request.finish(job, told)

    def _answer(self, jobs: Sequence[TextJob], vectors: np.ndarray, *, cached: bool) -> None:
        self._memory.put(self.space, [job.key for job in jobs], vectors)
        for job, vector in zip(jobs, vectors, strict=True):
            self._jobs.pop(job.key, None)
            for request, row in job.waiting:
                request.vectors[row] = vector
                request.cached[row] = cached
                request.finish(job)

    # --- Writing ----------------------------------------------------------------------------------

    def _keep(self, keys: list[bytes], vectors: np.ndarray) -> None:
        if self._unwritten_texts >= _MOST_UNWRITTEN:
            self._observer.failed("not_stored", len(keys))
            return
        self._unwritten.append((keys, vectors))
        self._unwritten_texts += len(keys)
        if self._unwritten_texts >= _TEXTS_PER_WRITE:
            self._more_to_write.set()

    async def _write_for_ever(self) -> None:
        while True:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._more_to_write.wait(), _SECONDS_BETWEEN_WRITES)
            self._more_to_write.clear()
            await asyncio.shield(self._task(self._write()))

    async def _write(self) -> None:
        counted, self._counted = self._counted, [0, 0]
        unwritten, self._unwritten = self._unwritten, []
        if not unwritten and not any(counted):
            return
        keys = [key for some, _ in unwritten for key in some]
        started = time.perf_counter()
        stored = await self._in_thread(lambda: self._put(keys, unwritten, counted))
        self._unwritten_texts -= len(keys)
        if stored:
            self._observer.written(len(keys), time.perf_counter() - started)
        else:
            self._observer.failed("not_stored", len(keys))

    def _put(
        self,
        keys: list[bytes],
        unwritten: Sequence[tuple[list[bytes], np.ndarray]],
        counted: Sequence[int],
    ) -> bool:
        """In a thread."""
        cache = self._cache
        try:
            if any(counted):
                cache.count_lookup(self.space, np.arange(sum(counted)) < counted[0])
            if keys:
                before, known = cache.version(), self._filter
                vectors = np.concatenate([vectors for _, vectors in unwritten])
                cache.put(self.space, hash_array(keys), vectors)
                if known is not None and known.version == before:
                    self._filter = known.with_keys(keys, cache.version())
            return True
        except Exception as error:
            _log.warning("%d vectors were not stored in the cache: %s", len(keys), error)
            return False

    async def _in_thread(self, act: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, act)

    def _task(self, awaitable: "Awaitable[None]") -> "asyncio.Task[None]":
        task = asyncio.ensure_future(awaitable)
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
        return task


def _keyed(
    texts: Sequence[str], role: Role
) -> tuple[list[bytes], list[str], list[int], dict[int, Failure]]:
    """Keys, canonical forms and numbers of the texts that have one, and why others have none."""
    hash_of = query_hash if role == "query" else content_hash
    keys, known, rows = [], [], []
    failures: dict[int, Failure] = {}
    for row, text in enumerate(texts):
        canonical = canonical_text(text)
        if not canonical:
            failures[row] = ("empty_text", "There is nothing but white space in it.")
            continue
        try:
            keys.append(hash_of(canonical))
        except UnicodeEncodeError:
            failures[row] = ("invalid_text", "It holds half of a surrogate pair.")
            continue
        known.append(canonical)
        rows.append(row)
    return keys, known, rows, failures


_tasks: "set[asyncio.Future[None]]" = set()
"""The loop itself holds its tasks only weakly."""
