"""Dynamic batching: texts wait in a bounded queue, and go to the model as soon as it is free.

There is no lock. All of it runs on the event loop, but for the model's own calls, and whatever has
come while the model was busy is its next batch. A text that comes alone is sent alone, at once.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from embedding_assets.embeddings.stream import embed_each
from embedding_assets.service.errors import QueueFullError
from resources.embedders.base import HARMLESS_TEXT, Embedder, EmbeddingBatch, Role

_BATCH_SECONDS = 0.25
"""How long a batch should take at most: larger ones are hardly more efficient."""
_BESIDE_QUESTIONS = 3.5
"""How many times as long as a short text alone a batch of bulk should take, while there are
questions: each waits for one that is under way."""
_QUESTIONS_ARE_RECENT = 3.0
_FIRST_TOKENS_PER_SECOND = 2_000.0
"""Of one stream, while nothing is known of the speed."""
_LEARNING_RATE = 0.2
_GRACE = 0.1
"""Of the time that a batch takes."""
_WARM_UPS = 5


@dataclass(frozen=True)
class QueueLimits:
    """What may wait for the model.

    Attributes:
        texts: how many.
        tokens: how many, as estimated.
        seconds: who would have to wait longer before it is his turn is refused.
    """

    texts: int
    tokens: int
    seconds: float


@dataclass(eq=False, slots=True)
class TextJob:
    """One distinct text that somebody waits for.

    Attributes:
        text: in its canonical form.
        key: its content hash.
        role: which prompt goes before it.
        tokens: as estimated.
        is_question: goes before bulk.
        waiting: who is told, with the number of the text in his request.
        queued_at: when it began to wait for the model.
        is_started: whether it is with the model.
        is_dropped: nobody waits for it any more.
    """

    text: str
    key: bytes
    role: Role
    tokens: int
    is_question: bool
    waiting: list[tuple[Any, int]] = field(default_factory=list)
    queued_at: float = 0.0
    is_started: bool = False
    is_dropped: bool = False


@dataclass(frozen=True)
class Finished:
    """What became of a batch.

    Attributes:
        jobs: n of them.
        batch: their vectors; rows of failed ones are zero.
        errors: for each None, or a code and a sentence.
    """

    jobs: Sequence[TextJob]
    batch: EmbeddingBatch
    errors: Sequence[tuple[str, str] | None]


class BatchObserver(Protocol):
    """Is told of each batch, on the event loop."""

    def finished(self, finished: Finished, seconds: float, waited: Sequence[float]) -> None:
        """A batch is done: `seconds` with the model, and how long each text waited before."""

    def failed(self, jobs: Sequence[TextJob], error: BaseException) -> None:
        """The model failed, and none of the texts is at fault."""


class Batcher:
    """The queue before one model; all methods are for the event loop's thread."""

    def __init__(self, embedder: Embedder, limits: QueueLimits, observer: BatchObserver) -> None:
        self._embedder = embedder
        self._limits = limits
        self._observer = observer
        self._streams = max(1, embedder.streams)
        # One more than work at a time: the next batch is tokenized when one is done.
        self._pool = ThreadPoolExecutor(self._streams + 1, thread_name_prefix="embed")
        self._queues: dict[tuple[bool, Role], deque[TextJob]] = {}
        self._running = self._bulk_running = 0
        self._seconds_of_one = _BATCH_SECONDS
        self._seconds_of_batch = self._texts_of_batch = 0.0
        self._tokens_per_second = _FIRST_TOKENS_PER_SECOND
        self._last_question = -_QUESTIONS_ARE_RECENT
        self._timer: asyncio.Handle | None = None
        self.queued_texts = 0
        self.queued_tokens = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def warm_up(self) -> None:
        """Loads the model, and sees how long it takes for a short text; not on the event loop.

        Raises:
            EmbeddingError: it cannot be loaded, or its server does not answer.
        """
        for _ in range(_WARM_UPS if self._embedder.seconds_per_call is not None else 1):
            started = time.perf_counter()
            self._embedder.embed([HARMLESS_TEXT])
            self._seconds_of_one = min(self._seconds_of_one, time.perf_counter() - started)

    @property
    def running(self) -> int:
        """Batches that are with the model."""
        return self._running

    @property
    def seconds_to_wait(self) -> float:
        """How long what waits now will take."""
        return self.queued_tokens / (self._tokens_per_second * self._streams)

    def check_room(self, texts: int, tokens: int) -> None:
        """A request that is larger than the queue is taken when nothing waits.

        Raises:
            QueueFullError: so many texts and tokens cannot wait, too.
        """
        if not self.queued_texts:
            return
        speed = self._tokens_per_second * self._streams
        late = self.seconds_to_wait - self._limits.seconds
        tokens_over = self.queued_tokens + tokens - self._limits.tokens
        texts_over = self.queued_texts + texts - self._limits.texts
        if late > 0 or tokens_over > 0 or texts_over > 0:
            share = min(1.0, max(0, texts_over) / self.queued_texts)
            raise QueueFullError(max(late, tokens_over / speed, share * self.seconds_to_wait))

    def put(self, jobs: Sequence[TextJob]) -> None:
        """Lets texts wait for the model."""
        now = time.perf_counter()
        for job in jobs:
            job.queued_at = now
            self.queued_texts += 1
            self.queued_tokens += job.tokens
            self._queues.setdefault((job.is_question, job.role), deque()).append(job)
            if job.is_question:
                self._last_question = now
        self._schedule()

    def drop(self, job: TextJob) -> None:
        """Nobody waits for a text any more: if the model has not begun, it never will."""
        if job.queued_at and not job.is_started and not job.is_dropped:
            self.queued_texts -= 1
            self.queued_tokens -= job.tokens
        job.is_dropped = True

    async def drain(self) -> None:
        """Waits until nothing is queued or with the model."""
        while self.queued_texts or self._running:
            self._idle.clear()
            await self._idle.wait()

    def close(self) -> None:
        """Ends the threads; calls that are under way shall wait for nothing more."""
        if self._running:
            self._embedder.give_up()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _schedule(self) -> None:
        # Behind the other requests that have been read by now: they are one batch. Those whose
        # last answers have just been sent come within some milliseconds, and while the model works
        # on another batch, to begin with one or two of them would cost more than to wait for all.
        loop = asyncio.get_running_loop()
        if not self._running or self.queued_texts >= self._texts_of_batch:
            self._cancel_timer()
            self._timer = loop.call_soon(self._send)
        elif self._timer is None:
            self._timer = loop.call_later(_GRACE * self._seconds_of_batch, self._send)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send(self) -> None:
        self._cancel_timer()
        while jobs := self._next_batch():
            self._running += 1
            self._bulk_running += not jobs[0].is_question
            self._pool.submit(self._embed, jobs, asyncio.get_running_loop())
        if not self.queued_texts and not self._running:
            self._idle.set()

    def _next_batch(self) -> list[TextJob]:
        """What is sent now; nothing while the model has enough to do."""
        for is_question in (True, False):
            beside_questions = self._questions_are_recent()
            # The last place is for a question among bulk, which never waits for two batches of it.
            places = self._streams + (
                self._bulk_running > 0 if is_question else not beside_questions
            )
            if self._running >= places:
                continue
            queues = [queue for (first, _), queue in self._queues.items() if first == is_question]
            for queue in queues:
                while queue and queue[0].is_dropped:
                    queue.popleft()
            waiting = [queue for queue in queues if queue]
            if waiting:
                oldest = min(waiting, key=lambda queue: queue[0].queued_at)
                seconds = _BATCH_SECONDS
                if not is_question and beside_questions:
                    seconds = min(seconds, _BESIDE_QUESTIONS * self._seconds_of_one)
                return self._taken(oldest, seconds)
        return []

    def _questions_are_recent(self) -> bool:
        return time.perf_counter() - self._last_question < _QUESTIONS_ARE_RECENT

    def _taken(self, queue: deque[TextJob], seconds: float) -> list[TextJob]:
        budget = self._tokens_per_second * seconds
        if self._embedder.seconds_per_call is None:  # a call is a request: large ones are best
            texts = [job.text for job in queue if not job.is_dropped]
            most, budget = self._embedder.batches(texts)[0].stop, float("inf")
        else:
            most = len(queue)
            if self._running < self._streams:  # a part for each of those that are free
                most = -(-most // (self._streams - self._running))
        jobs: list[TextJob] = []
        while queue and len(jobs) < most:
            job = queue[0]
            if job.is_dropped:
                queue.popleft()
                continue
            budget -= job.tokens
            if jobs and budget < 0:
                break
            queue.popleft()
            job.is_started = True
            self.queued_texts -= 1
            self.queued_tokens -= job.tokens
            jobs.append(job)
        return jobs

    def _embed(self, jobs: list[TextJob], loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of the pool."""
        started = time.perf_counter()
        result: Finished | BaseException
        try:
            batch, errors = embed_each(
                self._embedder, [job.text for job in jobs], role=jobs[0].role
            )
            result = Finished(jobs, batch, errors)
        except BaseException as error:
            result = error
        loop.call_soon_threadsafe(self._done, jobs, result, started, time.perf_counter())

    def _done(
        self, jobs: list[TextJob], result: Finished | BaseException, started: float, ended: float
    ) -> None:
        self._running -= 1
        self._bulk_running -= not jobs[0].is_question
        if self.queued_texts >= self._texts_of_batch:
            self._send()  # the model shall not wait while answers are written
        else:
            self._schedule()
        if isinstance(result, Finished):
            self._texts_of_batch += _LEARNING_RATE * (len(jobs) - self._texts_of_batch)
            self._seconds_of_batch += _LEARNING_RATE * (ended - started - self._seconds_of_batch)
            tokens = sum(job.tokens for job in jobs)
            speed = tokens / max(ended - started, 1e-6)
            self._tokens_per_second += _LEARNING_RATE * (speed - self._tokens_per_second)
            waited = [started - job.queued_at for job in jobs]
            self._observer.finished(result, ended - started, waited)
        else:
            self._observer.failed(jobs, result)
