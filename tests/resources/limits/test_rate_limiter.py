"""The budget that processes share: counted at a server, on files and on a real Redis."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from resources.limits.base import VARIABLE, LimitError, Limits, RateLimiter, ReportedLimits
from resources.limits.from_url import rate_limiter_from_url
from resources.limits.local import LocalRateLimiter, _State
from resources.limits.redis import RedisRateLimiter
from tests.support.limiter_load import most_in_a_window, run_processes, used_of
from tests.support.redis_server import RedisServer, running_redis

Make = Callable[..., RateLimiter]


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """One that a test may stop."""
    with running_redis() as server:
        yield server


@pytest.fixture(params=["local", "redis"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes limiters that share one budget."""
    path = tmp_path / "budget.json"
    if request.param == "local":
        return lambda *limits, **options: LocalRateLimiter(path, Limits(*limits), **options)
    server: RedisServer = request.getfixturevalue("redis_server")
    return lambda *limits, **options: RedisRateLimiter(
        server.url, str(tmp_path), path, Limits(*limits), timeout=5.0, **options
    )


def waits(limiter: RateLimiter, tokens: int = 1) -> bool:
    """Whether a request would have to wait; it is not made."""
    return limiter._step({"acquire": ["probe", tokens]}).wait != 0


# --- The promise: counted at a server, by eight processes -----------------------------------------


