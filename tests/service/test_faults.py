"""What dies, goes away or is taken away under load: who asks meanwhile gets right answers."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from embedding_assets.service.keys import create_key
from resources.caches.base import EmbeddingCache
from resources.caches.from_url import cache_from_url
from resources.caches.vectors import hash_array
from resources.embedders.local import LocalEmbedder
from resources.identity.content_hash import content_hash
from resources.limits.base import VARIABLE
from resources.limits.quota import Quota
from resources.limits.redis_quota import RedisQuotas
from tests.service.test_embeddings import NOTES, pipeline
from tests.support.fakes import CountingEmbedder, fake_vector
from tests.support.models import cosines
from tests.support.pipeline import Pipeline
from tests.support.redis_server import RedisServer, running_redis
from tests.support.replicas import Asked, Body, Load, replicas, serve_environment
from tests.support.service import RunningService, wait_until

pytestmark = pytest.mark.slow

CLIENTS = 8


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A server that may be killed."""
    with running_redis() as server:
        yield server


def request(number: int) -> tuple[str, Body]:
    """Texts in turn alone and five together, four in five of which were asked for long before."""
    new = number // 5
    text = f"What is number {new if number % 5 == 0 else number * 7 % (new + 1)} of all questions?"
    if number % 2:
        return "/embed", {"text": text}
    return "/embed/batch", {"texts": [text, *(f"{text} And {n}?" for n in range(4))]}


def vectors(asked: Asked) -> dict[str, np.ndarray]:
    """What was answered, by text."""
    assert asked.answer is not None
    answer = asked.answer.json()
    if "text" in asked.body:
        return {asked.body["text"]: np.array(answer["embedding"], np.float32)}
    assert answer["errors"] == []
    rows = np.array(answer["embeddings"], np.float32)
    return dict(zip(asked.body["texts"], rows, strict=True))


def found_in(cache: EmbeddingCache, space: Any, texts: list[str]) -> np.ndarray:
    return cache.get(space, hash_array([content_hash(text) for text in texts])).found


def test_of_a_replica_that_is_killed_only_what_it_held_is_lost(
    tmp_path: Path, model_cache: Path, redis: RedisServer
) -> None:
    cache = f"{redis.url}?timeout=30"  # what a slow server costs is not the question here
    environment = serve_environment(tmp_path, NOTES, model_cache) | {
        "EMBEDDING_CACHE": cache,
        VARIABLE: redis.url,
        "EMBEDDING_SERVE_REQUESTS_PER_MINUTE": "1000000",
    }
    with replicas(tmp_path, environment) as (killed, lives):
        urls = [killed.url, lives.url]
        with Load(urls, request, CLIENTS) as load:
            load.wait_for(200)
            alive = time.monotonic()
            killed.kill()
            dead = time.monotonic()
            load.wait_for(200, lambda asked: asked.url == lives.url)
            load.wait_for(20, lambda asked: asked.url == killed.url)
            killed.start()
            killed.ready()
            load.wait_for(100, lambda asked: asked.url == killed.url and asked.status == 200)
    failed = [asked for asked in load.asked if asked.error]
    answered = [asked for asked in load.asked if asked.answer]
    assert {asked.status for asked in answered} == {200}
    assert {asked.url for asked in failed} == {killed.url}
    # Of each client it held at most one request. While a process dies the system still connects to
    # it; who came later was not even connected.
    lost = [asked for asked in failed if not isinstance(asked.error, httpx.ConnectError)]
    assert all(asked.began < dead for asked in lost)
    held = [asked.client for asked in lost if asked.began < alive]
    assert len(held) == len(set(held))

    given = [pair for asked in answered for pair in vectors(asked).items()]
    embedder = LocalEmbedder(model_cache=str(model_cache))
    texts = sorted({text for text, _ in given})
    expected = dict(zip(texts, embedder.embed(texts).vectors, strict=True))
    near = cosines(np.array([v for _, v in given]), np.array([expected[text] for text, _ in given]))
    assert near.min() > 0.999
    by_the_other = {t for one in answered if one.url == lives.url for t in vectors(one)}
    assert found_in(cache_from_url(cache), embedder.space, [*by_the_other]).all()


@pytest.fixture
def sharing(tmp_path: Path, redis: RedisServer) -> Iterator[list[RunningService]]:
    """Two services that share a cache and the quotas of keys, and keep nothing in memory."""
    made = pipeline(tmp_path, embedder=CountingEmbedder())
    made.cache = cache_from_url(redis.url)  # pyright: ignore[reportAttributeAccessIssue]

    def service() -> RunningService:
        quotas = RedisQuotas(redis.url, replicas=2)
        return RunningService(made.opened, folder=tmp_path, quotas=quotas, memory=1)

    with service() as one, service() as other:
        yield [one, other]


