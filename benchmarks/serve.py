"""The service under load, beside the bare engine and the shapes that people have now.

    python -m benchmarks.serve [--quick] [--seconds 10]

Server, load and engine share the cores of this machine, and each ratio is of one run.
"""

import argparse
import asyncio
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.http_load import Load, arrivals, clients, request
from benchmarks.measure import Line, median, percentile, print_tables, seconds, write_results
from benchmarks.texts import sentences
from resources.embedders.local import LocalEmbedder

_CLIENTS = 20
_BULK = 256
_SMALL = 8
SEED = {
    "20 clients, single texts": 229.91,
    "20 clients, single texts, lock": 145.54,
    "batches of 100": 610.31,
    "20 clients, batches of 5": 245.48,
}
"""Operations a second of the report that this project began from; its target was 10,000."""


@contextmanager
def server(kind: str, folder: Path, models: Path) -> Iterator[int]:
    """The port of a server that is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.servers", kind, str(port), str(folder)]
    environment = os.environ | {"BENCHMARK_MODELS": str(models)}
    with subprocess.Popen(command, env=environment) as process:
        try:
            while process.poll() is None:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield port
        finally:
            process.terminate()


class Texts:
    """Texts that nobody has asked for yet: each is a sentence of the sample, made distinct."""

    def __init__(self) -> None:
        everything = [text for text in sentences() if len(text) < 130]
        self._fresh = (f"{text} ({number})" for number in itertools.count() for text in everything)

    def take(self, count: int) -> list[str]:
        return list(itertools.islice(self._fresh, count))

    def singles(self) -> Iterator[bytes]:
        return (request("/embed", {"text": text}) for text in self._fresh)

    def batches(self, size: int) -> Iterator[bytes]:
        while True:
            yield request("/embed/batch", {"texts": self.take(size)})


def run(port: int, requests: Iterator[bytes], count: int, duration: float) -> Load:
    return asyncio.run(clients(port, requests, count, time.perf_counter() + duration))


def engine_per_second(embedder: LocalEmbedder, texts: Texts, duration: float) -> float:
    """The bare engine over many texts at a time."""
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < duration:
        done += len(embedder.embed(texts.take(512)).tokens)
    return done / (time.perf_counter() - started)


def uncached(port: int, embedder: LocalEmbedder, texts: Texts, options: Any) -> dict[str, Any]:
    """Texts that the model has to work for, in the four shapes of the report, and the engine."""
    rounds: dict[str, list[float]] = {}
    for _ in range(options.repeats):
        for name, per_second in {
            "engine, bare": lambda: engine_per_second(embedder, texts, options.seconds),
            "20 clients, single texts": lambda: (
                run(port, texts.singles(), _CLIENTS, options.seconds).per_second
            ),
            "batches of 100": lambda: (
                100 * run(port, texts.batches(100), 1, options.seconds).per_second
            ),
            "20 clients, batches of 5": lambda: (
                5 * run(port, texts.batches(5), _CLIENTS, options.seconds).per_second
            ),
        }.items():
            rounds.setdefault(name, []).append(per_second())
    return {name: median(values) for name, values in rounds.items()}


def latencies(port: int, embedder: LocalEmbedder, texts: Texts, options: Any) -> dict[str, float]:
    """Of a short text alone, with nobody beside and with a bulk client that fills the machine."""
    embedder.embed(texts.take(64))
    bare = [seconds(lambda: embedder.embed(texts.take(1))) for _ in range(200)]
    alone = run(port, texts.singles(), 1, options.seconds)

    async def both() -> Load:
        until = time.perf_counter() + options.seconds
        bulk = asyncio.create_task(clients(port, texts.batches(_BULK), 4, until))
        await asyncio.sleep(0.5)
        questions = await clients(port, texts.singles(), 1, until)
        await bulk
        return questions

    beside = asyncio.run(both())
    return {
        "bare forward pass, p50": 1e3 * median(bare),
        "alone, p50": 1e3 * median(alone.latencies),
        "alone, p99": 1e3 * percentile(alone.latencies, 99),
        "beside bulk, p50": 1e3 * median(beside.latencies),
        "beside bulk, p99": 1e3 * percentile(beside.latencies, 99),
    }


def cached(port: int, bare: int, texts: Texts, options: Any) -> dict[str, float]:
    """Texts that are in memory: single ones beside an endpoint that does nothing, and batches."""
    known = texts.take(100)
    batch = request("/embed/batch", {"texts": known})
    run(port, itertools.repeat(batch, 1), 1, 60)
    single = [request("/embed", {"text": text}) for text in known]
    ours, empty = [], []
    for _ in range(options.repeats):
        ours.append(run(port, itertools.cycle(single), _CLIENTS, options.seconds / 2).per_second)
        empty.append(run(bare, itertools.cycle(single), _CLIENTS, options.seconds / 2).per_second)
    batches = run(port, itertools.repeat(batch), 2, options.seconds / 2)
    repeated = (
        request("/embed", {"text": text})
        for text in itertools.chain.from_iterable(
            [*known[:4], fresh] for fresh in iter(lambda: texts.take(1)[0], None)
        )
    )
    mixed = run(port, repeated, _CLIENTS, options.seconds)
    return {
        "singles": median(ours),
        "endpoint that does nothing": median(empty),
        "ratio": median([our / one for our, one in zip(ours, empty, strict=True)]),
        "batches of 100, texts": 100 * batches.per_second,
        "80 % repeats, 20 clients": mixed.per_second,
    }


def overload(port: int, texts: Texts, best: float, options: Any) -> dict[str, float]:
    """Four times as many texts as can be embedded, in batches of 8."""
    offered = 4 * best / _SMALL
    until = time.perf_counter() + 60 if not options.quick else time.perf_counter() + 10
    load = asyncio.run(arrivals(port, texts.batches(_SMALL), offered, until))
    return {
        "texts offered a second": 4 * best,
        "texts served a second": _SMALL * load.per_second,
        "share of the best": _SMALL * load.per_second / best,
        "answers": load.statuses[200],
        "refused": sum(load.statuses.values()) - load.statuses[200],
        "refused within ms, p50": 1e3 * median(load.refusals or [0.0]),
        "refused within ms, p99": 1e3 * percentile(load.refusals or [0.0], 99),
    }


def judge(rates: Any, times: Any, known: Any, over: Any, lock: float) -> list[Line]:
    """What was asked, and what was measured."""
    singles = rates["20 clients, single texts"]
    of_engine = singles / rates["engine, bare"]
    return [
        Line("20 clients, single uncached texts, against the engine", 0.75, of_engine),
        Line("the same against FastAPI, a lock and encode(text)", 8.0, singles / lock),
        Line("single cached texts against an endpoint that does nothing", 0.6, known["ratio"]),
        Line("/embed/batch of 100 cached texts", 20_000, known["batches of 100, texts"], "texts/s"),
        Line("one short uncached text, p50 above the bare forward pass", 3.0,
             times["alone, p50"] - times["bare forward pass, p50"], "ms", at_most=True),
        Line("a question's p99 beside bulk, against its p50 alone", 6.0,
             times["beside bulk, p99"] / times["alone, p50"], at_most=True),
        Line("overload: share of the best throughput", 0.9, over["share of the best"], ""),
        Line("overload: a refusal, p99", 100, over["refused within ms, p99"], "ms", at_most=True),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="of one measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--models", type=Path, default=Path("data/models"))
    parser.add_argument("--quick", action="store_true", help="two seconds, once")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.repeats = 2.0, 1
    texts = Texts()
    with tempfile.TemporaryDirectory(prefix="serve-benchmark-") as name:
        folder = Path(name)
        with server("lock", folder / "lock", options.models) as port:
            load = run(port, texts.singles(), _CLIENTS, options.seconds)
            lock = load.per_second
        embedder = LocalEmbedder(model_cache=str(options.models))
        with (
            server("ours", folder / "ours", options.models) as port,
            server("empty", folder / "empty", options.models) as bare,
        ):
            times = latencies(port, embedder, texts, options)
            rates = uncached(port, embedder, texts, options)
            known = cached(port, bare, texts, options)
            best = max(rates[shape] for shape in list(rates)[1:])
            over = overload(port, texts, best, options)
    rates["20 clients, single texts, lock"] = lock
    lines = judge(rates, times, known, over, lock)
    tables: dict[str, list[dict[str, Any]]] = {
        "Uncached texts a second": [
            {"shape": shape, "here": rate, "the report's": SEED.get(shape)}
            for shape, rate in rates.items()
        ],
        "Milliseconds of a short text": [times],
        "Cached": [known],
        "Overload, in batches of 8": [over],
    }
    write_results("serve", "The service under load", tables, lines)
    print_tables({**tables, "Promises": [line.row() for line in lines]})


if __name__ == "__main__":
    main()