@pytest.mark.parametrize(
    ("backend", "requests", "tokens"),
    [
        ("local", 100, None),
        ("redis", None, 4000),
        pytest.param("local", None, 4000, marks=pytest.mark.slow),
        pytest.param("redis", 100, None, marks=pytest.mark.slow),
    ],
)
def test_eight_processes_use_the_limit_and_never_exceed_it_in_any_window(
    backend: str,
    requests: int | None,
    tokens: int | None,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    limits, window, windows = Limits(requests, tokens), 2.0, 3
    environment = {}
    if backend == "redis":
        # A busy machine may stall a process for longer than the limiter would wait.
        timeout = "?socket_timeout=10&socket_connect_timeout=10"
        environment[VARIABLE] = request.getfixturevalue("redis_server").url + timeout
    arrivals = run_processes(8, limits, window, windows, tmp_path, environment)
    most_requests, most_tokens = most_in_a_window(arrivals, window)
    assert most_requests <= (requests or most_requests)
    assert most_tokens <= (tokens or most_tokens)
    used = used_of(arrivals, limits, window * windows) / windows
    print(f"used {used:.3f}; most in a window: {most_requests} requests, {most_tokens} tokens")
    assert used >= 0.95


# --- One budget -----------------------------------------------------------------------------------


def test_requests_and_tokens_are_one_step(make: Make) -> None:
    limiter = make(5, 1000, window=30.0)
    limiter.acquire(90)
    assert waits(limiter, 990)
    assert limiter._step({}).used == (1, 90), "a refused request takes nothing of either"


def test_a_second_limiter_sees_what_the_first_took(make: Make) -> None:
    one, two = make(None, 100, window=30.0), make(None, 100, window=30.0)
    grant = one.acquire(100)
    assert waits(two)
    one.settle(grant, 10)
    assert two._step({}).used == (1, 10), "what was not taken is free as soon as the request ended"


def test_a_tenth_of_the_window_takes_no_more_than_the_pace(make: Make) -> None:
    limiter = make(None, 1000, window=2.0)
    limiter.settle(limiter.acquire(150), 150)
    assert waits(limiter)
    began = time.monotonic()
    limiter.acquire(1)
    assert time.monotonic() - began >= 0.2


def test_a_request_in_flight_counts_however_long_it_takes(make: Make) -> None:
    limiter = make(1, None, window=0.1)
    grant = limiter.acquire(1)
    time.sleep(0.2)
    assert waits(limiter)
    limiter.settle(grant, 1)
    assert waits(limiter)
    limiter.acquire(1)  # one window later


def test_a_killed_process_gives_back_its_place_when_its_lease_ends(make: Make) -> None:
    limiter = make(1, None, window=0.05, lease=0.3)
    limiter.acquire(1)  # and never settled
    began = time.monotonic()
    limiter.acquire(1)
    assert time.monotonic() - began >= 0.3


def test_a_request_above_the_limit_is_an_error(make: Make) -> None:
    with pytest.raises(LimitError, match="up to 101 tokens, but the limit is"):
        make(None, 100).acquire(101)


def test_without_limits_nothing_waits_but_for_a_pause(make: Make) -> None:
    limiter = make(window=0.5)
    for _ in range(50):
        limiter.acquire(10**9)
    limiter.pause(0.3)
    other = make(window=0.5)
    assert 0 < other.paused <= 0.3
    began = time.monotonic()
    other.acquire(1)
    assert time.monotonic() - began >= 0.25
    assert other.usage().seconds_waited >= 0.25


def test_a_shorter_pause_does_not_end_a_longer_one(make: Make) -> None:
    limiter = make()
    limiter.pause(20)
    limiter.pause(1)
    assert limiter.paused > 19


def test_the_lower_of_configured_and_learned_limits_holds_for_all(make: Make) -> None:
    one, two = make(10, None), make()
    one.settle(one.acquire(1), 1, ReportedLimits(Limits(500, 2000)))
    assert one.limits == Limits(10, 2000)
    assert two.limits == Limits(500, 2000)


def test_what_the_provider_counts_beyond_ours_is_somebody_elses(make: Make) -> None:
    limiter = make(None, 1000, window=30.0)
    limiter.settle(limiter.acquire(10), 10, ReportedLimits(remaining=Limits(None, 300)))
    assert limiter._step({}).used == (1, 700)
    limiter.settle(limiter.acquire(20), 20, ReportedLimits(remaining=Limits(None, 900)))
    assert limiter._step({}).used == (2, 720), "a provider that forgets sooner frees nothing"


def test_usage_shows_what_was_granted_and_the_share_of_the_limit(make: Make) -> None:
    limiter = make(100, 1000)
    for _ in range(2):
        limiter.settle(limiter.acquire(60), 50)
    usage = limiter.usage()
    assert (usage.requests, usage.tokens, usage.limits) == (2, 100, Limits(100, 1000))
    assert usage.utilisation == pytest.approx(0.11)  # 50 taken, 60 in flight


def test_redis_and_file_take_the_same_steps(redis_server: RedisServer, tmp_path: Path) -> None:
    """`_LUA` and `_State.step` are one algorithm: asked the same, both answer the same."""
    limiter = RedisRateLimiter(redis_server.url, str(tmp_path / "same"), tmp_path / "f")
    connection = redis.Redis.from_url(redis_server.url)
    generator = random.Random(3)
    state = _State()
    granted: list[str] = []
    grants = 0
    for number in range(400):
        ask: dict[str, Any] = {"limits": [20, 900], "window": 1000.0, "jitter": 0.5}
        kind = generator.choice(["acquire", "acquire", "again", "settle", "learn", "remaining"])
        if kind == "acquire":
            ask["acquire"] = [str(number), generator.randint(1, 130)]
            ask["lease"] = generator.choice(
                [1000.0, 1000.0, 0.0]
            )  # 0: it ends before the next step
        elif kind == "again" and granted:  # the answer was lost
            ask["acquire"] = [granted[-1], generator.randint(1, 130)]
        elif kind == "settle" and granted:
            ask["settle"] = [granted.pop(0), generator.randint(1, 100)]
        elif kind == "learn":
            ask["learn"] = [generator.choice([0, 15, 30]), generator.choice([0, 500, 2000])]
        else:
            ask["remaining"] = [-1, generator.randint(800, 900)]
        if number % 5 == 4:  # both forget what has ended
            state.slots = {}
            kept = json.loads(connection.get(str(tmp_path / "same")) or b"{}")  # type: ignore[reportArgumentType]
            connection.set(str(tmp_path / "same"), json.dumps({**kept, "slots": {}}))
        ours = state.step(time.time(), limiter._complete(ask))
        theirs = limiter._step(ask)
        assert (ours.wait, ours.used, ours.limits) == (theirs.wait, theirs.used, theirs.limits)
        if kind == "acquire" and ours.wait == 0:
            granted.append(str(number))
            grants += 1
    assert grants > 20
    for ask in ({"pause": 500.0}, {"acquire": ["paused", 1]}, {"acquire": ["never", 1001]}):
        ask |= {"limits": [20, 900], "learn": [20, 1000]}
        ours, theirs = state.step(time.time(), limiter._complete(ask)), limiter._step(ask)
        assert theirs.wait == pytest.approx(ours.wait, abs=5)
        assert theirs.paused == pytest.approx(ours.paused, abs=5)


# --- Files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", ["{", "[]", "7", '{"slots": 5}', '{"leases": {"a": 1}}', '{"x": 1}', "\x00\xff"]
)
def test_a_damaged_file_is_taken_as_a_spent_budget(content: str, tmp_path: Path) -> None:
    (tmp_path / "budget.json").write_text(content)
    limiter = LocalRateLimiter(tmp_path / "budget.json", Limits(10, None), window=0.2)
    assert waits(limiter)
    limiter.acquire(1)


