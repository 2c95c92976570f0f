"""Bulk jobs on Celery: the service sends tasks, `embedding-assets worker` works on them.

A message holds the id of a job and the number of a part, as JSON, and nothing else. It is
acknowledged when its task is done, so that Redis gives it to another worker if that one is killed.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from celery import Celery, Task
from celery.exceptions import Retry
from celery.signals import worker_ready
from kombu.exceptions import OperationalError

from embedding_assets.api import Collection, loaded
from embedding_assets.bulk.jobs import Ending, Job, Jobs, jobs_of
from embedding_assets.bulk.work import embed_part, read_input, write_result
from embedding_assets.collection.environment import read_environment
from resources.artifact_stores.base import ArtifactNotFoundError
from resources.document_sources.base import SourceNotFoundError
from resources.errors import EmbeddingAssetsError, EmbeddingError, InvalidInputError
from resources.redis_client import client_of

_log = logging.getLogger(__name__)

QUEUE = "embedding-jobs"
_VISIBILITY_SECONDS = 600
"""After so long Redis gives the task of a worker that died to another: longer than a part takes."""
_CONNECT_SECONDS = 2.0
_MOST_TRIES = 8
_MOST_SECONDS_BETWEEN_TRIES = 120
_MOST_DEATHS = 3
_PING_SECONDS = 2.0
_SECONDS_BETWEEN_LOOKS = 600.0


class JobQueue:
    """Sends tasks, and runs those who work on them.

    Args:
        url: of the Redis that is the broker.
        jobs: what is known of them.
        find: a collection by name, as it is defined now; None if there is no such.
    """

    def __init__(
        self, url: str, jobs: Jobs, find: Callable[[str], Collection | None] | None = None
    ) -> None:
        self.jobs = jobs
        self.app = _application(url)
        self._tasks = _Tasks(self, find or _defined)
        for name, act in {
            "read": self._tasks.read,
            "embed": self._tasks.embed,
            "write": self._tasks.write,
        }.items():
            # Without typing: it takes `self` of a method for an argument.
            self.app.task(act, name=name, typing=False, shared=False, max_retries=_MOST_TRIES)

    def send(self, job_id: str) -> None:
        """Lets a job begin, or go on where it stands.

        Raises:
            OperationalError: of kombu: the broker cannot be reached.
        """
        self.put("read", job_id)

    def put(self, task: str, *arguments: Any) -> None:
        """Sends one task."""
        self.app.send_task(task, arguments, retry=False)

    def work(self, days: float) -> None:
        """Works on tasks, one at a time, until SIGTERM or SIGINT; then it ends what it has begun.

        More workers are more processes: each has the model once, on all cores of its machine.

        Args:
            days: older jobs are removed, now and every ten minutes.
        """
        self.jobs.remove_older_than(days)
        threading.Thread(target=self._keep, args=(days,), daemon=True).start()
        worker_ready.connect(self._resume, weak=False)
        # With threads the worker answers others while it embeds.
        self.app.Worker(
            pool="threads",
            concurrency=1,
            hostname=f"{os.getpid()}{_here()}",
            loglevel="WARNING",
            quiet=True,
        ).start()

    def is_worker_alive(self) -> bool:
        """Whether one on this machine answers, over the broker."""
        try:
            return any(name.endswith(_here()) for name in self._alive())
        except OperationalError:
            return False

    def _alive(self) -> set[str]:
        return set(self.app.control.inspect(timeout=_PING_SECONDS).ping() or {})

    def _resume(self, sender: Any, **_: Any) -> None:
        """What was lost with a worker's machine, or with the broker's memory, is sent again."""
        if self._alive() - {sender.hostname}:
            return  # theirs, perhaps
        self._send_unfinished()

    def _keep(self, days: float) -> None:
        """In a thread of a worker, as long as it runs."""
        while True:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            try:
                self.look_after(days)
            except Exception as error:  # the next time it may work
                _log.warning("The jobs were not looked after: %s", error)

    def look_after(self, days: float) -> None:
        """Removes older jobs, and sends again those that wait for a message which there is not."""
        self.jobs.remove_older_than(days)
        if self.is_empty():
            self._send_unfinished()

    def is_empty(self) -> bool:
        """Whether nothing was sent but what is done."""
        with self.app.connection_for_write() as connection:
            channel = connection.default_channel
            return not (channel.client.llen(QUEUE) or channel.client.hlen(channel.unacked_key))

    def _send_unfinished(self) -> None:
        for job_id in self.jobs.unfinished():
            _log.warning("The job %s goes on.", job_id)
            self.send(job_id)


class _Tasks:
    """What the messages mean. Each may come twice, or late, and then finds that it is done."""

    def __init__(self, queue: JobQueue, find: Callable[[str], Collection | None]) -> None:
        self._queue = queue
        self._find = find
        self._jobs = queue.jobs
        self._collections: dict[str, Collection] = {}

    def read(self, job_id: str) -> None:
        """Cuts a job into parts, unless that was done, and sends those that nobody has finished."""
        with self._job(job_id) as job:
            if job is None:
                return
            if not self._jobs.was_read(job_id):
                read_input(self._jobs, job)
            missing = self._jobs.missing_parts(job_id)
            for part in missing:
                self._queue.put("embed", job_id, part)
            if not missing:
                self._queue.put("write", job_id)

    def embed(self, job_id: str, part: int) -> None:
        """Embeds one part; who finishes the last one sends for the result."""
        with self._job(job_id) as job:
            if job is None:
                return
            if part in self._jobs.missing_parts(job_id):
                begun = self._jobs.begin_part(job_id, part)
                if begun >= _MOST_DEATHS:
                    raise InvalidInputError(
                        f"Part {part} has ended {_MOST_DEATHS} workers: perhaps they have too "
                        "little memory for its texts."
                    )
                try:
                    embed_part(self._jobs, job, part, self._collection(job))
                except Exception:
                    self._jobs.forget_beginning(job_id, part, begun)  # this worker is alive
                    raise
            if not self._jobs.missing_parts(job_id):
                self._queue.put("write", job_id)

    def write(self, job_id: str) -> None:
        """Joins all parts."""
        with self._job(job_id) as job:
            if job is not None:
                write_result(self._jobs, job)

    def _job(self, job_id: str) -> "_Outcome":
        return _Outcome(self._jobs, self._task, job_id)

    @property
    def _task(self) -> "Task[Any, Any]":
        return cast("Task[Any, Any]", self._queue.app.current_task)

    def _collection(self, job: Job) -> Collection:
        """What embeds a job, with its model kept from one part to the next.

        Raises:
            InvalidInputError: it is not there any more, or its model is another now.
        """
        known = self._collections.get(job.collection)
        if known is None or known.resources.embedder.space.id != job.space:
            known = self._find(job.collection)
            if known is None or known.resources.embedder.space.id != job.space:
                raise InvalidInputError(
                    f"The collection '{job.collection}' is gone, or its model is not the one that "
                    "was asked for: send the job again."
                )
            self._collections[job.collection] = known
        return known


class _Outcome:
    """Gives a task its job unless that has ended; a failure is tried again, or ends the job."""

    def __init__(self, jobs: Jobs, task: "Task[Any, Any]", job_id: str) -> None:
        self._jobs = jobs
        self._task = task
        self._job_id = job_id

    def __enter__(self) -> Job | None:
        try:
            return None if self._jobs.has_ended(self._job_id) else self._jobs.find(self._job_id)
        except Exception as error:  # the storage is away
            raise self._next_try(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> bool:
        if error is not None and not isinstance(error, Exception):
            return False
        try:
            self._jobs.sweep(self._job_id)
            if error is None or self._jobs.has_ended(self._job_id):  # cancelled meanwhile
                return True
            is_ours = isinstance(error, EmbeddingAssetsError)
            is_final = is_ours and not isinstance(error, EmbeddingError)
            if is_final or self._task.request.retries >= _MOST_TRIES:
                _log.error("The job %s failed", self._job_id, exc_info=None if is_final else error)
                self._jobs.end(self._job_id, "failed", Ending(message=_told(error)))
                return True
        except Exception as another:  # the storage is away
            error = another
        raise self._next_try(error) from error

    def _next_try(self, error: Exception) -> Retry:
        """What tells Celery of it; after the last one this raises the error itself."""
        _log.warning("The job %s is tried again: %s", self._job_id, error)
        seconds = min(2 ** (self._task.request.retries + 1), _MOST_SECONDS_BETWEEN_TRIES)
        return self._task.retry(countdown=seconds, exc=error, throw=False)


def _told(error: Exception) -> str:
    """Why a job failed, for whoever sent it: nothing of the worker's own folders."""
    if isinstance(error, ArtifactNotFoundError):
        return "A file of the job is gone: send it again."
    if isinstance(error, SourceNotFoundError):
        return "There is nothing to read where the URL leads."
    if isinstance(error, EmbeddingAssetsError):
        return str(error)
    return f"{type(error).__name__}; the worker's log says why."


