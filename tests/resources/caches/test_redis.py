"""The Redis cache: bit-exact, and whatever the server does, no wrong vector and no failed run."""

import dataclasses
import json
import shutil
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest
import redis

from embedding_assets.embeddings.canaries import CANARIES
from resources.caches import redis_server
from resources.caches.base import CacheUnavailableError, copy_entries
from resources.caches.duckdb import DuckDBEmbeddingCache
from resources.caches.entry import encode_entries
from resources.caches.from_url import cache_from_url
from resources.caches.redis import RedisEmbeddingCache
from resources.caches.vectors import hash_bytes
from resources.identity.embedding_space import EmbeddingSpace
from resources.limits.circuit_breaker import CircuitBreaker
from tests.support.caches import (
    OTHER_DIMENSION,
    PATIENT,
    SAME_DIMENSION,
    SPACE,
    found,
    hashes,
    put,
    vectors,
)
from tests.support.fakes import fake_vector
from tests.support.instance import shipped_instance
from tests.support.pipeline import Pipeline, numbers, write_jsonl
from tests.support.redis_server import RedisServer, running_redis
from tests.support.tls_proxy import make_certificate, tls_proxy


@pytest.fixture
def server(redis_server: RedisServer) -> RedisServer:
    return redis_server


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """For tests that kill, stall or fill it."""
    with running_redis() as server:
        yield server


@pytest.fixture
def cache(server: RedisServer) -> RedisEmbeddingCache:
    return RedisEmbeddingCache(url=server.url, timeout=PATIENT)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The circuit breakers' time stands still, and is moved by hand."""
    now = [1000.0]
    monkeypatch.setattr(redis_server, "CircuitBreaker", lambda: CircuitBreaker(lambda: now[0]))
    return now


def key(number: int, space: EmbeddingSpace = SPACE) -> bytes:
    return f"embeddings:vector:{space.id}:".encode() + hash_bytes(hashes(number))[0]


def small_pipeline(folder: Path, name: str) -> Pipeline:
    """One partition of all JSON Lines files of the folder, five texts a flush."""
    settings = {"partitions": {"by": "bucket", "count": 1}, "embedder": {"flush_size": 5}}
    return Pipeline(folder / name, str(folder / "*.jsonl"), settings=settings)


# --- what is put comes back


def test_empty_inputs_ask_nobody():
    cache = RedisEmbeddingCache(url="redis://127.0.0.1:1/0")
    cache.put(SPACE, hashes(), vectors())
    assert cache.contains(SPACE, hashes()).shape == (0,)
    assert cache.get(SPACE, hashes()).vectors.shape == (0, 16)
    assert set(cache.faults().values()) == {0}


def test_half_precision_takes_half_the_room_and_keeps_the_cosine(server):
    space = dataclasses.replace(SPACE, dimension=384)
    truth = np.random.default_rng(0).standard_normal((500, 384)).astype(np.float32)
    truth[:100, 1:] *= 1e-4  # one element of nearly 1, the others below the smallest normal float16
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)
    small = RedisEmbeddingCache(url=server.url, storage="float16", timeout=PATIENT)
    small.put(space, hashes(*range(500)), truth)
    value = server.client().get(key(0, space))
    assert isinstance(value, bytes)
    assert len(value) == 32 + 2 * 384
    # Also one that would write float32 reads it.
    answer = RedisEmbeddingCache(url=server.url, timeout=PATIENT).get(space, hashes(*range(500)))
    assert answer.found.all()
    stored = answer.vectors.astype(np.float64)
    assert np.abs(np.linalg.norm(stored, axis=1) - 1).max() < 1e-6
    cosine = (stored * truth).sum(axis=1) / np.linalg.norm(truth.astype(np.float64), axis=1)
    assert (1 - cosine).max() < 2e-7


