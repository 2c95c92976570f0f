"""Bulk jobs: a file, a URL or a list of texts comes in, and the vectors are fetched later."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import FastAPI, Request, Response
from starlette.responses import StreamingResponse

from embedding_assets.bulk.jobs import Job, Jobs, Standing, new_id
from embedding_assets.service.access import Access
from embedding_assets.service.errors import ServiceError
from embedding_assets.service.http import (
    body_to_file,
    check_texts,
    json_response,
    parsed,
    parsed_query,
    read_body,
)
from embedding_assets.service.openapi import described, described_upload, errors
from embedding_assets.service.schemas import EmbeddingJob, EmbeddingJobs, JobOptions, JobRequest
from embedding_assets.service.service import Service
from resources.document_sources.formats.registry import FileFormat

if TYPE_CHECKING:
    from embedding_assets.bulk.queue import JobQueue

SCOPE = "embed"
_FORMATS = {
    "application/jsonl": FileFormat.jsonl,
    "application/x-jsonlines": FileFormat.jsonl,
    "application/x-ndjson": FileFormat.jsonl,
    "text/csv": FileFormat.csv,
    "application/vnd.apache.parquet": FileFormat.parquet,
}
_MEDIA_TYPES = {
    "parquet": "application/vnd.apache.parquet",
    "jsonl": "application/x-ndjson",
}
_PIECE = 1 << 20


def add_job_routes(
    app: FastAPI, service: Service, access: Access, queue: "JobQueue | None"
) -> None:
    """Adds the endpoints of bulk jobs; without a queue they say what is missing."""
    routes, tags = _JobRoutes(service, access, queue), ["Bulk jobs"]
    shown: dict[str, Any] = {"tags": tags, "responses": errors()}
    upload = described_upload(described(JobRequest, EmbeddingJob), JobOptions, _FORMATS)
    app.post("/jobs", tags=[*tags], status_code=202, **upload)(routes.create)
    app.get("/jobs", response_model=EmbeddingJobs, **shown)(routes.all)
    app.get("/jobs/{job_id}", response_model=EmbeddingJob, **shown)(routes.one)
    app.get("/jobs/{job_id}/result", response_class=StreamingResponse, **shown)(routes.result)
    app.post("/jobs/{job_id}/resume", status_code=202, response_model=EmbeddingJob, **shown)(
        routes.resume
    )
    app.delete("/jobs/{job_id}", response_model=EmbeddingJob, **shown)(routes.delete)


class _JobRoutes:
    def __init__(self, service: Service, access: Access, queue: "JobQueue | None") -> None:
        self._service = service
        self._settings = service.settings
        self._access = access
        self._given = queue

    async def create(self, request: Request) -> Response:
        """Embed a file, what a URL names, or a list of texts, and fetch the vectors later.

        The body is the file itself, with its media type and what else there is to say in the query;
        or it is JSON, with `texts` or a `url`.
        """
        self._access.identify(request, SCOPE)
        queue = self._queue
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        job_id = new_id()
        with ExitStack() as opened:
            if media_type in _FORMATS:
                asked = JobRequest(
                    **parsed_query(JobOptions, request).model_dump(), format=_FORMATS[media_type]
                )
                job = await self._job(request, job_id, asked, [])
                file = Path(opened.enter_context(tempfile.TemporaryDirectory())) / "input"
                await body_to_file(request, file, self._settings)
            else:
                asked = parsed(JobRequest, await read_body(request, self._settings))
                texts = asked.texts or []
                check_texts(texts, "texts", self._settings)
                self._check_source(asked)
                job = await self._job(request, job_id, asked, texts)
                file = None
                if asked.url is None:
                    file = Path(opened.enter_context(tempfile.TemporaryDirectory())) / "input"
                    file.write_bytes(b"".join(map(_line, range(len(texts)), texts)))
                    job.format, job.id_field, job.text_field = FileFormat.jsonl, "id", "text"
            await self._service.in_thread(lambda: _begin(queue, job, file))
        return self._shown(job, Standing(state="waiting"), 202)

    async def all(self, request: Request) -> Response:
        """Your bulk jobs, the newest first."""
        self._access.identify(request, SCOPE)
        jobs, may_see = self._queue.jobs, self._may_see(request)
        found = await self._service.in_thread(lambda: _of(jobs, may_see))
        found.sort(key=lambda each: each[0].created_at, reverse=True)
        return json_response({"jobs": [_as_json(job, standing) for job, standing in found]})

    async def one(self, request: Request, job_id: str) -> Response:
        """How far a bulk job is."""
        job = await self._job_of(request, job_id)
        return self._shown(job, await self._standing(job_id))

    async def result(self, request: Request, job_id: str) -> Response:
        """The vectors of a bulk job that is done, in the order of its records.

        Parquet has the columns record, id, embedding, cached, code and error; JSON Lines the same,
        but for the number of the record. Where `code` is not null there is no vector.
        """
        job = await self._job_of(request, job_id)
        standing = await self._standing(job_id)
        if standing.state != "done" or standing.ending is None:
            raise ServiceError(
                409,
                "job_not_done",
                f"The job is not done, but {standing.state}: there is no result.",
            )
        name = f"{job_id}.{job.result}"
        return StreamingResponse(
            _pieces(self._queue.jobs, job_id),
            headers={
                "Content-Length": str(standing.ending.bytes),
                "Content-Disposition": f'attachment; filename="{name}"',
            },
            media_type=_MEDIA_TYPES[job.result],
        )

    async def resume(self, request: Request, job_id: str) -> Response:
        """Let a bulk job that failed, was cancelled or stands still go on where it stands."""
        job = await self._job_of(request, job_id)
        queue = self._queue
        standing = await self._standing(job_id)
        if standing.state != "done":
            await self._service.in_thread(lambda: _reopen(queue, job_id))
            standing = await self._standing(job_id)
        return self._shown(job, standing, 202)

    async def delete(self, request: Request, job_id: str) -> Response:
        """Cancel a bulk job; one that has ended is removed, with its result."""
        job = await self._job_of(request, job_id)
        jobs = self._queue.jobs
        standing = await self._standing(job_id)
        if standing.ending is not None:
            await self._service.in_thread(lambda: jobs.remove(job_id))
            return Response(status_code=204)
        await self._service.in_thread(lambda: jobs.cancel(job_id))
        return self._shown(job, await self._standing(job_id))

    # ----------------------------------------------------------------------------------------------

    @property
    def _queue(self) -> "JobQueue":
        if self._given is None:
            raise ServiceError(
                503,
                "jobs_not_set_up",
                "There is no queue for bulk jobs. Whoever runs this service sets EMBEDDING_BROKER "
                "to redis://… and starts `embedding-assets worker` (extra `jobs`).",
            )
        return self._given

    async def _job(
        self, request: Request, job_id: str, asked: JobRequest, texts: Sequence[str]
    ) -> Job:
        server = self._service.server_for(asked.collection, asked.model)
        collection = asked.collection or self._service.collection_of(server)
        await self._access.take(request, texts)
        key = request.state.key
        owner = None if key is None else key.id
        await self._check_number(owner)
        return Job(
            id=job_id,
            owner=owner,
            collection=collection,
            space=server.space.id,
            role=asked.role,
            url=asked.url,
            format=asked.format,
            id_field=asked.id_field,
            text_field=asked.text_field,
            result=asked.result,
            max_bytes=self._settings.job_bytes,
            created_at=datetime.now(timezone.utc),
        )

    async def _check_number(self, owner: str | None) -> None:
        jobs, most = self._queue.jobs, self._settings.jobs_per_client
        found = await self._service.in_thread(lambda: _of(jobs, lambda job: job.owner == owner))
        if sum(standing.ending is None for _, standing in found) >= most:
            raise ServiceError(
                429,
                "too_many_jobs",
                f"{most} bulk jobs are under way, which is the limit: wait for one, or cancel one.",
                retry_after=30.0,
            )

    def _check_source(self, asked: JobRequest) -> None:
        if (asked.url is None) == (asked.texts is None):
            raise ServiceError(
                422, "texts_or_url", "A job has either `texts` or a `url`.", field="texts"
            )
        if asked.url is not None and not self._settings.may_read(asked.url):
            raise ServiceError(
                403,
                "url_not_permitted",
                "This service reads no such URL: whoever runs it names in EMBEDDING_SERVE_JOB_URLS "
                "what it may read. Send the file itself instead.",
                field="url",
            )

    async def _job_of(self, request: Request, job_id: str) -> Job:
        self._access.identify(request, SCOPE)
        jobs = self._queue.jobs
        job = await self._service.in_thread(lambda: jobs.find(job_id))
        if job is None or not self._may_see(request)(job):
            raise ServiceError(404, "job_not_found", "There is no such job.", field="job_id")
        return job

    def _may_see(self, request: Request) -> Callable[[Job], bool]:
        key = request.state.key
        return lambda job: key is None or job.owner == key.id or key.allows("all")

    async def _standing(self, job_id: str) -> Standing:
        jobs = self._queue.jobs
        return await self._service.in_thread(lambda: jobs.standing(job_id))

    @staticmethod
    def _shown(job: Job, standing: Standing, status: int = 200) -> Response:
        return json_response(
            _as_json(job, standing),
            status,
            {"Location": f"/jobs/{job.id}"} if status == 202 else {},
        )


def _begin(queue: "JobQueue", job: Job, file: Path | None) -> None:
    """In a thread: keeps the file and the job, and sends it."""
    if file is not None:
        with queue.jobs.store.writing(f"{job.id}/input") as path:
            shutil.copyfile(file, path)
    queue.jobs.create(job)
    _send(queue, job.id)


def _reopen(queue: "JobQueue", job_id: str) -> None:
    queue.jobs.reopen(job_id)
    _send(queue, job_id)


def _send(queue: "JobQueue", job_id: str) -> None:
    from kombu.exceptions import OperationalError

    try:
        queue.send(job_id)
    except OperationalError:
        raise ServiceError(
            503,
            "broker_unavailable",
            "The queue of bulk jobs cannot be reached. The job is kept: POST "
            f"/jobs/{job_id}/resume when it is back.",
            retry_after=5.0,
        ) from None


def _of(jobs: Jobs, may_see: Callable[[Job], bool]) -> list[tuple[Job, Standing]]:
    """In a thread: the jobs that somebody may see."""
    found = [job for job in map(jobs.find, jobs.ids()) if job is not None and may_see(job)]
    return [(job, jobs.standing(job.id)) for job in found]


def _pieces(jobs: Jobs, job_id: str) -> Iterator[bytes]:
    """In threads: a result, piece by piece."""
    with jobs.store.reading(f"{job_id}/result") as path, path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def _line(number: int, text: str) -> bytes:
    try:
        return orjson.dumps({"id": str(number), "text": text}, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # half of a surrogate pair
        raise ServiceError(
            422, "invalid_text", "It holds half of a surrogate pair.", field=f"texts.{number}"
        ) from None


def _as_json(job: Job, standing: Standing) -> dict[str, Any]:
    ending = standing.ending
    return {
        "id": job.id,
        "state": standing.state,
        "collection": job.collection,
        "role": job.role,
        "records": standing.records,
        "embedded": standing.embedded,
        "cached": ending.cached if ending and standing.state == "done" else None,
        "failed": ending.failed if ending and standing.state == "done" else None,
        "message": ending.message if ending else None,
        "created_at": job.created_at.isoformat(),
        "result": f"/jobs/{job.id}/result" if standing.state == "done" else None,
    }
