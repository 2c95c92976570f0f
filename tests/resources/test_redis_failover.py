"""After a failover the name leads to another Redis, and open connections to one that only reads."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from resources.caches.redis import RedisEmbeddingCache
from resources.limits.base import Limits
from resources.limits.redis import RedisRateLimiter
from tests.support.caches import SPACE, found, hashes, put, vectors
from tests.support.forwarder import Forwarder, forwarding
from tests.support.redis_server import RedisServer, running_redis

PATIENT = 30.0
"""Seconds for a command: longer than any stall of a busy machine."""


@dataclass
class Pair:
    """Two servers, one the replica of the other, and the name of the one that takes writes."""

    first: RedisServer
    second: RedisServer
    name: Forwarder

    def fail_over(self) -> None:
        self.second.client().replicaof("NO", "ONE")
        self.first.client().replicaof("127.0.0.1", str(self.second.port))
        self.name.target = self.second.port


@pytest.fixture
def pair() -> Iterator[Pair]:
    with running_redis() as first, running_redis() as second, forwarding(first.port) as name:
        second.client().replicaof("127.0.0.1", str(first.port))
        yield Pair(first, second, name)


def test_the_cache_writes_to_the_new_primary_at_once_and_says_so_once(
    pair: Pair, logged: list[str]
) -> None:
    cache = RedisEmbeddingCache(url=pair.name.url, timeout=PATIENT)
    put(cache, range(10))
    assert pair.first.client().wait(1, int(PATIENT * 1000)) == 1
    pair.fail_over()
    put(cache, range(10, 30))
    put(cache, range(30, 40))
    assert found(cache, range(40)) == 40
    assert len(pair.second.client().keys("embeddings:vector:*")) == 40
    assert set(cache.faults().values()) == {0}
    assert pair.name.connections == 2, "one before and one after"
    (warning,) = logged
    assert "takes no writes any more, as after a failover" in warning


def test_what_is_removed_from_the_cache_is_removed_at_the_new_primary(pair: Pair) -> None:
    cache = RedisEmbeddingCache(url=pair.name.url, timeout=PATIENT)
    put(cache, range(10))
    assert pair.first.client().wait(1, int(PATIENT * 1000)) == 1
    pair.fail_over()
    (removed,) = cache.invalidate(hashes(*range(4)))
    assert removed.entries == 4
    assert len(pair.second.client().keys("embeddings:vector:*")) == 6


def test_a_cache_that_only_reads_is_read_on_until_it_takes_writes(
    pair: Pair, logged: list[str]
) -> None:
    """The name does not move: whoever manages these servers has not come so far."""
    cache = RedisEmbeddingCache(url=pair.name.url, timeout=PATIENT)
    put(cache, range(10))
    pair.fail_over()
    pair.name.target = pair.first.port
    cache.put(SPACE, hashes(20), vectors(20))
    assert cache.faults()["vectors_not_stored"] == 1
    assert found(cache, range(10)) == 10
    assert pair.name.connections == 2, "it looked once whether the name had moved"
    assert ["takes no writes" in logged[0], "refuses to store" in logged[1]] == [True, True]
    assert len(logged) == 2


def test_the_limiter_shares_the_whole_limit_again_and_says_so_once(
    pair: Pair, tmp_path: Path, logged: list[str]
) -> None:
    limiters = [
        RedisRateLimiter(pair.name.url, "key", tmp_path / name, Limits(800, None), timeout=PATIENT)
        for name in ("here", "there")
    ]
    here, there = limiters
    there.settle(there.acquire(1), 1)
    here.acquire(1)
    assert pair.first.client().wait(1, int(PATIENT * 1000)) == 1
    pair.fail_over()
    here.acquire(1)
    assert there._step({}).used == (3, 3), "one budget, also of what was granted before"
    assert here.limits == there.limits == Limits(800, None)
    assert [limiter.usage().share for limiter in limiters] == [1, 1]
    assert not here.paused
    assert pair.name.connections == 4, "two of each"
    assert ["takes no writes any more" in warning for warning in logged] == [True, True]
