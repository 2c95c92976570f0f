"""`embedding-assets serve`: the real command, in a project of its own, with the default model."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from embedding_assets.service.server import listen
from resources.caches.duckdb import DuckDBEmbeddingCache
from resources.errors import InvalidInputError
from tests.support.instance import dagster_home
from tests.support.pipeline import write_jsonl
from tests.support.project import Project
from tests.support.service import wait_until

NOTES = [
    {"id": "cats", "text": "The cat sleeps on the sofa all day."},
    {"id": "trains", "text": "The train to the coast leaves at half past eight."},
]


@pytest.fixture
def environment(tmp_path: Path, model_cache: Path) -> dict[str, str]:
    """Of commands in a project with one collection."""
    project = Project(tmp_path)
    source = write_jsonl(tmp_path / "notes.jsonl", NOTES)
    project.write(
        {
            "name": "notes",
            "source": {"path": str(source)},
            "partitions": {"by": "bucket", "count": 1},
        }
    )
    data = tmp_path / "data"
    data.mkdir()
    (data / "models").symlink_to(model_cache)
    return {
        "PATH": str(Path(sys.executable).parent),
        "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}",
        "DAGSTER_HOME": str(dagster_home(tmp_path / "home")),
        "HOME": str(tmp_path),
    }


def command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).parent / "embedding-assets"), *arguments]


@contextmanager
def serving(folder: Path, environment: dict[str, str]) -> Iterator[tuple[httpx.Client, list[str]]]:
    """The server once it is ready; what it said is there at the end."""
    said: list[str] = []
    with (
        (folder / "said").open("w") as output,
        subprocess.Popen(
            command("serve", "--port", "0"),
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
        httpx.Client(timeout=30) as client,
    ):

        def has_said_where() -> bool:
            assert process.poll() is None, (folder / "said").read_text()
            told = re.search(r"http://127\.0\.0\.1:\d+/\n", (folder / "said").read_text())
            if told:
                client.base_url = told[0].strip()
            return told is not None

        def is_ready() -> bool:
            assert process.poll() is None, (folder / "said").read_text()
            try:
                return client.get("/ready").status_code == 200
            except httpx.TransportError:
                return False

        try:
            wait_until(has_said_where, 60)
            wait_until(is_ready, 120)
            yield client, said
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
            said += (folder / "said").read_text().splitlines()
    assert status in (0, -signal.SIGTERM)


def test_after_a_build_the_command_answers_and_leaves_what_it_embedded_in_the_cache(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    built = subprocess.run(
        command("build", "notes"), cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    with serving(tmp_path, environment) as (client, said):
        found = client.post("/search", json={"query": "When does the train go?", "k": 1}).json()
        assert found["hits"][0]["document_id"] == "trains"
        known = client.post("/embed", json={"text": NOTES[0]["text"]}).json()
        assert known["cached"] is True
        assert client.post("/embed", json={"text": "new"}).json()["cached"] is False
        told = client.get("/metrics").text
        assert 'embedding_collection_chunks{collection="notes"} 2.0' in told
        assert 'embedding_collection_last_run_hit_rate{collection="notes"} 0.0' in told
        assert (
            'embedding_collection_check_passed{asset="vector_index",check="completeness",'
            'collection="notes",severity="ERROR"} 1.0'
        ) in told
        assert "<!doctype html>" in client.get("/").text.lower()
    assert [line.split("http")[0].strip() for line in said] == ["Search page:", "Documentation:"]
    assert not any(re.search(r"warn|error", line, re.I) for line in said)
    cache = DuckDBEmbeddingCache(path=str(tmp_path / "data" / "cache.duckdb"))
    # Two chunks and the canaries of the pipeline; the question and the new text of the service.
    (space,) = cache.spaces()
    entries = {statistics.space_id: statistics.entries for statistics in cache.statistics()}
    assert entries[space.id] >= 4


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        (["--host", "0.0.0.0"], {}, "embedding-assets keys create"),
        (["--collection", "nobody"], {}, "There is no collection 'nobody'"),
        ([], {"EMBEDDING_SERVE_MAX_TEXTS": "many"}, "EMBEDDING_SERVE_MAX_TEXTS: "),
    ],
)
def test_what_cannot_be_served_is_said_in_a_sentence(
    tmp_path: Path,
    environment: dict[str, str],
    arguments: list[str],
    variables: dict[str, str],
    sentence: str,
) -> None:
    ended = subprocess.run(
        command("serve", *arguments),
        cwd=tmp_path,
        env=environment | variables,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert sentence in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
    assert not ended.stdout, "no address is announced"


def test_a_port_that_is_in_use_is_said_before_any_address_is_announced(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = str(used.getsockname()[1])
        test_what_cannot_be_served_is_said_in_a_sentence(
            tmp_path, environment, ["--port", port], {}, f"Port {port} is in use: "
        )


def test_it_listens_at_each_address_of_a_name_at_one_free_port() -> None:
    listening = listen("localhost", 0)
    try:
        (port,) = {one.getsockname()[1] for one in listening}
        for one in listening:
            with socket.create_connection(one.getsockname()[:2]):
                accepted, _ = one.accept()
                accepted.close()
            # Without this number asyncio lets the second part of an answer wait for 40 ms.
            assert one.proto == socket.IPPROTO_TCP
        with pytest.raises(InvalidInputError, match=f"Port {port} is in use"):
            listen("localhost", port)
    finally:
        for one in listening:
            one.close()
    for one in listen("localhost", port):
        one.close()


def test_an_address_that_this_machine_does_not_have_is_said() -> None:
    with pytest.raises(InvalidInputError, match=r"cannot listen at 192\.0\.2\.1, port 0: Cannot"):
        listen("192.0.2.1", 0)
