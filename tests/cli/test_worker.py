"""`embedding-assets worker`: the real command, killed while it works."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.cli.test_serve import environment
from tests.support.redis_server import RedisServer
from tests.support.replicas import command, replicas
from tests.support.service import wait_until

__all__ = ["environment"]


@contextmanager
def worker(folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command("worker"),
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_what_a_killed_worker_had_begun_is_finished_by_the_next(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    broker = RedisServer()
    environment |= {"EMBEDDING_BROKER": broker.url}
    lines = [
        json.dumps({"id": f"n{number}", "text": f"The northern lights, seen {number} times."})
        for number in range(4_500)
    ]
    with (
        replicas(tmp_path, environment, 1) as (replica,),
        httpx.Client(base_url=replica.url, timeout=60) as client,
    ):
        with worker(tmp_path, environment) as process:
            headers = {"Content-Type": "application/x-ndjson"}
            answer = client.post(
                "/jobs", params={"result": "jsonl"}, headers=headers, content="\n".join(lines)
            )
            url = answer.headers["Location"]
            wait_until(lambda: client.get(url).json()["embedded"], 120)
            process.send_signal(signal.SIGKILL)
            process.wait()
        before = client.get(url).json()
        assert before["state"] == "embedding"
        assert 0 < before["embedded"] < 4_500
        with worker(tmp_path, environment) as process:
            wait_until(lambda: client.get(url).json()["state"] == "done", 300)
            check = command("worker", "--check")
            assert subprocess.run(check, cwd=tmp_path, env=environment).returncode == 0
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert subprocess.run(check, cwd=tmp_path, env=environment).returncode == 1
        rows = [json.loads(line) for line in client.get(f"{url}/result").text.splitlines()]
        assert [row["id"] for row in rows] == [f"n{number}" for number in range(4_500)]
        sample = rows[::500]
        texts = [json.loads(line)["text"] for line in lines[::500]]
        answered = client.post("/embed/batch", json={"texts": texts}).json()
        assert answered["cached_count"] == len(texts)
        found = np.array([row["embedding"] for row in sample], dtype=np.float32)
        assert (found == np.array(answered["embeddings"], dtype=np.float32)).all()
    broker.close()


def test_a_worker_without_a_queue_says_what_to_set(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    done = subprocess.run(
        command("worker"), cwd=tmp_path, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 1
    assert "set EMBEDDING_BROKER to redis://" in done.stderr