@pytest.mark.parametrize("scale", [1e-6, 3e5, 1e30])
def test_half_precision_keeps_any_norm_of_a_space_without_normalisation(server, scale):
    space = dataclasses.replace(SPACE, normalized=False)
    cache = RedisEmbeddingCache(url=server.url, storage="float16", timeout=PATIENT)
    truth = (vectors(1, 2, 3) * scale).astype(np.float32)
    cache.put(space, hashes(1, 2, 3), truth)
    answer = cache.get(space, hashes(1, 2, 3))
    assert answer.found.all()
    assert np.allclose(answer.vectors, truth, rtol=0, atol=scale * 5e-4)


def test_entries_expire_if_and_only_if_a_life_time_is_set(server):
    client = server.client()
    RedisEmbeddingCache(url=server.url, timeout=PATIENT).put(SPACE, hashes(1), vectors(1))
    mortal = RedisEmbeddingCache(url=server.url, ttl_seconds=86_400, timeout=PATIENT)
    mortal.put(SPACE, hashes(2), vectors(2))
    assert client.ttl(key(1)) == -1
    assert 86_000 < client.ttl(key(2)) <= 86_400


# --- hostile bytes under a key


def _entry(number: int, space: EmbeddingSpace = SPACE, scale: float = 1.0) -> bytes:
    vector = vectors(number, dimension=space.dimension) * np.float32(scale)
    return bytes(encode_entries(space, hash_bytes(hashes(number)), vector, "float32")[0])


def _changed(position: int) -> bytes:
    data = bytearray(_entry(7))
    data[position] ^= 0x55
    return bytes(data)


