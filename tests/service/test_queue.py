"""The queue before the model: who goes first, what is refused, and what is not computed at all."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import pytest

from resources.errors import EmbedderUnavailableError
from tests.service.test_embeddings import pipeline
from tests.support.service import Gate, GatedEmbedder, RunningService, wait_until


@pytest.fixture
def embedder() -> GatedEmbedder:
    return GatedEmbedder()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(30) as pool:
        yield pool


def serving(folder: Path, embedder: GatedEmbedder, **settings: Any) -> RunningService:
    return RunningService(pipeline(folder, embedder=embedder).opened, folder=folder, **settings)


def occupied(
    running: RunningService, gate: Gate, pool: ThreadPoolExecutor
) -> "list[Future[httpx.Response]]":
    """Gives the model as much as it takes at a time."""
    first = pool.submit(running.post, "/embed", text="first")
    wait_until(lambda: gate.calls)
    return [first]


def queued(running: RunningService) -> int:
    return sum(server.batcher.queued_texts for server in running.service.servers.values())


def test_questions_go_before_bulk_and_what_waits_is_one_batch(
    tmp_path: Path, embedder: GatedEmbedder, pool: ThreadPoolExecutor
) -> None:
    with serving(tmp_path, embedder) as running:
        gate = embedder.close()
        blocking = occupied(running, gate, pool)
        texts = [f"bulk {number}" for number in range(10)]
        bulk = pool.submit(running.post, "/embed/batch", texts=texts)
        wait_until(lambda: queued(running) == 10)
        questions = [
            pool.submit(running.post, "/embed", text=f"question {number}") for number in range(3)
        ]
        wait_until(lambda: queued(running) == 13)
        gate.open.set()
        answers = [one.result() for one in (*blocking, bulk, *questions)]
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(gate.calls[1]) == ["question 0", "question 1", "question 2"]
    assert sorted(text for call in gate.calls[2:] for text in call) == sorted(texts)


def test_who_comes_when_the_queue_is_full_is_told_when_to_come_again_and_nobody_is_lost(
    tmp_path: Path, embedder: GatedEmbedder, pool: ThreadPoolExecutor
) -> None:
    with serving(tmp_path, embedder, queue_texts=8) as running:
        embedder.texts.clear()
        gate = embedder.close()
        blocking = occupied(running, gate, pool)
        accepted = [pool.submit(running.post, "/embed", text=f"text {n}") for n in range(8)]
        wait_until(lambda: queued(running) == 8)
        refused = running.post("/embed", text="one more")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "queue_full"
        assert int(refused.headers["Retry-After"]) >= refused.json()["error"]["retry_after"]
        refused = running.post("/embed/batch", texts=["a", "b"])  # meets the same limit
        assert refused.status_code == 503
        same = pool.submit(running.post, "/embed", text="text 0")  # costs nothing more
        wait_until(lambda: _waiting(running) == 10)
        gate.open.set()
        answers = [one.result() for one in (*blocking, *accepted, same)]
        assert {answer.status_code for answer in answers} == {200}
        assert running.post("/embed", text="one more").status_code == 200
    assert sorted(embedder.texts) == sorted(set(embedder.texts))


def _waiting(running: RunningService) -> int:
    (server,) = running.service.servers.values()
    return sum(len(job.waiting) for job in server._jobs.values())


def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits(
    tmp_path: Path, embedder: GatedEmbedder
) -> None:
    with serving(tmp_path, embedder, queue_texts=8) as running:
        answer = running.post("/embed/batch", texts=[f"text {number}" for number in range(50)])
        assert answer.json()["count"] == 50


def test_what_a_client_that_has_left_was_waiting_for_is_not_embedded(
    tmp_path: Path, embedder: GatedEmbedder, pool: ThreadPoolExecutor
) -> None:
    with serving(tmp_path, embedder) as running:
        gate = embedder.close()
        blocking = occupied(running, gate, pool)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{running.url}/embed/batch", json={"texts": ["a", "b"]}, timeout=0.3)
        wait_until(lambda: queued(running) == 0)
        gate.open.set()
        for one in blocking:
            one.result()
    assert not {"a", "b"} & {*embedder.texts}


def test_a_text_for_which_another_still_waits_is_embedded_though_one_client_has_left(
    tmp_path: Path, embedder: GatedEmbedder, pool: ThreadPoolExecutor
) -> None:
    with serving(tmp_path, embedder) as running:
        gate = embedder.close()
        blocking = occupied(running, gate, pool)
        stays = pool.submit(running.post, "/embed", text="shared")
        wait_until(lambda: queued(running) == 1)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{running.url}/embed", json={"text": "shared"}, timeout=0.3)
        gate.open.set()
        assert stays.result().status_code == 200
        for one in blocking:
            one.result()


def test_after_its_deadline_a_request_is_given_up(
    tmp_path: Path, embedder: GatedEmbedder, pool: ThreadPoolExecutor
) -> None:
    with serving(tmp_path, embedder) as running:
        gate = embedder.close()
        blocking = occupied(running, gate, pool)
        late = running.client.post(
            "/embed", json={"text": "late"}, headers={"X-Request-Timeout": "0.1"}
        )
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert queued(running) == 0
        gate.open.set()
        for one in blocking:
            one.result()
        wrong = running.client.post(
            "/embed", json={"text": "x"}, headers={"X-Request-Timeout": "soon"}
        )
        assert wrong.status_code == 422
    assert "late" not in embedder.texts


def test_a_model_that_fails_is_503_for_those_who_wait_and_the_next_are_served(
    tmp_path: Path, embedder: GatedEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, embedder) as running:
        with monkeypatch.context() as patched:
            patched.setattr(
                GatedEmbedder, "embed", Mock(side_effect=EmbedderUnavailableError("away"))
            )
            refused = running.post("/embed", text="a")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unavailable")
        assert refused.json()["error"]["message"] == "away"
        assert running.post("/embed", text="a").status_code == 200


def test_what_was_accepted_is_answered_before_the_service_ends(
    tmp_path: Path, embedder: GatedEmbedder, pool: ThreadPoolExecutor
) -> None:
    with serving(tmp_path, embedder) as running:
        gate = embedder.close()
        accepted = [pool.submit(running.post, "/embed", text=f"text {n}") for n in range(5)]
        wait_until(lambda: _waiting(running) == 5)
        stopping = threading.Thread(target=running.stop)
        stopping.start()
        wait_until(lambda: running._server.should_exit)
        gate.open.set()
        assert {one.result().status_code for one in accepted} == {200}
        stopping.join(60)