def _defined(name: str) -> Collection | None:
    """A collection as the project's files define it now.

    Raises:
        EmbeddingError: it is not there, but may be in a file that is broken.
    """
    found, broken = loaded(name)
    if name not in found and broken:
        raise EmbeddingError(f"The collection '{name}' cannot be loaded: {'; '.join(broken)}")
    return found.get(name)


def _here() -> str:
    """The end of the names of this machine's workers."""
    return f"@{socket.gethostname()}"


def _application(url: str) -> Celery:
    app = Celery("embedding-assets", broker=url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_default_queue=QUEUE,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=True,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            # Not those of others on the same Redis: each worker gives back what any has held for
            # as long as its own setting says.
            "global_keyprefix": f"{QUEUE}:",
            "visibility_timeout": _VISIBILITY_SECONDS,
            "socket_connect_timeout": _CONNECT_SECONDS,
            "socket_timeout": 4 * _CONNECT_SECONDS,
            "socket_keepalive": True,
        },
    )
    return app


def project_queue() -> JobQueue | None:
    """The queue of the project around the working directory; None if its environment names none.

    Raises:
        InvalidInputError: the environment names a broker or a folder that cannot be.
    """
    environment = read_environment()
    if environment.broker is None:
        return None
    client_of("EMBEDDING_BROKER", environment.broker, _CONNECT_SECONDS).close()
    return JobQueue(environment.broker, jobs_of(environment))