HOSTILE: dict[str, bytes] = {
    "raw vector": fake_vector("7", 16).tobytes(),
    "the entry of another text": _entry(8),
    "an entry of another space": _entry(7, SAME_DIMENSION),
    "an entry of another dimension": _entry(7, OTHER_DIMENSION),
    "norm 2, checksum right": _entry(7, scale=2),
    "norm 0, checksum right": _entry(7, scale=0),
    "NaN, checksum right": _entry(7, scale=float("nan")),
    "infinity, checksum right": _entry(7, scale=float("inf")),
    **{f"byte {i} changed": _changed(i) for i in (0, 4, 5, 6, 8, 12, 20, 24, 30, 90, 95)},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_a_counted_miss_and_the_next_put_replaces_them(
    cache, server, logged, name
):
    put(cache, range(20))
    server.client().set(key(7), HOSTILE[name])
    for _ in range(2):
        answer = cache.get(SPACE, hashes(*range(20)))
        assert answer.found.tolist() == [i != 7 for i in range(20)]
        assert answer.rejected == 1
    assert len(logged) == 1
    assert SPACE.id in logged[0]
    cache.put(SPACE, hashes(6, 7, 30), vectors(6, 7, 30))
    assert cache.get(SPACE, hashes(7)).rejected == 0
    assert found(cache, range(20)) == 20


@pytest.mark.parametrize("kind", ["list", "hash", "set", "stream"])
def test_a_key_of_another_type_is_a_miss_and_is_replaced(cache, server, kind):
    client = server.client()
    cache.put(SPACE, hashes(1), vectors(1))
    make: dict[str, Callable[[], Any]] = {
        "list": lambda: client.rpush(key(0), b"x"),
        "hash": lambda: client.hset(key(0), "x", "y"),
        "set": lambda: client.sadd(key(0), b"x"),
        "stream": lambda: client.xadd(key(0), {"x": "y"}),
    }
    make[kind]()
    assert cache.contains(SPACE, hashes(0, 1)).tolist() == [False, True]
    assert cache.get(SPACE, hashes(0, 1)).found.tolist() == [False, True]
    cache.put(SPACE, hashes(0), vectors(0))
    assert found(cache, range(2)) == 2
    assert cache.faults()["vectors_not_stored"] == 0


def test_foreign_values_under_our_own_keys_hurt_nobody(cache, server, logged):
    client = server.client()
    client.set("embeddings:spaces", "not a hash")
    client.hset("embeddings:lookups", mapping={"nonsense": "x", "a 2026-99-99 hits": "1"})
    put(cache, range(3))
    assert found(cache, range(3)) == 3
    assert cache.faults()["vectors_not_stored"] == 0
    assert len(logged) == 1
    client.delete("embeddings:spaces")
    client.hset("embeddings:spaces", mapping={"x": "no JSON", SPACE.id: SAME_DIMENSION.to_json()})
    assert [(s.space_id, s.model, s.entries) for s in cache.statistics()] == [(SPACE.id, "", 3)]


def test_eight_thousand_random_values_never_yield_a_vector(cache, server):
    random = np.random.default_rng(0)
    size = len(_entry(0))
    with server.client().pipeline(transaction=False) as pipeline:
        for number in range(8000):
            start = _entry(number)[: random.integers(0, 40)]
            pipeline.set(key(number), start + random.bytes(size - len(start)))
        pipeline.execute()
    answer = cache.get(SPACE, hashes(*range(8000)))
    assert not answer.found.any()
    assert answer.rejected == 8000


# --- a server that fails


def test_without_a_server_everything_is_a_miss_counted_and_warned_of_once(logged, clock):
    with socket.socket() as nobody:  # bound, not listening
        nobody.bind(("127.0.0.1", 0))
        cache = RedisEmbeddingCache(url=f"redis://127.0.0.1:{nobody.getsockname()[1]}/0")
        for _ in range(3):
            assert not cache.contains(SPACE, hashes(*range(10))).any()
            assert not cache.get(SPACE, hashes(*range(10))).found.any()
            put(cache, range(10))
            clock[0] += 60
        assert cache.faults() == {
            "lookups_unanswered": 60,
            "vectors_not_stored": 30,
            "commands_failed": 3,
        }
        assert len(logged) == 1
        assert "does not answer" in logged[0]
        with pytest.raises(CacheUnavailableError, match="does not answer"):
            cache.statistics()


def test_a_stalled_server_costs_one_time_limit_and_is_then_left_alone(own_server, clock):
    cache = RedisEmbeddingCache(url=own_server.url)
    assert cache.timeout == 0.3
    put(cache, range(100))
    own_server.stall()
    start = time.monotonic()
    for _ in range(50):
        assert not cache.get(SPACE, hashes(*range(100))).found.any()
        assert not cache.contains(SPACE, hashes(*range(100))).any()
        put(cache, range(100))
    assert cache.faults()["commands_failed"] == 1  # without a breaker: 150, of 0.3 s each
    assert time.monotonic() - start < 15
    clock[0] += 1.5
    cache.get(SPACE, hashes(1))
    cache.get(SPACE, hashes(1))
    assert cache.faults()["commands_failed"] == 2
    clock[0] += 1.5  # the second pause is longer
    cache.get(SPACE, hashes(1))
    assert cache.faults()["commands_failed"] == 2
    own_server.resume()
    clock[0] += 60
    assert found(cache, range(100)) == 100
    assert cache.faults()["commands_failed"] == 2


def test_a_server_that_never_says_a_word_is_connected_to_once():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        cache = RedisEmbeddingCache(url=f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        for _ in range(3):
            assert not cache.get(SPACE, hashes(*range(5))).found.any()
        assert cache.faults()["commands_failed"] == 1
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_a_killed_server_is_used_again_when_it_is_back(own_server, clock, logged):
    cache = RedisEmbeddingCache(url=own_server.url, timeout=PATIENT)
    put(cache, range(10))
    assert found(cache, range(10)) == 10
    own_server.kill()
    assert found(cache, range(10)) == 0
    own_server.start()
    assert found(cache, range(10)) == 0  # the breaker is open
    clock[0] += 60
    put(cache, range(10))
    assert found(cache, range(10)) == 10
    assert [space.id for space in cache.spaces()] == [SPACE.id]
    assert len(logged) == 1


def test_a_server_restarted_between_two_commands_is_not_even_noticed(own_server):
    cache = RedisEmbeddingCache(url=own_server.url, timeout=PATIENT)
    put(cache, range(10))
    own_server.kill()
    own_server.start()
    assert found(cache, range(10)) == 0
    put(cache, range(10))
    assert found(cache, range(10)) == 10
    assert cache.faults()["commands_failed"] == 0


def test_a_flushed_server_only_costs_misses(cache, server):
    put(cache, range(10))
    server.client().flushall()
    assert found(cache, range(10)) == 0
    put(cache, range(5))
    assert found(cache, range(10)) == 5
    assert [space.id for space in cache.spaces()] == [SPACE.id]
    assert set(cache.faults().values()) == {0}


def test_a_full_server_is_read_on_and_written_again_when_there_is_room(own_server, clock, logged):
    cache = RedisEmbeddingCache(url=own_server.url, timeout=PATIENT)
    put(cache, range(10))
    own_server.client().config_set("maxmemory", 1)
    for _ in range(3):
        put(cache, range(10, 30))
        assert found(cache, range(30)) == 10
    assert cache.faults()["vectors_not_stored"] == 60
    assert cache.faults()["commands_failed"] == 21  # of one put; the others were not tried
    assert cache.faults()["lookups_unanswered"] == 0
    assert len(logged) == 1
    assert "OutOfMemory" in logged[0]
    own_server.client().config_set("maxmemory", 0)
    clock[0] += 60
    put(cache, range(10, 30))
    assert found(cache, range(30)) == 30


def test_a_server_that_evicts_gives_right_vectors_or_none(own_server):
    client = own_server.client()
    used = int(client.info("memory")["used_memory"])
    client.config_set("maxmemory", used + 3_000_000)
    client.config_set("maxmemory-policy", "allkeys-lru")
    cache = RedisEmbeddingCache(url=own_server.url, timeout=PATIENT)
    for start in range(0, 40_000, 4000):
        these = range(start, start + 4000)
        cache.put(SPACE, hashes(*these), np.tile(vectors(start), (4000, 1)))
    last = cache.get(SPACE, hashes(*range(36_000, 40_000)))
    assert last.found.any()
    assert not cache.get(SPACE, hashes(*range(40_000))).found.all()
    assert (last.vectors[last.found] == vectors(36_000)).all()
    assert cache.faults()["vectors_not_stored"] == 0


REPLIES: dict[str, bytes] = {
    "a web server": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "no number": b"$abc\r\n",
    "fewer values": b"*1\r\n$-1\r\n",
    "a number": b":5\r\n",
    "half an answer": b"*2\r\n$5\r\nab",
    "a closed connection": b"",
    "loading": b"-LOADING Redis is loading the dataset in memory\r\n",
    "an error": b"-ERR x\r\n",
    "OK": b"+OK\r\n",
    "nothing": b"*-1\r\n",
    "zeros": bytes(99),
}


@pytest.mark.parametrize("name", REPLIES)
def test_whatever_else_answers_on_the_port_is_a_miss(name, clock):
    reply = REPLIES[name]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    try:
                        while connection.recv(1 << 16) and reply:
                            connection.sendall(reply)
                    except OSError:
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        cache = RedisEmbeddingCache(url=f"redis://127.0.0.1:{listening.getsockname()[1]}/0")
        for _ in range(2):
            assert not cache.contains(SPACE, hashes(1, 2)).any()
            assert not cache.get(SPACE, hashes(1, 2)).found.any()
            cache.put(SPACE, hashes(1, 2), vectors(1, 2))
            clock[0] += 60
        assert cache.faults()["commands_failed"] >= 2
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_wrong_password_is_a_miss_and_named(logged):
    with running_redis(password="right-one") as server:
        url = server.url.replace("//", "//:planted-wrong-one@")
        cache = RedisEmbeddingCache(url=url, timeout=PATIENT)
        assert not cache.get(SPACE, hashes(1)).found.any()
    assert len(logged) == 1
    assert "AuthenticationError" in logged[0] or "WRONGPASS" in logged[0]
    assert "planted" not in logged[0]


def test_without_the_redis_package_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "redis", None)
    with pytest.raises(ImportError, match=r"embedding-assets\[redis\]"):
        RedisEmbeddingCache().get(SPACE, hashes(1))


# --- secrets

SECRET = "s3cr3t-planted#/?@:%"


def test_credentials_from_url_or_environment_are_used_and_never_shown(
    tmp_path, monkeypatch, logged, capfd
):
    with running_redis(password="planted-4711") as server:
        write_jsonl(tmp_path / "a.jsonl", [{"id": "1", "text": "Cats purr."}])
        monkeypatch.setenv("PLANTED_URL", server.url_with_password)
        caches = [
            lambda: cache_from_url(server.url_with_password + "?timeout=30"),
            lambda: RedisEmbeddingCache(url=dg.EnvVar("PLANTED_URL"), timeout=PATIENT),
            lambda: RedisEmbeddingCache(url=server.url, timeout=PATIENT),
        ]
        for number, make in enumerate(caches):
            redis_server._known_credentials.clear()
            if number == 2:
                monkeypatch.setenv("EMBEDDING_CACHE_PASSWORD", "planted-4711")
            server.client().flushall()
            pipeline = small_pipeline(tmp_path, str(number))
            pipeline.resources["embedding_cache"] = cache = make()
            with shipped_instance(tmp_path / "dagster") as instance:
                result = pipeline.run(instance=instance)
            assert numbers(result, "embeddings")["embedded"] == 1
            assert len(server.client().keys("embeddings:vector:*")) == 1 + len(CANARIES)
            shown = [repr(cache), str(cache), json.dumps(cache._resolved_config_dict, default=str)]
            assert "planted-4711" not in "".join(shown)
        server.kill()
        unreachable = cache_from_url(server.url_with_password)
        unreachable.get(SPACE, hashes(1))
        with pytest.raises(CacheUnavailableError) as caught:
            unreachable.statistics()
        logged += traceback.format_exception(caught.value)
        server.start()
    assert "planted-4711" not in "".join([*logged, *capfd.readouterr()])
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert [str(path) for path in written if b"planted-4711" in path.read_bytes()] == []


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:planted#1@host:6379/0",
        "redis://user:12#planted@host:6379/0",
        "redis://user:12/planted@host:6379/0",
        "redis://user:planted?x@host:6379/0",
        "redis://host:6379/0?password=planted",
        "redis://host:6379/0?socket_timeout=60",
        "redis://user:planted@host:port",
        "redis://user:planted@[::1",
        "https://user:planted@host",
    ],
)
def test_a_wrong_url_is_refused_without_repeating_what_may_be_a_secret(url):
    with pytest.raises(ValueError, match="cache") as caught:
        cache_from_url(url)
    assert "planted" not in str(caught.value)
    with pytest.raises(ValueError, match="must look like redis://") as caught:
        RedisEmbeddingCache(url=url)
    assert "planted" not in str(caught.value)