def test_a_file_of_before_the_last_boot_is_taken_as_a_spent_budget(tmp_path: Path) -> None:
    path = tmp_path / "budget.json"
    path.write_text(json.dumps({"seen": time.monotonic() + 1e6, "learned": [7, 0]}))
    limiter = LocalRateLimiter(path, window=0.2)
    assert waits(limiter)
    assert limiter.limits == Limits(7, None)
    limiter.acquire(1)


def test_only_the_user_can_read_what_is_shared(tmp_path: Path) -> None:
    LocalRateLimiter(tmp_path / "budget.json").acquire(1)
    assert (tmp_path / "budget.json").stat().st_mode & 0o077 == 0


# --- Redis ----------------------------------------------------------------------------------------


def of_redis(server: RedisServer, folder: Path, **options: Any) -> RedisRateLimiter:
    given: dict[str, Any] = {"window": 0.5, "machines": 4, "timeout": 0.2, **options}
    return RedisRateLimiter(server.url, "key", folder / "share.json", Limits(8, None), **given)


def test_without_redis_nothing_is_granted_for_a_window_and_then_a_share(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    limiter = of_redis(own_redis, tmp_path)
    limiter.settle(limiter.acquire(1), 1)
    own_redis.kill()
    began = time.monotonic()
    limiter.settle(limiter.acquire(1), 1)
    assert time.monotonic() - began >= 0.5
    times = []
    for _ in range(5):
        limiter.settle(limiter.acquire(1), 1)
        times.append(time.monotonic())
    assert all(times[i + 2] - times[i] >= 0.5 for i in range(3)), "8 requests / 4 machines = 2"


def test_limits_that_shrink_while_redis_is_away_shrink_the_share(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    limiter = of_redis(own_redis, tmp_path)
    limiter.settle(limiter.acquire(1), 1, ReportedLimits(Limits(400, None)))
    own_redis.kill()
    limiter.settle(limiter.acquire(1), 1, ReportedLimits(Limits(4, 1000)))
    assert limiter.limits == Limits(1, 250), "4 requests / 4 machines"
    limiter.settle(limiter.acquire(1), 1, ReportedLimits(Limits(400, 1000)))
    assert limiter.limits == Limits(2, 250), "its own limit of 8 holds too"


def test_a_short_outage_grants_nothing_and_costs_one_wait(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    limiter = of_redis(own_redis, tmp_path, window=30.0)
    own_redis.stall()
    threading.Timer(0.5, own_redis.resume).start()
    began = time.monotonic()
    limiter.acquire(1)
    assert 0.4 <= time.monotonic() - began < 30
    share = _State(**json.loads((tmp_path / "share.json").read_text()))
    assert (share.leases, share.slots) == ({}, {}), "this machine granted nothing by itself"


def test_after_an_outage_redis_grants_nothing_for_a_window(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    limiter = of_redis(own_redis, tmp_path)
    limiter.acquire(1)
    own_redis.kill()
    limiter.acquire(1)
    own_redis.start()
    other = of_redis(own_redis, tmp_path, window=30.0)
    assert not other.paused
    while limiter._away_since is not None:
        limiter._step({})
        time.sleep(0.005)
    assert other.paused > 0


def test_who_granted_nothing_in_an_outage_knows_that_others_may_have(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    here, there = of_redis(own_redis, tmp_path / "here"), of_redis(own_redis, tmp_path / "there")
    own_redis.stall()  # it forgets nothing
    assert waits(here)
    there.acquire(1)  # a window later; then this machine is switched off
    own_redis.resume()
    while here._away_since is not None:
        assert waits(here)
        time.sleep(0.005)
    assert here.paused > 0


def test_a_clock_of_redis_that_is_set_back_costs_a_window(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    limiter = of_redis(own_redis, tmp_path)
    for _ in range(3):
        limiter.settle(limiter.acquire(1), 1)
    limiter.acquire(1)
    client = redis.Redis.from_url(own_redis.url)
    state = json.loads(client.get("key"))  # type: ignore[reportArgumentType]
    slot = 0.5 / 100
    client.set(
        "key",
        json.dumps(
            {
                "slots": {str(int(k) + int(3600 / slot)): v for k, v in state["slots"].items()},
                "leases": {k: [end + 3600, n] for k, (end, n) in state["leases"].items()},
                "learned": state["learned"],
                "paused": state["paused"] + 3600,
                "seen": state["seen"] + 3600,
            }
        ),
    )
    assert waits(limiter)
    assert 0 < limiter.paused <= 0.5
    limiter.acquire(1)


def test_a_flushed_redis_is_taken_as_a_spent_budget(own_redis: RedisServer, tmp_path: Path) -> None:
    limiter = of_redis(own_redis, tmp_path)
    assert not waits(limiter)
    redis.Redis.from_url(own_redis.url).flushall()
    assert waits(limiter)
    limiter.acquire(1)  # one window later


@pytest.mark.parametrize("hostile", ["text", "list", "JSON"])
def test_a_foreign_value_under_the_key_grants_no_more_than_the_share(
    hostile: str, own_redis: RedisServer, tmp_path: Path
) -> None:
    client = redis.Redis.from_url(own_redis.url)
    if hostile == "list":
        client.lpush("key", "x")
    else:
        client.set("key", {"text": "\x80 no JSON", "JSON": '{"slots": 3}'}[hostile])
    limiter = of_redis(own_redis, tmp_path)
    began = time.monotonic()
    limiter.acquire(1)
    assert time.monotonic() - began >= 0.5
    assert (tmp_path / "share.json").exists()


def test_a_budget_leaves_redis_when_nobody_uses_it(own_redis: RedisServer, tmp_path: Path) -> None:
    of_redis(own_redis, tmp_path, lease=0.1, window=0.2).acquire(1)
    assert 0 < redis.Redis.from_url(own_redis.url).pttl("key") <= 1000  # type: ignore[reportOperatorIssue]


def test_a_url_chooses_between_machine_and_redis(tmp_path: Path) -> None:
    def made(url: str | None) -> RateLimiter:
        return rate_limiter_from_url(url, "id", tmp_path, Limits(), window=60, lease=60)

    assert isinstance(made(None), LocalRateLimiter)
    limiter = made("redis://:pass@host:1/2?machines=7")
    assert isinstance(limiter, RedisRateLimiter)
    assert limiter._machines == 7
    wrong_urls = (
        "http://:pass@host",
        "redis://u:pass@host:pass/0",
        "redis://:pass@host?machines=0",
        "pass:6379",
    )
    for wrong in wrong_urls:
        with pytest.raises(ValueError, match="EMBEDDING_RATE_LIMITER") as caught:
            made(wrong)
        assert "pass" not in str(caught.value)
