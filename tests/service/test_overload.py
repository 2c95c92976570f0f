"""More than the model can do, for a minute: memory stays, and who is accepted is answered."""

import asyncio
import itertools
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.http_load import arrivals, clients, request, watched
from tests.support.replicas import Replica, replicas, serve_environment

pytestmark = pytest.mark.slow

SECONDS = 60
TEXTS = 8
# What remains of the caches behind once the queue is full: DuckDB's pages, the filter of keys.
# A queue without a bound took 430 MB more in the same time.
MOST_GROWTH, MOST_PEAK = 64e6, 192e6


def batches() -> Iterator[bytes]:
    for number in itertools.count():
        texts = [f"Text {n} of request {number}: nobody asked for it." for n in range(TEXTS)]
        yield request("/embed/batch", {"texts": texts})


REQUESTS = batches()


def counted(replica: Replica, pattern: str) -> float:
    told = httpx.get(f"{replica.url}/metrics").text
    return sum(float(value) for value in re.findall(rf"^{pattern} (\S+)$", told, re.M))


def test_at_four_times_what_can_be_done_memory_stays_and_all_that_is_accepted_is_answered(
    tmp_path: Path, model_cache: Path
) -> None:
    # Vectors in memory have a bound of their own, which is soon reached.
    environment = serve_environment(tmp_path, [{"id": "a", "text": "a"}], model_cache)
    environment |= {"EMBEDDING_SERVE_MEMORY": "4MB", "EMBEDDING_SERVE_QUEUE_SECONDS": "4"}
    with replicas(tmp_path, environment, 1) as (replica,):
        until = time.perf_counter() + 5
        best = asyncio.run(clients(replica.port, REQUESTS, 20, until))
        arriving = arrivals(
            replica.port, REQUESTS, 4 * best.per_second, time.perf_counter() + SECONDS
        )
        load, resident = asyncio.run(watched(arriving, replica.process.pid, SECONDS))
        # Without an answer the clients would have raised an error.
        assert {*load.statuses} == {200, 503}
        answered = TEXTS * (load.statuses[200] + best.statuses[200])
        of_batches = r'embedding_texts_total\{cached="\w+",endpoint="/embed/batch"\}'
        assert counted(replica, of_batches) == answered
        assert counted(replica, r"embedding_failures_total\{.*\}") == 0
        assert counted(replica, "embedding_queued_texts") == 0
    quarter = len(resident) // 4
    warm, last = resident[quarter : 2 * quarter], resident[-quarter:]
    assert statistics.median(last) - statistics.median(warm) < MOST_GROWTH
    assert max(last) - statistics.median(warm) < MOST_PEAK
