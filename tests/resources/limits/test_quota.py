"""Quotas of clients: counted anew by an oracle, in memory and on a real Redis."""

import logging
import math
import random
import re
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from resources.errors import InvalidInputError
from resources.limits import redis_quota
from resources.limits.base import NO_LIMITS
from resources.limits.from_url import quotas_from_url, rate_limiter_from_url
from resources.limits.quota import (
    DIMENSIONS,
    SLOTS,
    Cost,
    Dimension,
    MemoryQuotas,
    Quota,
    Quotas,
)
from resources.limits.redis_quota import RedisQuotas
from tests.support.redis_server import RedisServer, running_redis

WINDOW = 60.0
SLOT = WINDOW / SLOTS
ONE = Cost(requests=1)

Make = Callable[..., Quotas]


class Clock:
    """A time that a test sets, for this process and for a Redis server."""

    def __init__(self) -> None:
        self._server: redis.Redis | None = None
        self.set(1_700_000_000.0)

    def __call__(self) -> float:
        return self.now

    def set(self, now: float) -> None:
        self.now = now
        if self._server is not None:
            seconds, micros = divmod(round(now * 1e6), 1_000_000)
            self._server.mset({"clock:seconds": seconds, "clock:micros": micros})

    def advance(self, seconds: float) -> None:
        self.set(self.now + seconds)

    def rule(self, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """The script reads this clock in place of the server's own."""
        ours = "redis.call('MGET', 'clock:seconds', 'clock:micros')"
        script = redis_quota._LUA.replace("redis.call('TIME')", ours)
        assert script != redis_quota._LUA
        monkeypatch.setattr(redis_quota, "_LUA", script)
        self._server = server.client()
        self.set(self.now)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "redis"])
