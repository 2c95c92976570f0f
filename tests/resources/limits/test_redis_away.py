"""Who shares limits through a Redis that does not answer says so once, and waits where it must."""

import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from resources.limits.base import NO_LIMITS, GivenUpError, Limits, ReportedLimits
from resources.limits.from_url import rate_limiter_from_url
from resources.limits.redis import RedisRateLimiter
from tests.support.checkout import PROJECT
from tests.support.redis_server import RedisServer, running_redis

NOBODY = "redis://u:planted@127.0.0.1:1/0?machines=4"


def limiter_of(
    url: str, folder: Path, limits: Limits = NO_LIMITS, window: float = 60.0
) -> RedisRateLimiter:
    limiter = rate_limiter_from_url(url, "id", folder, limits, window=window, lease=60)
    assert isinstance(limiter, RedisRateLimiter)
    return limiter


def would_wait(limiter: RedisRateLimiter) -> float:
    """Seconds that a request would have to wait; it is not made."""
    return limiter._step({"acquire": ["probe", 1]}).wait


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (NOBODY, "Connection refused"),
        ("redis://:planted@nowhere.invalid:6379/0", "nowhere.invalid"),
        ("wrong password", "AuthenticationError"),
    ],
)
def test_where_no_limit_is_known_nothing_waits_and_one_warning_says_why(
    url: str, reason: str, tmp_path: Path, logged: list[str]
) -> None:
    with running_redis(password="right") as server:
        if url == "wrong password":
            url = server.url.replace("//", "//:planted@")
        limiter = limiter_of(url, tmp_path)
        for _ in range(20):
            assert not would_wait(limiter)
            limiter.settle(limiter.acquire(10**6), 1)
    assert limiter.usage().share == 1 / 4
    (warning,) = logged
    for words in ("EMBEDDING_RATE_LIMITER", "No limit is known, so nothing waits", "1/4", reason):
        assert words in warning
    assert "planted" not in warning


def test_what_the_provider_tells_meanwhile_is_shared_by_the_number_of_machines(
    tmp_path: Path,
) -> None:
    limiter = limiter_of(NOBODY, tmp_path)
    limiter.settle(limiter.acquire(1), 1, ReportedLimits(Limits(400, None)))
    assert limiter.limits == Limits(100, None)
    assert not would_wait(limiter)


def test_who_waits_says_for_how_long_and_why(tmp_path: Path, logged: list[str]) -> None:
    limiter = limiter_of(NOBODY, tmp_path, Limits(8, None))
    assert 50 < would_wait(limiter) <= 60
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(GivenUpError):
        limiter.acquire(1, given_up)
    (warning,) = logged
    assert "Nothing is sent for up to 60 s, because what other machines send" in warning


ACQUIRE = """
import sys
from pathlib import Path
from resources.limits.base import Limits
from resources.limits.from_url import rate_limiter_from_url
folder = Path(sys.argv[1])
limiter = rate_limiter_from_url(sys.argv[2], "id", folder, Limits(8, None), window=3600, lease=60)
print(limiter._step({"acquire": ["probe", 1]}).wait)
"""


def test_processes_of_a_machine_wait_for_a_window_once_not_each_of_them(tmp_path: Path) -> None:
    limiter = limiter_of(NOBODY, tmp_path, Limits(8, None), window=3600)
    first = would_wait(limiter)
    command = [sys.executable, "-c", ACQUIRE, str(tmp_path), NOBODY]
    done = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True)
    assert 0 < float(done.stdout) < first, "what is left of the first one's wait"


def test_an_outage_that_is_over_says_nothing_of_the_next_one(tmp_path: Path) -> None:
    with running_redis() as server:
        old = of_redis(server, tmp_path)
        server.kill()
        would_wait(old)
        old._share._step({"acquire": None})  # it goes on for a while
        server.start()
        while old._away_since is not None:
            old._step({})
        state = old._share._path.read_text()
        server.kill()
        new = of_redis(server, tmp_path)
        assert 59 < would_wait(new) <= 60
        assert "-Infinity" in state


def of_redis(server: RedisServer, folder: Path) -> RedisRateLimiter:
    share = folder / "share.json"
    return RedisRateLimiter(server.url, "key", share, Limits(8, None), timeout=30.0)


def test_it_says_when_redis_answers_again_and_grants_the_whole_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="resources")
    with running_redis() as server:
        limiter = of_redis(server, tmp_path)
        limiter.acquire(1)
        server.kill()
        assert limiter.limits == Limits(2, None)
        server.start()
        while limiter._away_since is not None:
            limiter._step({})
        assert limiter.limits == Limits(8, None)
    levels = [(record.levelname, "answers again" in record.message) for record in caplog.records]
    assert levels == [("WARNING", False), ("INFO", True)]
