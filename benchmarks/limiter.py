"""The rate limiter: what one acquire costs, and how much of a limit eight processes use together.

    python -m benchmarks.limiter [--quick] [--processes 8] [--window 10] [--windows 4]

On files, which the processes of a machine share, and on a Redis on loopback. The limit is counted
at a server to which the processes send each request, in every window, wherever it begins.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Line, median, percentile, print_tables, seconds, write_results
from resources.limits.base import VARIABLE, Grant, Limits, RateLimiter
from resources.limits.local import LocalRateLimiter
from resources.limits.redis import RedisRateLimiter
from tests.support.limiter_load import most_in_a_window, run_processes, used_of
from tests.support.redis_server import running_redis

TOKENS = 300_000
_ACQUIRES = 300


def acquire_seconds(limiter: RateLimiter) -> list[float]:
    """Seconds of each acquire of `TOKENS` tokens, with nothing to wait for; each is settled."""
    taken = []
    for _ in range(_ACQUIRES):
        grants: list[Grant] = []
        taken.append(seconds(lambda g=grants: g.append(limiter.acquire(TOKENS))))
        limiter.settle(grants[0], TOKENS)
    return taken


def measure(url: str | None, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One row of the table; `url` of a Redis, or None for files."""
    plenty = Limits(10**9, 10**15)
    limiter = (
        RedisRateLimiter(url, "benchmark", folder / "share.json", plenty)
        if url
        else LocalRateLimiter(folder / "budget.json", plenty)
    )
    taken = acquire_seconds(limiter)
    limits = Limits(None, options.tokens)
    arrivals = run_processes(
        options.processes,
        limits,
        options.window,
        options.windows,
        folder,
        # A busy machine may stall a process for longer than the limiter would wait.
        {VARIABLE: f"{url}?socket_timeout=10&socket_connect_timeout=10"} if url else {},
    )
    _, most = most_in_a_window(arrivals, options.window)
    used = used_of(arrivals, limits, options.window * options.windows) / options.windows
    return {
        "shared through": "Redis" if url else "files",
        "acquire, median ms": 1e3 * median(taken),
        "acquire, p95 ms": 1e3 * percentile(taken, 95),
        "share of the limit used": used,
        "most in any window, share of the limit": most / options.tokens,
    }


def judge(row: dict[str, Any], processes: int) -> list[Line]:
    where = f"through {row['shared through']}"
    most = row["most in any window, share of the limit"]
    return [
        Line(f"one acquire, {where}", 2, row["acquire, median ms"], "ms", at_most=True),
        Line(f"{processes} processes, most in any window, {where}", 1, most, "", at_most=True),
        Line(f"{processes} processes, used, {where}", 0.95, row["share of the limit used"], ""),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=20_000, help="the limit in a window")
    parser.add_argument("--window", type=float, default=10.0, help="seconds")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="short windows")
    options = parser.parse_args()
    if options.quick:
        options.window, options.tokens = 2.0, 4_000
    rows = []
    with tempfile.TemporaryDirectory(prefix="limiter-benchmark-") as name, running_redis() as redis:
        for url in (None, redis.url):
            folder = Path(name) / ("redis" if url else "files")
            folder.mkdir()
            rows.append(measure(url, options, folder))
    lines = [line for row in rows for line in judge(row, options.processes)]
    tables = {f"{options.processes} processes, windows of {options.window:g} s": rows}
    write_results("limiter", "The rate limiter", tables, lines)
    print_tables({**tables, "Promises": [line.row() for line in lines]})


if __name__ == "__main__":
    main()
