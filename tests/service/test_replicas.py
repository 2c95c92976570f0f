"""Two servers as they run: limits hold over both, and no key is in anything that they put out."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from embedding_assets.service.keys import FILE_NAME, create_key
from resources.limits.base import VARIABLE
from resources.limits.quota import Quota
from tests.support.redis_server import RedisServer
from tests.support.replicas import Replica, replicas, serve_environment

pytestmark = pytest.mark.slow

WINDOW = 60.0
NOTES = [{"id": "cats", "text": "The cat sleeps on the sofa all day."}]

# Asks for as much as it gets, of each server in turn; prints when, and how many texts and tokens.
CLIENT = """
import itertools, json, random, sys, time, httpx
key, seconds, *urls = sys.argv[1:]
generator, end = random.Random(key + str(time.time_ns())), time.monotonic() + float(seconds)
granted, refused = [], 0
with httpx.Client(headers={"X-API-Key": key}, timeout=60) as client:
    for url in itertools.cycle(urls):
        if (began := time.monotonic()) > end:
            break
        texts = ["x" * generator.randint(1, 200) for _ in range(generator.randint(1, 6))]
        answer = client.post(url + "/embed/batch", json={"texts": texts})
        ended, tokens = time.monotonic(), sum(2 + len(text) // 4 for text in texts)
        assert answer.status_code in (200, 429), answer.text
        if answer.status_code == 200:
            granted.append([began, ended, 1, len(texts), tokens])
        else:
            refused += 1
            time.sleep(min(answer.json()["error"]["retry_after"], 0.05))
print(json.dumps({"granted": granted, "refused": refused}))
"""


def answered(replica: Replica, key: str) -> float:
    """How many requests to embed the server has granted, as it counts them itself."""
    told = httpx.get(f"{replica.url}/metrics", headers={"X-API-Key": key}).text
    start = 'embedding_http_requests_total{endpoint="/embed/batch",status="200"} '
    return sum(float(x.removeprefix(start)) for x in told.splitlines() if x.startswith(start))


def most_in_a_window(granted: list[list[float]], amount: int) -> float:
    """The most that was certainly granted in some window: asked for and answered within it."""
    most = 0.0
    by_end = sorted(granted, key=lambda one: one[1])
    for first in granted:
        within = [
            one[amount] for one in by_end if first[0] <= one[0] and one[1] <= first[0] + WINDOW
        ]
        most = max(most, sum(within))
    return most


def test_no_window_of_two_servers_and_eight_clients_holds_more_than_a_key_may_take(
    tmp_path: Path, model_cache: Path, redis_server: RedisServer
) -> None:
    environment = serve_environment(tmp_path, NOTES, model_cache)
    environment |= {VARIABLE: redis_server.url, "EMBEDDING_CACHE": redis_server.url}
    _, seeing = create_key(tmp_path / "data" / FILE_NAME, "seeing", ["metrics"])
    quota = Quota(150, 500, 12_000)
    _, key = create_key(tmp_path / "data" / FILE_NAME, "limited", limits=quota)
    with replicas(tmp_path, environment) as started:
        urls = [one.url for one in started]
        command = [sys.executable, "-c", CLIENT, key, str(2.5 * WINDOW), *urls]
        clients = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
        said = [json.loads(client.communicate(timeout=600)[0]) for client in clients]
        counted = sum(answered(one, seeing) for one in started)
    granted = [one for client in said for one in client["granted"]]
    assert all(client["granted"] and client["refused"] for client in said)
    assert counted == len(granted)
    for amount, limit in enumerate(quota.limits, 2):
        assert limit is not None
        assert most_in_a_window(granted, amount) <= limit
    # It is the limit that stopped them: what is scarcest was used up in two windows.
    used = [sum(one[2 + i] for one in granted) / limit for i, limit in enumerate((150, 500, 12e3))]
    assert max(used) > 2


def planted_in(url: str, key: str, good: str) -> Iterator[httpx.Response]:
    """Answers to requests that have a key wherever somebody may put one by mistake."""
    right, path = {"X-API-Key": good}, f"/collections/{key}"
    with httpx.Client(base_url=url, timeout=60, headers=right) as client:
        for name, value in (
            ("X-API-Key", key),
            ("X-API-Key", f"Bearer {key}"),
            ("Authorization", key),
            ("Authorization", f"Bearer {key}"),
            ("Authorization", f"Basic {key}"),
            ("Cookie", f"key={key}"),
            ("X-Request-Timeout", key),
            ("Content-Type", key),
            (key, key),
        ):
            headers = {name: value} if name in ("X-API-Key", "Authorization") else right
            for asked in ("/embed", "/metrics", "/collections/notes/search"):
                headers = {"Content-Type": "application/json", **headers, name: value}
                yield httpx.post(url + asked, headers=headers, content=b"{")
        for body in (
            {"text": key},
            {"text": [key]},
            {"text": "a", "collection": key},
            {"text": "a", "model": key},
            {"text": "a", "role": key},
            {"text": "a", key: "a"},
            {"text": "a", "user": key},
            {"text": key * 3_000},
        ):
            yield client.post("/embed", json=body)
        yield client.post("/embed/batch", json={"texts": [key, " ", [key]]})
        json_type = {"Content-Type": "application/json"}
        yield client.post("/embed/batch", content=key.encode())
        yield client.post("/embed/batch", content=key.encode(), headers=json_type)
        for body in (
            {"model": key, "input": "a"},
            {"model": "notes", "input": "a", "user": key, "dimensions": 1},
            {"model": "notes", "input": {"a": key}},
            {"model": "notes", "input": "a", "encoding_format": key},
        ):
            yield client.post("/v1/embeddings", json=body)
        yield client.post("/search", json={"query": key, "collections": [key]})
        yield client.post("/search", json={"query": key, "k": key})
        yield client.post(f"{path}/search", json={"query": "a"})
        yield client.get(f"{path}/documents", params={"id": key})
        yield client.get("/collections/notes/documents", params={"id": key})
        yield client.get("/collections/notes/documents", params={key: key})
        for asked in ("/", "/embed", "/health", "/ready", "/stats", "/openapi.json", f"/{key}"):
            yield client.get(asked, params={"api_key": key})
        yield client.request(key, "/embed")


def test_a_key_is_in_no_log_metric_error_or_page_wherever_it_was_put(
    tmp_path: Path, model_cache: Path
) -> None:
    environment = serve_environment(tmp_path, NOTES, model_cache)
    file = tmp_path / "data" / FILE_NAME
    keys = [create_key(file, f"{scopes}", scopes)[1] for scopes in (["all"], ["search:notes"])]
    keys.append("ea_unknown0_" + "planted" * 6 + "_")
    with replicas(tmp_path, environment, 1) as (replica,):
        for key in keys:
            for good in keys[:2]:
                for answer in planted_in(replica.url, key, good):
                    assert answer.status_code < 500
                    shown = f"{answer.request.method} {answer.request.url}"
                    # Only a question that was answered is repeated.
                    if answer.status_code != 200 or "query" not in answer.text:
                        assert key[12:] not in answer.text, shown
                    assert key[12:] not in f"{answer.headers}", shown
        with socket.create_connection(("127.0.0.1", replica.port)) as raw:
            raw.sendall(f"{keys[0]} / HTTP/1.1\r\n{keys[0]}\r\n\r\n".encode())
            assert keys[0][12:] not in raw.recv(4096).decode()
        told = [
            httpx.get(replica.url + path, headers={"X-API-Key": keys[0]}).text
            for path in ("/metrics", "/stats", "/", "/docs", "/openapi.json")
        ]
    for text in (*told, replica.log.read_text(), file.read_text()):
        assert text
        assert not any(key[12:] in text for key in keys)