def test_a_quoted_password_reaches_the_server():
    with running_redis(password=SECRET) as server:
        url = server.url.replace("//", f"//:{quote(SECRET, safe='')}@")
        cache = cache_from_url(url + "?ttl=60&prefix=p&storage=float16&timeout=30")
        cache.put(SPACE, hashes(1), vectors(1))
        assert cache.get(SPACE, hashes(1)).found.all()
        assert SECRET not in repr(cache)
        client = redis.Redis(port=server.port, password=SECRET)
        assert 0 < client.ttl(key(1).replace(b"embeddings", b"p")) <= 60


def test_a_copy_that_the_target_does_not_store_fails(tmp_path):
    origin = DuckDBEmbeddingCache(path=str(tmp_path / "cache.duckdb"))
    put(origin, range(10))
    with (
        running_redis("--maxmemory", "1") as full,
        pytest.raises(CacheUnavailableError, match="did not store 10"),
    ):
        copy_entries(origin, RedisEmbeddingCache(url=full.url, timeout=PATIENT))


# --- a whole run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("undisturbed")
    texts = [{"id": str(i), "text": f"Document {i} tells of the number {i}."} for i in range(40)]
    write_jsonl(folder / "a.jsonl", texts)
    pipeline = small_pipeline(folder, "undisturbed")
    pipeline.run()
    return pipeline