def make(request: pytest.FixtureRequest, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes quotas; those in Redis are all the same."""
    if request.param == "memory":
        return lambda: MemoryQuotas(WINDOW, clock)
    server: RedisServer = request.getfixturevalue("redis_server")
    clock.rule(server, monkeypatch)
    return lambda: RedisQuotas(server.url, timeout=30.0, window=WINDOW, clock=clock)


class Oracle:
    """All that was granted to one client, and when."""

    def __init__(self, quota: Quota) -> None:
        self.limits = quota.limits
        self.granted: list[tuple[float, tuple[int, int, int]]] = []

    def taken(self, since: float) -> list[int]:
        """By dimension, after a time."""
        kept = [amounts for at, amounts in self.granted if at > since]
        return [sum(amounts[i] for amounts in kept) for i in range(3)]

    def fits(self, since: float, cost: Cost) -> bool:
        return all(
            limit is None or not amount or taken + amount <= limit
            for limit, amount, taken in zip(
                self.limits, cost.amounts, self.taken(since), strict=True
            )
        )


def any_cost(generator: random.Random) -> Cost:
    return Cost(generator.randint(0, 2), generator.choice([0, 1, 8]), generator.randint(0, 700))


def any_time(generator: random.Random) -> float:
    """Binary fractions: their sums have no rounding."""
    return generator.choice([0, 1, 7, 300, 900, 5000, 20_000]) * generator.random() // 1 / 1024


def check(quotas: Quotas, oracle: Oracle, client: str, cost: Cost, now: float) -> None:
    """Takes; what was granted is in no window too much, and nothing was refused for nothing."""
    found = quotas.take(client, Quota(*oracle.limits), cost)
    if found.allowed:
        assert oracle.fits(now - WINDOW, cost), "a window holds more than the limit"
        oracle.granted.append((now, cost.amounts))
        assert found.retry_after == 0
    else:
        assert not oracle.fits(now - WINDOW - SLOT, cost), "it was refused without a reason"
        assert found.retry_after > 0
    assert found.dimension is not None
    i = DIMENSIONS.index(found.dimension)
    limit = oracle.limits[i]
    assert limit is not None
    assert found.limit == limit
    least, most = (limit - oracle.taken(now - w)[i] for w in (WINDOW + SLOT, WINDOW))
    assert found.remaining is not None
    assert max(0, least) <= found.remaining <= max(0, most)
    assert 0 <= found.reset <= WINDOW + SLOT


@pytest.mark.parametrize("seed", range(3))
def test_no_window_holds_more_than_the_limit(make: Make, clock: Clock, seed: int) -> None:
    generator = random.Random(seed)
    quota = Quota(generator.choice([None, 12]), generator.choice([None, 40]), 3000)
    quotas, oracle = make(), Oracle(quota)
    for _ in range(300):
        clock.advance(any_time(generator))
        check(quotas, oracle, "client", any_cost(generator), clock())
    assert 20 < len(oracle.granted) < 300


@pytest.mark.parametrize("seed", range(3))
def test_the_same_cost_is_granted_after_exactly_retry_after(
    make: Make, clock: Clock, seed: int
) -> None:
    generator = random.Random(seed)
    quotas, quota = make(), Quota(10, 40, 2500)
    refused = 0
    while refused < 25:
        cost, asked = any_cost(generator), round(clock(), 6)  # Redis has no half microseconds
        clock.set(asked)
        found = quotas.take("client", quota, cost)
        if found.allowed:
            clock.advance(any_time(generator) / 8 + generator.random() / 1000)
            continue
        refused += 1
        # A slot before, and the least that both clocks tell apart.
        for early in (SLOT, 2e-6):
            if found.retry_after > early:
                clock.set(asked + found.retry_after - early)
                again = quotas.take("client", quota, cost)
                assert not again.allowed
                assert again.retry_after == pytest.approx(early, abs=2e-6)
        clock.set(asked + found.retry_after)
        assert quotas.take("client", quota, cost).allowed


@pytest.mark.parametrize("now", [0.0, 0.3, 7.1, 12_345.678_9, 0.1 + 0.2])
@pytest.mark.parametrize("window", [60.0, 0.7, 1 / 3])
def test_no_rounding_makes_who_comes_back_in_time_too_early(now: float, window: float) -> None:
    clock = Clock()
    clock.set(now)
    quotas = MemoryQuotas(window, clock)
    for _ in range(200):
        assert quotas.take("client", Quota(requests=1), ONE).allowed
        clock.advance(quotas.take("client", Quota(requests=1), ONE).retry_after)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_each_dimension_has_its_limit(make: Make, clock: Clock, dimension: Dimension) -> None:
    quotas, quota = make(), Quota(**{dimension: 10})
    cost = Cost(**{"requests": 0, dimension: 4})
    assert quotas.take("client", quota, cost).remaining == 6
    clock.advance(1.0)
    found = quotas.take("client", quota, cost)
    assert (found.allowed, found.dimension, found.limit, found.remaining) == (
        True,
        dimension,
        10,
        2,
    )
    assert found.reset == WINDOW + SLOT
    found = quotas.take("client", quota, cost)
    assert (found.allowed, found.dimension, found.limit, found.remaining) == (
        False,
        dimension,
        10,
        2,
    )
    assert (found.retry_after, found.reset) == (WINDOW + SLOT - 1, WINDOW + SLOT)
    others = {name: 10**6 for name in DIMENSIONS if name != dimension}
    assert quotas.take("client", quota, Cost(**{**others, dimension: 0})).allowed


def test_what_is_refused_takes_nothing(make: Make) -> None:
    quotas, quota = make(), Quota(10, None, 100)
    for _ in range(20):
        assert not quotas.take("client", quota, Cost(tokens=101)).allowed
    assert quotas.take("client", quota, Cost(10, 0, 100)).allowed


def test_a_cost_above_the_limit_is_never_granted_and_says_which(make: Make) -> None:
    quotas, quota = make(), Quota(10, 20, 100)
    quotas.take("client", quota, Cost(10, 0, 0))
    found = quotas.take("client", quota, Cost(1, 21, 0))
    assert (found.allowed, found.dimension, found.limit, found.retry_after) == (
        False,
        "texts",
        20,
        math.inf,
    )
    assert found.remaining == 20
    assert quotas.take("nobody", Quota(requests=0), ONE).retry_after == math.inf


def test_the_scarcest_is_what_is_waited_for_longest_or_has_the_least_left(
    make: Make, clock: Clock
) -> None:
    quotas, quota = make(), Quota(10, 100, 1000)
    assert quotas.take("client", quota, Cost(1, 50, 400)).dimension == "texts"
    clock.advance(2 * SLOT)
    assert quotas.take("client", quota, Cost(1, 0, 500)).dimension == "tokens"
    found = quotas.take("client", quota, Cost(1, 60, 50))
    assert (found.dimension, found.retry_after) == ("texts", WINDOW - SLOT)
    found = quotas.take("client", quota, Cost(1, 60, 700))
    assert (found.dimension, found.retry_after) == ("tokens", WINDOW + SLOT)


def test_without_limits_all_is_allowed(make: Make) -> None:
    found = make().take("client", Quota(), Cost(10**6, 10**9, 10**12))
    assert (found.allowed, found.dimension, found.limit, found.remaining) == (
        True,
        None,
        None,
        None,
    )


def test_clients_and_changes_of_a_quota(make: Make) -> None:
    quotas = make()
    assert quotas.take("one", Quota(requests=10), Cost(10)).allowed
    assert quotas.take("two", Quota(requests=10), Cost(10)).allowed
    assert not quotas.take("one", Quota(requests=10), ONE).allowed
    assert quotas.take("one", Quota(requests=12), ONE).remaining == 1
    found = quotas.take("one", Quota(requests=5), ONE)
    assert (found.allowed, found.remaining, found.retry_after) == (False, 0, WINDOW + SLOT)
    assert quotas.take("one", Quota(5, 10), Cost(0, 10)).allowed, "it takes no request"


@pytest.fixture
def _threads_change_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_threads_change_often")
def test_eight_threads_never_take_more_than_the_limit(make: Make) -> None:
    first = make()
    second = first if isinstance(first, MemoryQuotas) else make()
    start = threading.Barrier(8)

    def take_many(number: int) -> int:
        start.wait(60)
        quotas = (first, second)[number % 2]
        found = [quotas.take("client", Quota(100, 250), Cost(1, 2)) for _ in range(40)]
        return sum(verdict.allowed for verdict in found)

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(take_many, range(8))) == 100


@pytest.mark.parametrize("amounts", [(-1, 0, 0), (0, -1, 0), (0, 0, -1)])
def test_nothing_negative_adds_to_a_quota(amounts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="negative"):
        Cost(*amounts)
    with pytest.raises(ValueError, match="negative"):
        Quota(*amounts)


# --- In memory: many clients ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_no_window_holds_more_where_clients_share_a_place(clock: Clock, seed: int) -> None:
    generator = random.Random(seed)
    quotas, quota = MemoryQuotas(WINDOW, clock, max_clients=2), Quota(6)
    oracles: dict[str, Oracle] = defaultdict(lambda: Oracle(quota))
    shared = 0
    for _ in range(800):
        clock.advance(any_time(generator))
        oracle, now = oracles[client := generator.choice("abcde")], clock()
        if quotas.take(client, quota, ONE).allowed:
            assert oracle.fits(now - WINDOW, ONE)
            oracle.granted.append((now, ONE.amounts))
        elif oracle.fits(now - WINDOW - SLOT, ONE):
            shared += 1
        assert len(quotas) <= 2
    assert shared, "who has no place of its own shares one"


def test_a_flood_of_clients_has_bounds_and_costs_nobody_before_it(clock: Clock) -> None:
    quotas, quota = MemoryQuotas(WINDOW, clock, max_clients=100), Quota(requests=10)
    assert quotas.take("before", quota, Cost(4)).allowed
    granted = sum(quotas.take(f"flood {n}", quota, ONE).allowed for n in range(10_000))
    assert granted == 99 + 10
    assert len(quotas) == 100
    assert quotas.take("before", quota, Cost(6)).allowed
    assert not quotas.take("before", quota, ONE).allowed
    clock.advance(WINDOW + SLOT)
    assert all(quotas.take(f"after {n}", quota, Cost(10)).allowed for n in range(100))
    assert len(quotas) == 100


def test_clients_whose_window_is_empty_are_forgotten(clock: Clock) -> None:
    quotas, quota = MemoryQuotas(WINDOW, clock), Quota(requests=10)
    for number in range(1000):
        quotas.take(f"client {number}", quota, ONE)
    clock.advance(WINDOW)
    assert not quotas.take("client 999", quota, Cost(10)).allowed
    clock.advance(SLOT)
    for number in range(600):
        quotas.take("refused", quota, Cost(11))
        quotas.take(f"new {number}", quota, ONE)
    assert len(quotas) == 600


def test_one_that_goes_on_asking_keeps_no_idle_one_in_its_place(clock: Clock) -> None:
    quotas, quota = MemoryQuotas(WINDOW, clock, max_clients=4), Quota(requests=10)
    for client in ("busy", "idle 1", "idle 2", "idle 3"):
        quotas.take(client, quota, ONE)
    clock.advance(WINDOW)
    quotas.take("busy", quota, ONE)
    clock.advance(SLOT)
    assert all(quotas.take(f"new {n}", quota, Cost(10)).allowed for n in range(3))
    assert quotas.take("busy", quota, ONE).remaining == 8


# --- In Redis -------------------------------------------------------------------------------------


def test_the_clock_is_that_of_redis(redis_server: RedisServer) -> None:
    quotas = RedisQuotas(redis_server.url, timeout=30.0, window=0.3)
    for _ in range(3):
        assert quotas.take("client", Quota(requests=2), Cost(2)).allowed
        while retry := quotas.take("client", Quota(requests=2), Cost(2)).retry_after:
            assert retry <= 0.3 * (SLOTS + 1) / SLOTS
            time.sleep(retry)  # once, unless the machine is so slow that the last one was granted
            break


def test_a_client_is_one_key_that_expires_and_says_nothing(redis_server: RedisServer) -> None:
    quotas = RedisQuotas(redis_server.url, "quota", timeout=30.0)
    hostile = ["2001:db8::1", "a b\n*", "x" * 65, "", "\ud800", "käse", "sha256.00"]
    for client in ["plain-Id_0", *hostile]:
        assert quotas.take(client, Quota(requests=1), ONE).allowed
        assert not quotas.take(client, Quota(requests=1), ONE).allowed
    server = redis_server.client()
    keys = {str(key, "ascii") for key in server.scan_iter()}
    keys.remove("quota:plain-Id_0")
    assert len(keys) == len(hostile)
    assert all(re.fullmatch(r"quota:sha256\.[0-9a-f]{64}", key) for key in keys)
    assert all(0 < server.pttl(key) <= 1000 * (WINDOW + SLOT) for key in keys)  # pyright: ignore


def test_a_refusal_writes_nothing(redis_server: RedisServer) -> None:
    quotas, server = RedisQuotas(redis_server.url, timeout=30.0), redis_server.client()
    server.config_resetstat()
    assert granted(quotas, Quota(requests=3)) == 3
    statistics: Any = server.info("commandstats")
    assert statistics["cmdstat_set"]["calls"] == 3


def test_a_clock_of_redis_that_is_set_back_costs_a_window(
    redis_server: RedisServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.rule(redis_server, monkeypatch)
    quotas, quota = RedisQuotas(redis_server.url, timeout=30.0), Quota(requests=10)
    for _ in range(5):
        quotas.take("client", quota, Cost(2))
        clock.advance(3.0)
    clock.advance(-86_400)
    found = quotas.take("client", quota, ONE)
    assert (found.allowed, found.retry_after) == (False, WINDOW + SLOT)
    clock.advance(WINDOW + SLOT)
    assert quotas.take("client", quota, Cost(10)).allowed


def count_asked(quotas: RedisQuotas, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one each time that Redis is asked."""
    asked: list[int] = []
    script = quotas._script

    def ask(**arguments: Any) -> Any:
        asked.append(1)
        return script(**arguments)

    monkeypatch.setattr(quotas, "_script", ask)
    return asked


def granted(quotas: Quotas, quota: Quota, attempts: int = 50) -> int:
    return sum(quotas.take("client", quota, ONE).allowed for _ in range(attempts))


def test_a_share_is_granted_while_redis_is_away_and_all_when_it_is_back(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="resources")
    with running_redis() as server:
        quotas = RedisQuotas(server.url, replicas=4, timeout=30.0, clock=clock)
        asked = count_asked(quotas, monkeypatch)
        assert granted(quotas, Quota(requests=20), 2) == 2
        server.kill()
        assert granted(quotas, Quota(requests=20)) == 5
        assert len(asked) == 2 + 1
        clock.advance(0.99)
        server.start()
        assert not granted(quotas, Quota(requests=20))
        assert len(asked) == 2 + 1
        clock.advance(0.02)
        assert granted(quotas, Quota(requests=20)) == 20
        assert len(asked) == 2 + 1 + 50
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    warning, info = caplog.messages
    assert "grants 1/4 of each client's quota by itself" in warning
    assert "answers again" in info


def test_a_server_that_stalls_keeps_one_request_waiting_and_one_a_second(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    with running_redis() as server:
        quotas = RedisQuotas(server.url, replicas=2, timeout=0.1, clock=clock)
        asked = count_asked(quotas, monkeypatch)
        server.stall()
        assert granted(quotas, Quota(requests=20)) == 10
        assert len(asked) == 1
        with ThreadPoolExecutor(8) as threads:
            for seconds in range(1, 4):
                clock.advance(1.0)
                found = threads.map(lambda _: granted(quotas, Quota(requests=20)), range(8))
                assert not sum(found)
                assert len(asked) == 1 + seconds
        server.resume()
    (warning,) = logged
    assert "TimeoutError" in warning


def test_what_exceeds_the_share_alone_may_come_again_and_what_exceeds_the_quota_may_not(
    clock: Clock,
) -> None:
    quotas = RedisQuotas("redis://127.0.0.1:1/0", replicas=4, clock=clock)
    quota = Quota(2, 100)
    found = quotas.take("client", quota, Cost(1, 26))
    assert (found.allowed, found.dimension, found.limit, found.retry_after) == (
        False,
        "texts",
        25,
        WINDOW,
    )
    found = quotas.take("client", quota, Cost(1, 101))
    assert (found.dimension, found.limit, found.retry_after) == ("texts", 100, math.inf)
    assert quotas.take("client", quota, Cost(1, 25)).allowed, "at least one request"
    assert not quotas.take("client", quota, Cost(1, 0)).allowed
    assert not quotas.take("client", Quota(0), Cost(1, 0)).allowed


def test_a_password_is_in_no_warning_and_no_error(logged: list[str]) -> None:
    RedisQuotas("redis://u:planted@127.0.0.1:1/0").take("client", Quota(1), ONE)
    with running_redis(password="right") as server:
        wrong = server.url.replace("//", "//:planted@")
        RedisQuotas(wrong, timeout=30.0).take("client", Quota(1), ONE)
    assert len(logged) == 2
    assert "planted" not in "".join(logged)
    for url in ("redis://:planted@host:port/0", "http://:planted@host", ":planted@host"):
        with pytest.raises(InvalidInputError, match="EMBEDDING_RATE_LIMITER") as caught:
            quotas_from_url(url)
        assert "planted" not in str(caught.value)


def test_a_url_says_where_quotas_are_counted(redis_server: RedisServer, tmp_path: Path) -> None:
    assert isinstance(quotas_from_url(None), MemoryQuotas)
    assert isinstance(quotas_from_url(""), MemoryQuotas)
    # The rate limiter may have the same URL.
    url = redis_server.url + "?replicas=3&machines=2&socket_timeout=30"
    quotas = quotas_from_url(url)
    assert isinstance(quotas, RedisQuotas)
    assert quotas._replicas == 3
    assert quotas.take("client", Quota(1), ONE).allowed
    assert redis_server.client().exists("embedding-assets:quota:client")
    limiter = rate_limiter_from_url(url, "id", tmp_path, NO_LIMITS, window=60, lease=60)
    limiter.acquire(1)
    assert limiter.usage().share == 1
    for wrong in ("0", "-1", "x", "²"):
        with pytest.raises(InvalidInputError, match="a number of replicas from 1"):
            quotas_from_url(f"redis://host?replicas={wrong}")
