"""A light HTTP client, so that the server and not its clients has the processor."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

_Result = TypeVar("_Result")
_SECONDS_BETWEEN_LOOKS = 0.25


@dataclass
class Load:
    """What clients saw.

    Attributes:
        latencies: seconds of each answer.
        statuses: how many answers of each status.
        refusals: the same of answers that are none.
        seconds: from the first request to the last answer, or to the last request.
        late: answers that came after that.
    """

    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    refusals: list[float] = field(default_factory=list)
    seconds: float = 0.0
    late: int = 0

    @property
    def per_second(self) -> float:
        return (self.statuses[200] - self.late) / self.seconds


def request(path: str, body: Any) -> bytes:
    """The bytes of a POST."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def clients(
    port: int, requests: Iterable[bytes], count: int, until: float | None = None
) -> Load:
    """So many connections that each send the next request as soon as the last is answered.

    Args:
        port: of the server on this machine.
        requests: shared by all of them.
        count: how many connections.
        until: on the clock of `time.perf_counter`, when they stop; by default with the requests.
    """
    load, rest = Load(), iter(requests)
    started = time.perf_counter()
    await asyncio.gather(*(_client(port, rest, load, until) for _ in range(count)))
    load.seconds = time.perf_counter() - started
    return load


async def arrivals(port: int, requests: Iterable[bytes], per_second: float, until: float) -> Load:
    """Requests at a steady rate, whether those before are answered or not.

    Args:
        port: of the server on this machine.
        requests: one after the other.
        per_second: how many.
        until: on the clock of `time.perf_counter`, when the last is sent.
    """
    load, started = Load(), time.perf_counter()
    running: list[asyncio.Task[None]] = []
    for number, content in enumerate(requests):
        due = started + number / per_second
        if due > until:
            break
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        running.append(asyncio.create_task(_client(port, iter([content]), load, None)))
    load.seconds = time.perf_counter() - started
    answered = load.statuses[200]
    await asyncio.gather(*running)
    load.late = load.statuses[200] - answered
    return load


async def watched(
    work: Coroutine[Any, Any, _Result], pid: int, seconds: float
) -> tuple[_Result, list[float]]:
    """The result of some work, and the memory that a process has resident meanwhile.

    Args:
        work: may take longer.
        pid: of the process.
        seconds: for how long its memory is looked at.

    Returns:
        The result, and bytes, four times a second.
    """
    import psutil

    process, resident = psutil.Process(pid), []
    running, until = asyncio.create_task(work), time.perf_counter() + seconds
    while time.perf_counter() < until:
        resident.append(float(process.memory_info().rss))
        await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
    return await running, resident


async def _client(port: int, requests: Iterator[bytes], load: Load, until: float | None) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    try:
        for content in requests:
            started = time.perf_counter()
            if until is not None and started > until:
                return
            writer.write(content)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            status, taken = int(head[9:12]), time.perf_counter() - started
            load.statuses[status] += 1
            (load.latencies if status == 200 else load.refusals).append(taken)
    finally:
        writer.close()
