"""`embedding-assets serve`: the real command, in a project of its own, with the default model."""

import re
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from embedding_assets.service.server import listen
from resources.caches.duckdb import DuckDBEmbeddingCache
from resources.errors import InvalidInputError
from tests.support.replicas import command, replicas, serve_environment

NOTES = [
    {"id": "cats", "text": "The cat sleeps on the sofa all day."},
    {"id": "trains", "text": "The train to the coast leaves at half past eight."},
]


@pytest.fixture
def environment(tmp_path: Path, model_cache: Path) -> dict[str, str]:
    """Of commands in a project with one collection."""
    return serve_environment(tmp_path, NOTES, model_cache)


def test_after_a_build_the_command_answers_and_leaves_what_it_embedded_in_the_cache(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    built = subprocess.run(
        command("build", "notes"), cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    with (
        replicas(tmp_path, environment, 1) as (replica,),
        httpx.Client(base_url=replica.url, timeout=30) as client,
    ):
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
    said = replica.log.read_text().splitlines()
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
