"""Another model in a collection's YAML file while `embedding-assets serve` answers questions."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import psutil
import pytest

import embedding_assets as ea
from embedding_assets.retrieval.text_vectors import text_vectors
from tests.support.instance import dagster_home
from tests.support.models import SENTENCES
from tests.support.pipeline import write_jsonl
from tests.support.project import Project
from tests.support.replicas import command, replicas
from tests.support.service import wait_until

QUESTION = "Which animal sleeps on the sofa?"
YEARS = ("2022", "2023", "2024")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    texts = [text for text in SENTENCES if len(text.encode("ascii", "ignore")) > 15]
    notes = [
        {"id": f"note-{number}", "text": text, "date": f"{YEARS[number % 3]}-05-01"}
        for number, text in enumerate(texts)
    ]
    return {
        "name": "notes",
        "source": {
            "path": str(write_jsonl(tmp_path / "notes.jsonl", notes)),
            "fields": {"timestamp": "date"},
        },
        "partitions": {"by": "year", "start": "2022-01-01"},
    }


def scores(collection: ea.Collection) -> dict[tuple[str, str], float]:
    """What the Python API says of every chunk, by its partition and id."""
    resources = collection.resources
    (vector,) = text_vectors(resources.cache, resources.embedder, [QUESTION], "query")
    found = resources.store.search(collection.name, resources.embedder.space, vector, 200)
    return {(hit.partition, hit.chunk_id): hit.score for hit in found}


def told(answer: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {(hit["partition"], hit["chunk_id"]): hit["score"] for hit in answer["hits"]}


@pytest.mark.slow
def test_a_model_is_changed_under_load_and_every_answer_is_right(
    tmp_path: Path, model_cache: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path)
    project.write(settings)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "models").symlink_to(model_cache)
    environment = {
        "PATH": str(Path(sys.executable).parent),
        "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}",
        "DAGSTER_HOME": str(dagster_home(tmp_path / "home")),
        "HOME": str(tmp_path),
    }
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("EMBEDDING_PROJECT", str(tmp_path))

    def build(*partitions: str) -> None:
        built = subprocess.run(
            command("build", "notes", *partitions),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert built.returncode == 0, built.stdout + built.stderr

    build()
    old = ea.open("notes")
    before, ended = scores(old), Event()
    with (
        replicas(tmp_path, environment, 1) as (replica,),
        httpx.Client(base_url=replica.url, timeout=60) as client,
        ThreadPoolExecutor(2) as pool,
    ):

        def ask(asked: httpx.Client = client) -> dict[str, Any]:
            answer = asked.post(
                "/collections/notes/search", json={"query": QUESTION, "k": 200, "exact": True}
            )
            assert answer.status_code == 200, answer.text
            return answer.json()

        answers: list[dict[str, Any]] = []

        def ask_on() -> None:
            with httpx.Client(base_url=client.base_url, timeout=30) as own:
                while not ended.is_set():
                    answers.append(ask(own))

        def spaces() -> set[str]:
            return {space["id"] for space in ask()["spaces"]}

        def space_of_texts() -> str:
            return client.post("/embed", json={"text": "a"}).json()["space"]

        asking = [pool.submit(ask_on) for _ in range(2)]
        try:
            assert told(ask()) == pytest.approx(before, abs=1e-5)
            file = project.write(settings | {"embedder": {"document_prompt": "passage: "}})
            new = ea.open("notes")
            ids = [one.resources.embedder.space.id for one in (old, new)]
            wait_until(lambda: space_of_texts() == ids[1])
            assert told(ask()) == pytest.approx(before, abs=1e-5)
            build("2023")
            wait_until(lambda: spaces() == {*ids})
            middle = {key: score for key, score in before.items() if key[0] != "2023"}
            middle |= scores(new)
            wait_until(lambda: told(ask()) == pytest.approx(middle, abs=1e-5))
            build()
            wait_until(lambda: spaces() == {ids[1]})
            after = scores(new)
            assert after.keys() == before.keys()
            assert all(abs(after[key] - score) > 1e-4 for key, score in before.items())
            assert told(ask()) == pytest.approx(after, abs=1e-5)
            wait_until(lambda: len(client.get("/stats").json()["models"]) == 1)
            file.write_text(file.read_text().replace("embedder", "embeder"))
            process_of(client).send_signal(signal.SIGHUP)
            wait_until(lambda: "embeder" in client.get("/ready").text)
            assert client.get("/ready").status_code == 200
            assert told(ask()) == pytest.approx(after, abs=1e-5)
        finally:
            ended.set()
        for one in asking:
            one.result()
    for answer in answers:
        for key, score in told(answer).items():
            assert any(score == pytest.approx(one[key], abs=1e-5) for one in (before, after))
    assert {len(answer["spaces"]) for answer in answers} == {1, 2}


def process_of(client: httpx.Client) -> psutil.Process:
    """The one that listens where a client asks."""
    (process,) = {
        child.pid: child
        for child in psutil.Process().children(recursive=True)
        for connection in child.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == client.base_url.port
    }.values()
    return process