@pytest.mark.parametrize("fault", ["killed", "stalled", "full"])
def test_a_run_whose_server_fails_half_way_ends_like_an_undisturbed_one(
    undisturbed, own_server, fault, logged
):
    pipeline = small_pipeline(undisturbed.folder.parent, fault)
    calls = iter(range(100))

    class Disturbed(RedisEmbeddingCache):
        def put(self, space: EmbeddingSpace, content_hashes: pa.Array, vectors: np.ndarray) -> None:
            if next(calls) == 3:
                if fault == "full":
                    own_server.client().config_set("maxmemory", 1)
                else:
                    {"killed": own_server.kill, "stalled": own_server.stall}[fault]()
            super().put(space, content_hashes, vectors)

    pipeline.resources["embedding_cache"] = Disturbed(url=own_server.url)
    assert pipeline.run().success
    assert pipeline.rows() == undisturbed.rows()
    assert len([message for message in logged if "cache" in message]) == 1
    own_server.resume()


def test_a_fully_cached_run_embeds_nothing(tmp_path, server):
    write_jsonl(tmp_path / "a.jsonl", [{"id": str(i), "text": f"Text {i}."} for i in range(20)])
    for number, (hits, embedded) in enumerate([(0, 20), (20, 0)]):
        pipeline = small_pipeline(tmp_path, str(number))
        pipeline.resources["embedding_cache"] = RedisEmbeddingCache(url=server.url, timeout=PATIENT)
        counted = numbers(pipeline.run(), "embeddings")
        assert (counted["cache_hits"], counted["embedded"]) == (hits, embedded)
    cache = RedisEmbeddingCache(url=server.url, timeout=PATIENT)
    ((hits, misses),) = [(s.hits, s.misses) for s in cache.statistics()]
    assert (hits, misses) == (20, 20)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_a_server_behind_tls_is_used_if_its_certificate_is_trusted(
    server: RedisServer, tmp_path: Path, logged: list[str]
) -> None:
    certificate, private_key = make_certificate(tmp_path)
    with tls_proxy(server.port, certificate, private_key) as port:
        url = f"rediss://127.0.0.1:{port}/0"
        trusting = RedisEmbeddingCache(url=f"{url}?ssl_ca_certs={certificate}", timeout=PATIENT)
        put(trusting, range(5))
        assert found(trusting, range(5)) == 5
        assert server.client().exists(key(3))
        assert not logged
        assert found(RedisEmbeddingCache(url=url, timeout=PATIENT), range(5)) == 0, (
            "a foreign certificate"
        )
        assert len(logged) == 1


def test_keys_are_asked_for_and_written_by_the_thousand(
    cache: RedisEmbeddingCache, server: RedisServer
) -> None:
    server.client().config_resetstat()
    numbers = range(10_000)
    cache.put(SPACE, hashes(*numbers), vectors(*numbers))
    assert found(cache, range(10_000)) == 10_000
    statistics: Any = server.client().info("commandstats")
    assert statistics["cmdstat_mget"]["calls"] <= 4
    statistics = server.client().info("stats")
    # A connection reads what comes together: a round trip for each key would be 10,000.
    assert statistics["total_reads_processed"] < 2_000