def test_while_redis_is_away_texts_are_embedded_and_then_it_is_used_again(
    sharing: list[RunningService], redis: RedisServer
) -> None:
    path = sharing[0].keys
    _, busy = create_key(path, "busy", ["all"], Quota(requests=10**6))
    _, limited = create_key(path, "limited", limits=Quota(requests=20))
    for one in sharing:  # it looks at the file of keys once a second
        wait_until(lambda one=one: one.post("/embed", text="a").status_code == 401)
        one.client.headers["X-API-Key"] = busy

    def granted(services: list[RunningService]) -> int:
        """Of many requests of the key that is allowed 20."""
        answers = [
            one.client.post("/embed", json={"text": "a"}, headers={"X-API-Key": limited})
            for _ in range(30)
            for one in services
        ]
        assert {answer.status_code for answer in answers} <= {200, 429}
        return sum(answer.status_code == 200 for answer in answers)

    def hits() -> float:
        return sum(one.metric("cache_lookups_total", result="hit") for one in sharing)

    def is_away(one: RunningService) -> bool:
        return one.quotas._away  # pyright: ignore[reportAttributeAccessIssue]

    urls = [one.url for one in sharing]
    with Load(urls, request, CLIENTS, {"X-API-Key": busy}) as load:
        load.wait_for(200)
        assert hits() > 0
        assert granted(sharing) == 20
        redis.kill()
        wait_until(lambda: all(map(is_away, sharing)))
        load.wait_for(100)
        # Each by itself grants its half, whatever was granted before.
        assert [granted([one]) for one in sharing] == [10, 10]
        before = hits()
        load.wait_for(400)
        assert hits() == before
        redis.start()
        wait_until(lambda: hits() > before)
        wait_until(lambda: not any(map(is_away, sharing)))
        assert granted(sharing) == 20
        load.wait_for(200)
    assert {asked.status for asked in load.asked} == {200}
    for asked in load.asked:
        for text, vector in vectors(asked).items():
            assert (vector == fake_vector(text, 32)).all()


@pytest.fixture
def built(tmp_path: Path) -> Pipeline:
    made = pipeline(tmp_path, embedder=CountingEmbedder())
    made.run()
    return made


def test_a_cache_file_that_is_removed_under_load_is_made_anew(
    tmp_path: Path, built: Pipeline
) -> None:
    file = Path(built.cache.path)
    with (
        RunningService(built.opened, folder=tmp_path, memory=1) as running,
        Load([running.url], request, CLIENTS) as load,
    ):
        for _ in range(3):
            load.wait_for(100)
            wait_until(file.exists)
            file.unlink()
            file.with_name(f"{file.name}.wal").unlink(missing_ok=True)
        load.wait_for(200)
    assert {asked.status for asked in load.asked} == {200}
    for asked in load.asked:
        for text, vector in vectors(asked).items():
            assert (vector == fake_vector(text, 32)).all()
    last = sorted(vectors(load.asked[-1]))
    assert found_in(built.cache, built.embedder.space, last).all()


def test_an_index_that_is_dropped_and_built_anew_under_load_never_gives_a_wrong_hit(
    tmp_path: Path, built: Pipeline
) -> None:
    # What was embedded is found by the same words, for the model of these tests has no prompts.
    chunks = {(row["context"] or "") + row["text"]: row["chunk_id"] for row in built.rows()}
    texts = [*chunks]

    def search(number: int) -> tuple[str, Body]:
        path = "/search" if number % 2 else "/collections/corpus/search"
        return path, {"query": texts[number % len(texts)], "k": 1, "exact": bool(number % 3)}

    def is_found(asked: Asked) -> bool:
        return asked.answer is not None and bool(asked.answer.json().get("hits"))

    with (
        RunningService(built.opened, folder=tmp_path) as running,
        Load([running.url], search, CLIENTS) as load,
    ):
        load.wait_for(100, is_found)
        for _ in range(3):
            built.store.drop_table("corpus", built.embedder.space)
            load.wait_for(20, lambda asked: asked.status == 404)
            built.run()
            load.wait_for(100, is_found)
    for asked in load.asked:
        assert asked.answer is not None
        answer = asked.answer.json()
        if asked.status != 200:
            assert (asked.status, answer["error"]["code"]) == (404, "not_found"), answer
            continue
        # A table is made empty; then its rows come in one commit.
        for hit in answer["hits"]:
            assert hit["chunk_id"] == chunks[asked.body["query"]]
            assert hit["score"] > 0.999
