"""Bulk jobs, over HTTP, with a real Redis and a real worker of Celery's."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from celery.contrib.testing.worker import start_worker

from embedding_assets.bulk import queue as queues
from embedding_assets.bulk import work
from embedding_assets.bulk.jobs import Job, Jobs, new_id
from embedding_assets.bulk.queue import JobQueue
from embedding_assets.service.keys import create_key
from resources.artifact_stores.files import FileArtifactStore
from resources.embedders.base import HARMLESS_TEXT
from resources.errors import EmbeddingError
from resources.limits.quota import Quota
from tests.service.test_embeddings import pipeline
from tests.support.fakes import POISON, CountingEmbedder
from tests.support.pipeline import Pipeline
from tests.support.redis_server import RedisServer
from tests.support.service import GatedEmbedder, RunningService, wait_until

celery_worker = cast(Callable[..., AbstractContextManager[Any]], start_worker)
JSONL = "application/x-ndjson"
TEXTS = ["The cat sleeps.", "The train leaves at half past eight.", "Norðurljós"]


@dataclass
class Bulk:
    """A service with a queue, and what its worker knows."""

    service: RunningService
    queue: JobQueue
    pipeline: Pipeline

    def post(self, body: bytes, media_type: str = JSONL, **query: str) -> httpx.Response:
        headers = {"Content-Type": media_type}
        return self.service.client.post("/jobs", params=query, headers=headers, content=body)

    def ended(self, answer: httpx.Response) -> dict[str, Any]:
        """The job that an answer tells of, when it has ended."""
        assert answer.status_code == 202, answer.text
        wait_until(lambda: self.job(answer)["state"] not in ("waiting", "embedding"))
        return self.job(answer)

    def job(self, answer: httpx.Response) -> dict[str, Any]:
        return self.service.client.get(answer.headers["Location"]).json()

    @property
    def embedded(self) -> list[str]:
        """Texts that went to the model, but for those that try it, sorted."""
        return sorted(text for text in self.pipeline.embedder.texts if text != HARMLESS_TEXT)

    def rows(self, job: dict[str, Any]) -> list[dict[str, Any]]:
        """Of a result in JSON Lines."""
        lines = self.service.client.get(job["result"]).text.splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def bulk(tmp_path: Path, redis_server: RedisServer) -> Iterator[Bulk]:
    redis_server.client().flushall()
    made = pipeline(tmp_path, embedder=GatedEmbedder())
    jobs = Jobs(FileArtifactStore(url=str(tmp_path / "jobs")))
    queue = JobQueue(redis_server.url, jobs, lambda name: {"corpus": made.opened}.get(name))
    allowed = f"{tmp_path}/archive/"
    with (
        RunningService(
            made.opened, folder=tmp_path, queue=queue, job_urls=allowed, jobs_per_client=3
        ) as service,
        celery_worker(queue.app, pool="threads", perform_ping_check=False),
    ):
        yield Bulk(service, queue, made)


def jsonl(texts: Sequence[str]) -> bytes:
    records = ({"id": f"n{number}", "text": text} for number, text in enumerate(texts))
    return "\n".join(map(json.dumps, records)).encode()


def as_csv(texts: Sequence[str]) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows([("id", "text"), *((f"n{n}", t) for n, t in enumerate(texts))])
    return file.getvalue().encode()


def as_parquet(texts: Sequence[str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"id": [f"n{n}" for n in range(len(texts))], "text": texts}), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("media_type", "encode"),
    [
        (JSONL, jsonl),
        ("text/csv; charset=utf-8", as_csv),
        ("application/vnd.apache.parquet", as_parquet),
    ],
)
def test_the_vectors_of_a_file_are_those_that_a_request_gets(
    bulk: Bulk, media_type: str, encode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_RECORDS_OF_PART", 2)
    job = bulk.ended(bulk.post(encode([*TEXTS, TEXTS[0]]), media_type))
    assert job["state"] == "done"
    assert (job["records"], job["embedded"], job["failed"]) == (4, 4, 0)
    answer = bulk.service.client.get(job["result"])
    assert answer.headers["Content-Length"] == str(len(answer.content))
    table = pq.read_table(io.BytesIO(answer.content))
    assert table["record"].to_pylist() == [0, 1, 2, 3]
    assert table["id"].to_pylist() == ["n0", "n1", "n2", "n3"]
    vectors = np.stack(table["embedding"].to_numpy())
    answered = bulk.service.post("/embed/batch", texts=[*TEXTS, TEXTS[0]]).json()
    assert answered["cached_count"] == 4
    assert (vectors == np.array(answered["embeddings"], dtype=np.float32)).all()
    assert bulk.embedded == sorted(TEXTS)
    said = table.schema.metadata
    assert said[b"space"].decode() == bulk.pipeline.embedder.space.id


def test_what_cannot_be_embedded_stands_in_the_result_with_its_reason(bulk: Bulk) -> None:
    lines = [
        b'{"id": "good", "text": "The cat sleeps."}',
        b"{broken",
        b'{"id": "empty", "text": " "}',
        json.dumps({"id": "poison", "text": POISON}).encode(),
        b'{"text": "No id."}',
        b'{"id": "surrogate", "text": "\\ud800"}',
    ]
    job = bulk.ended(bulk.post(b"\n".join(lines), result="jsonl"))
    assert (job["state"], job["records"], job["failed"]) == ("done", 6, 4)
    found = [
        (row["id"], row["embedding"] is None, row["error"] and row["error"]["code"])
        for row in bulk.rows(job)
    ]
    assert found == [
        ("good", False, None),
        (None, True, "malformed_line"),
        ("empty", True, "empty_text"),
        ("poison", True, "embedding_failed"),
        ("5", False, None),
        ("surrogate", True, "lone_surrogate"),
    ]


def test_texts_in_a_request_are_numbered_and_questions_have_their_own_prompt(bulk: Bulk) -> None:
    answer = bulk.service.post("/jobs", texts=TEXTS, role="query", result="jsonl")
    rows = bulk.rows(bulk.ended(answer))
    assert [row["id"] for row in rows] == ["0", "1", "2"]
    asked = bulk.service.post("/embed/batch", texts=TEXTS, role="query").json()
    assert asked["cached_count"] == 3
    assert [row["embedding"] for row in rows] == asked["embeddings"]
    assert bulk.service.post("/embed/batch", texts=TEXTS).json()["cached_count"] == 0


def test_fields_may_have_other_names_and_a_file_may_be_empty(bulk: Bulk) -> None:
    line = b'{"meta": {"uuid": "a"}, "body": "The cat sleeps."}'
    job = bulk.ended(bulk.post(line, id_field="meta.uuid", text_field="body", result="jsonl"))
    assert [row["id"] for row in bulk.rows(job)] == ["a"]
    job = bulk.ended(bulk.post(b""))
    assert (job["state"], job["records"]) == ("done", 0)
    assert pq.read_table(io.BytesIO(bulk.service.client.get(job["result"]).content)).num_rows == 0


def test_a_url_is_read_only_where_the_service_may(bulk: Bulk, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    (archive / "deep").mkdir(parents=True)
    (archive / "a.jsonl").write_bytes(jsonl(TEXTS[:1]))
    (archive / "deep" / "b.csv").write_bytes(as_csv(TEXTS[1:]))
    (tmp_path / "secret.jsonl").write_bytes(jsonl(["secret"]))
    answer = bulk.service.post("/jobs", url=f"{archive}/", result="jsonl")
    assert [row["id"] for row in bulk.rows(bulk.ended(answer))] == ["n0", "n0", "n1"]
    for url in (
        f"{tmp_path}/secret.jsonl",
        f"{archive}/../secret.jsonl",
        f"{archive}-other/x",
        f"simplecache::{archive}/a.jsonl",
        "http://127.0.0.1/latest/meta-data",
    ):
        answer = bulk.service.post("/jobs", url=url)
        assert answer.json()["error"]["code"] == "url_not_permitted", url
    missing = bulk.ended(bulk.service.post("/jobs", url=f"{archive}/nothing.jsonl"))
    assert (missing["state"], missing["message"]) == (
        "failed",
        "There is nothing to read where the URL leads.",
    )


def test_a_url_may_not_name_more_than_a_file_may_hold(bulk: Bulk, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "a.jsonl").write_bytes(jsonl(TEXTS))
    answer = bulk.service.post("/jobs", url=f"{archive}/a.jsonl")
    job = bulk.queue.jobs.find(bulk.ended(answer)["id"])
    assert job is not None
    smaller = job.model_copy(update={"id": new_id(), "max_bytes": 10})
    bulk.queue.jobs.create(smaller)
    bulk.queue.send(smaller.id)
    wait_until(lambda: bulk.queue.jobs.has_ended(smaller.id))
    ending = bulk.queue.jobs.standing(smaller.id).ending
    assert ending is not None
    assert "a job may read 10" in (ending.message or "")


def test_a_definition_that_is_broken_for_a_moment_ends_no_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queues, "loaded", lambda _: ({}, ["corpus.yaml: line 3"]))
    with pytest.raises(EmbeddingError, match="cannot be loaded: corpus"):
        queues._defined("corpus")
    monkeypatch.setattr(queues, "loaded", lambda _: ({}, []))
    assert queues._defined("corpus") is None


def test_a_job_that_was_cancelled_goes_on_where_it_stood(
    bulk: Bulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_RECORDS_OF_PART", 2)
    embedder = bulk.pipeline.embedder
    assert isinstance(embedder, GatedEmbedder)
    gate = embedder.close()
    texts = [f"Text number {number}" for number in range(6)]
    answer = bulk.post(jsonl(texts))
    wait_until(lambda: gate.calls)
    assert bulk.job(answer)["state"] == "embedding"
    url = answer.headers["Location"]
    assert bulk.service.client.get(f"{url}/result").status_code == 409
    assert bulk.service.client.delete(url).json()["state"] == "cancelled"
    gate.open.set()
    idle(bulk)
    assert len(bulk.embedded) == 2
    assert bulk.job(answer)["state"] == "cancelled"
    job = bulk.ended(bulk.service.client.post(f"{url}/resume"))
    assert (job["state"], job["embedded"]) == ("done", 6)
    assert bulk.embedded == texts
    assert bulk.service.client.delete(url).status_code == 204
    assert bulk.service.client.get(url).status_code == 404
    assert bulk.queue.jobs.store.list_keys("") == []


def idle(bulk: Bulk) -> None:
    """Waits until the worker has done all that was sent."""
    wait_until(bulk.queue.is_empty)


def test_a_job_that_is_removed_while_a_part_is_embedded_leaves_nothing(bulk: Bulk) -> None:
    embedder = bulk.pipeline.embedder
    assert isinstance(embedder, GatedEmbedder)
    gate = embedder.close()
    url = bulk.post(jsonl(TEXTS)).headers["Location"]
    wait_until(lambda: gate.calls)
    assert bulk.service.client.delete(url).json()["state"] == "cancelled"
    assert bulk.service.client.delete(url).status_code == 204
    gate.open.set()
    idle(bulk)
    assert bulk.queue.jobs.store.list_keys("") == []


def test_a_storage_that_is_away_when_a_task_comes_is_tried_again(
    bulk: Bulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_ended, tries = bulk.queue.jobs.has_ended, [OSError("the storage is away")]

    def away_at_first(job_id: str) -> bool:
        if tries:
            raise tries.pop()
        return has_ended(job_id)

    monkeypatch.setattr(queues, "_MOST_SECONDS_BETWEEN_TRIES", 0.01)
    monkeypatch.setattr(bulk.queue.jobs, "has_ended", away_at_first)
    assert bulk.ended(bulk.post(jsonl(TEXTS)))["state"] == "done"


def test_a_task_that_comes_twice_embeds_nothing_twice(bulk: Bulk) -> None:
    job = bulk.ended(bulk.post(jsonl(TEXTS)))
    before = bulk.service.client.get(job["result"]).content
    for _ in range(2):
        bulk.queue.put("read", job["id"])
        bulk.queue.put("embed", job["id"], 0)
        bulk.queue.put("write", job["id"])
    bulk.queue.put("read", "0" * 32)  # of a job that was removed
    idle(bulk)
    assert bulk.service.client.get(job["result"]).content == before
    assert bulk.embedded == sorted(TEXTS)


def test_a_model_that_fails_is_tried_again_and_then_the_job_says_why(
    bulk: Bulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def broken(*_: Any) -> None:
        tries.append("")
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(queues, "_MOST_TRIES", 2)
    monkeypatch.setattr(queues, "_MOST_SECONDS_BETWEEN_TRIES", 0.01)
    with monkeypatch.context() as patched:
        patched.setattr(queues, "embed_part", broken)
        answer = bulk.post(jsonl(TEXTS))
        job = bulk.ended(answer)
    assert (job["state"], len(tries)) == ("failed", 3)
    assert job["message"] == "RuntimeError; the worker's log says why."
    again = bulk.ended(bulk.service.client.post(f"{answer.headers['Location']}/resume"))
    assert again["state"] == "done"


def test_a_part_that_ends_its_worker_again_and_again_ends_the_job(
    bulk: Bulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(queues, "_MOST_DEATHS", 0)
        answer = bulk.post(jsonl(TEXTS))
        job = bulk.ended(answer)
    assert job["state"] == "failed"
    assert "Part 0 has ended 0 workers" in job["message"]
    again = bulk.ended(bulk.service.client.post(f"{answer.headers['Location']}/resume"))
    assert again["state"] == "done"


def test_a_part_that_failed_once_may_not_end_workers_for_ever(
    bulk: Bulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(jobs: Jobs, job: Job, part: int, _: Any) -> None:
        for _ in range(queues._MOST_DEATHS):  # of workers that died with it later
            jobs.begin_part(job.id, part)
        raise RuntimeError("once")

    monkeypatch.setattr(queues, "_MOST_SECONDS_BETWEEN_TRIES", 0.01)
    monkeypatch.setattr(queues, "embed_part", failing)
    job = bulk.ended(bulk.post(jsonl(TEXTS)))
    assert "Part 0 has ended 3 workers" in job["message"]


def test_a_job_that_goes_on_while_it_is_looked_at_is_no_error(
    bulk: Bulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = bulk.queue.jobs
    done = bulk.ended(bulk.post(jsonl(TEXTS)))
    list_keys = FileArtifactStore.list_keys

    def removed_afterwards(store: FileArtifactStore, prefix: str, suffix: str = "") -> list[str]:
        keys = list_keys(store, prefix, suffix)
        if prefix:
            monkeypatch.undo()
            jobs.remove(done["id"])
        return keys

    monkeypatch.setattr(FileArtifactStore, "list_keys", removed_afterwards)
    assert bulk.service.client.get("/jobs").status_code == 200
    assert bulk.service.client.get("/jobs").json() == {"jobs": []}


def test_another_model_since_then_is_never_taken(bulk: Bulk, tmp_path: Path) -> None:
    other = pipeline(tmp_path / "other", embedder=CountingEmbedder(model="other"))
    bulk.queue._tasks._find = lambda _: other.opened
    job = bulk.ended(bulk.post(jsonl(TEXTS)))
    assert job["state"] == "failed"
    assert "its model is not the one that was asked for" in job["message"]
    assert bulk.embedded == []
    assert other.embedder.texts == []


def test_a_broker_that_is_away_loses_no_job(bulk: Bulk, redis_server: RedisServer) -> None:
    redis_server.kill()
    try:
        answer = bulk.post(jsonl(TEXTS))
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "broker_unavailable"
        (job,) = bulk.service.client.get("/jobs").json()["jobs"]
        assert job["state"] == "waiting"
    finally:
        redis_server.start()
    answer = bulk.service.client.post(f"/jobs/{job['id']}/resume")
    assert bulk.ended(answer)["state"] == "done"


def test_a_job_whose_message_was_lost_goes_on_when_nothing_else_is_to_be_done(
    bulk: Bulk, redis_server: RedisServer
) -> None:
    gated = bulk.pipeline.embedder
    assert isinstance(gated, GatedEmbedder)
    gate = gated.close()
    busy = bulk.post(jsonl(TEXTS))
    wait_until(lambda: gate.calls)
    waiting = bulk.post(jsonl(["The next one."]))
    assert redis_server.client().delete(f"{queues.QUEUE}:{queues.QUEUE}") == 1
    bulk.queue.look_after(1)
    assert redis_server.client().exists(f"{queues.QUEUE}:{queues.QUEUE}") == 0
    gate.open.set()
    assert bulk.ended(busy)["state"] == "done"
    idle(bulk)
    assert bulk.job(waiting)["state"] == "waiting"
    bulk.queue.look_after(1)
    assert bulk.ended(waiting)["state"] == "done"


def test_a_key_sees_its_own_jobs_only(bulk: Bulk) -> None:
    keys = bulk.service.keys
    mine = create_key(keys, "mine", ["embed"], Quota())[1]
    other = create_key(keys, "other", ["embed"], Quota())[1]
    chief = create_key(keys, "chief", ["all"], Quota())[1]
    searcher = create_key(keys, "searcher", ["search"], Quota())[1]
    client = bulk.service.client
    wait_until(lambda: client.get("/jobs").status_code == 401)
    answer = client.post("/jobs", json={"texts": TEXTS}, headers={"X-API-Key": mine})
    url = answer.headers["Location"]

    def status(method: str, path: str, key: str) -> int:
        return client.request(method, path, headers={"X-API-Key": key}).status_code

    wait_until(lambda: status("GET", f"{url}/result", mine) == 200)
    for _ in range(3):  # as many as one key may have
        bulk.queue.jobs.create(job_of(bulk, url).model_copy(update={"id": new_id()}))
    for key, accepted in [(mine, 429), (chief, 202)]:
        answer = client.post("/jobs", json={"texts": TEXTS}, headers={"X-API-Key": key})
        assert answer.status_code == accepted
    for method, path in [("GET", url), ("GET", f"{url}/result"), ("DELETE", url)]:
        assert status(method, path, other) == 404
    assert status("POST", f"{url}/resume", other) == 404
    assert client.get("/jobs", headers={"X-API-Key": other}).json() == {"jobs": []}
    assert len(client.get("/jobs", headers={"X-API-Key": chief}).json()["jobs"]) == 5
    assert status("GET", "/jobs", searcher) == 403
    assert status("GET", url, "") == 401


def job_of(bulk: Bulk, url: str) -> Job:
    """What is recorded of a job."""
    job = bulk.queue.jobs.find(url.rpartition("/")[2])
    assert job is not None
    return job


def test_jobs_that_are_too_many_too_large_or_make_no_sense_are_refused(bulk: Bulk) -> None:
    embedder = bulk.pipeline.embedder
    assert isinstance(embedder, GatedEmbedder)
    gate = embedder.close()
    for number in range(3):
        assert bulk.post(jsonl([f"Text {number}"])).status_code == 202
    refused = bulk.post(jsonl(TEXTS))
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "30")
    gate.open.set()
    for query, field in [({"result": "xml"}, "result"), ({"id_fiel": "a"}, "id_fiel")]:
        error = bulk.post(b"", **query).json()["error"]
        assert error["param"] == field
    for body in ({}, {"texts": TEXTS, "url": "s3://bucket/a"}, {"texts": []}, {"texts": [1]}):
        assert bulk.service.client.post("/jobs", json=body).status_code == 422, body
    for job_id in ("0" * 32, "..", "%2e%2e%2fkeys", "job.json"):
        assert bulk.service.client.get(f"/jobs/{job_id}/result").status_code == 404


def test_what_is_too_old_is_removed(bulk: Bulk) -> None:
    done = bulk.ended(bulk.post(jsonl(TEXTS)))
    jobs = bulk.queue.jobs
    job = job_of(bulk, done["id"])
    assert jobs.remove_older_than(1) == 0
    jobs.create(job.model_copy(update={"created_at": job.created_at - timedelta(days=2)}))
    assert jobs.remove_older_than(1) == 1
    assert jobs.store.list_keys("") == []


def test_without_a_queue_the_service_says_what_is_missing(tmp_path: Path) -> None:
    made = pipeline(tmp_path, embedder=CountingEmbedder())
    with RunningService(made.opened, folder=tmp_path) as service:
        error = service.post("/jobs", texts=TEXTS).json()["error"]
    assert error["code"] == "jobs_not_set_up"
    assert "EMBEDDING_BROKER" in error["message"]
