"""The service under load, beside the bare engine and the shapes that people have now.

    python -m benchmarks.serve [--quick] [--seconds 10] [--only load,search]
    python -m benchmarks.serve --only infinity --infinity ENVIRONMENT/bin/infinity_emb

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
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from benchmarks.http_load import Load, arrivals, clients, request, watched
from benchmarks.measure import Line, median, percentile, print_tables, seconds, write_results
from benchmarks.servers import COLLECTION, MODEL, collection
from benchmarks.stores import ROWS_PER_BATCH, rows
from benchmarks.texts import sentences
from embedding_assets.retrieval.search import IndexReader, nearest_chunks
from resources.embedders.local import LocalEmbedder
from resources.embedders.local_model.model_files import PACKAGED_MODEL
from resources.vector_stores.base import row_schema

Tables = dict[str, list[dict[str, Any]]]

_CLIENTS = 20
_HITS = 10
_BULK = 256
_SMALL = 8
SEED = {
    "20 clients, single texts": 229.91,
    "20 clients, single texts, lock": 145.54,
    "batches of 100": 610.31,
    "20 clients, batches of 5": 245.48,
}
"""Operations a second of the report that this project began from; its target was 10,000."""


class Server(NamedTuple):
    """A process of its own, which listens on this machine."""

    port: int
    pid: int


@contextmanager
def server(kind: str, folder: Path, models: Path) -> Iterator[Server]:
    """A server that is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.servers", kind, str(port), str(folder)]
    environment = os.environ | {"BENCHMARK_MODELS": str(models)}
    with subprocess.Popen(command, env=environment) as process:
        try:
            wait_for(process, f"http://127.0.0.1:{port}/ready")
            yield Server(port, process.pid)
        finally:
            process.terminate()


def wait_for(process: "subprocess.Popen[bytes]", url: str) -> None:
    """Until a server answers, or has ended."""
    while process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)


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


def overload(ours: Server, texts: Texts, best: float, options: Any) -> dict[str, float]:
    """Four times as many texts as can be embedded, in batches of 8."""
    offered, duration = 4 * best / _SMALL, 10 if options.quick else 60
    arriving = arrivals(ours.port, texts.batches(_SMALL), offered, time.perf_counter() + duration)
    load, resident = asyncio.run(watched(arriving, ours.pid, duration))
    quarter = len(resident) // 4
    warm, last = median(resident[quarter : 2 * quarter]), median(resident[-quarter:])
    return {
        "texts offered a second": 4 * best,
        "texts served a second": _SMALL * load.per_second,
        "share of the best": _SMALL * load.per_second / best,
        "answers": load.statuses[200],
        "refused": sum(load.statuses.values()) - load.statuses[200],
        "refused within ms, p50": 1e3 * median(load.refusals or [0.0]),
        "refused within ms, p99": 1e3 * percentile(load.refusals or [0.0], 99),
        "MB resident, second quarter": warm / 1e6,
        "MB resident, last quarter": last / 1e6,
        "MB resident, most": max(resident) / 1e6,
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
        Line("overload: memory in the last quarter of a minute above the second", 64,
             over["MB resident, last quarter"] - over["MB resident, second quarter"], "MB",
             at_most=True, note="with the vectors kept in memory, which have a bound of their own"),
        Line("overload: a refusal, p99", 100, over["refused within ms, p99"], "ms", at_most=True),
    ]  # fmt: skip


def under_load(options: Any, folder: Path) -> tuple[Tables, list[Line]]:
    """All that is about embedding."""
    texts = Texts()
    with server("lock", folder / "lock", options.models) as locked:
        load = run(locked.port, texts.singles(), _CLIENTS, options.seconds)
    lock = load.per_second
    embedder = LocalEmbedder(model_cache=str(options.models))
    with (
        server("ours", folder / "ours", options.models) as ours,
        server("empty", folder / "empty", options.models) as empty,
    ):
        times = latencies(ours.port, embedder, texts, options)
        rates = uncached(ours.port, embedder, texts, options)
        known = cached(ours.port, empty.port, texts, options)
        best = max(rates[shape] for shape in list(rates)[1:])
        over = overload(ours, texts, best, options)
    rates["20 clients, single texts, lock"] = lock
    tables: Tables = {
        "Uncached texts a second": [
            {"shape": shape, "here": rate, "the report's": SEED.get(shape)}
            for shape, rate in rates.items()
        ],
        "Milliseconds of a short text": [times],
        "Cached": [known],
        "Overload, in batches of 8": [over],
    }
    return tables, judge(rates, times, known, over, lock)


def fill(index: IndexReader, chunks: int) -> None:
    """Real texts, some sentences each, with vectors of chance that have neighbours."""
    space, everything = index.resources.embedder.space, sentences()

    def batch(first: int) -> pa.RecordBatch:
        made = rows(space, first, min(ROWS_PER_BATCH, chunks - first), "all")
        texts = [
            " ".join(everything[(first + row + 7 * n) % len(everything)] for n in range(6))
            for row in range(made.num_rows)
        ]
        return made.set_column(made.schema.get_field_index("text"), "text", pa.array(texts))

    batches = (batch(first) for first in range(0, chunks, ROWS_PER_BATCH))
    reader = pa.RecordBatchReader.from_batches(row_schema(space), batches)
    store = index.resources.store
    store.replace(index.collection, space, reader)
    store.maintain(index.collection, space)


def searching(options: Any, folder: Path) -> tuple[Tables, list[Line]]:
    """A question whose vector is in memory, over HTTP and by the same call in this process."""
    opened = collection(folder, str(options.models))
    index, embedder = opened.index, opened.resources.embedder
    chunks = 10_000 if options.quick else options.chunks
    fill(index, chunks)
    questions = Texts().take(50)
    vectors = embedder.embed(questions, "query").vectors
    path, asked = f"/collections/{COLLECTION}/search", {index: [embedder]}
    requests = [request(path, {"query": one, "k": _HITS}) for one in questions]

    def here() -> list[float]:
        return [
            seconds(lambda v=vector: nearest_chunks(asked, {embedder.space: v}, _HITS))
            for vector in vectors
        ]

    alone: list[float] = []
    served: list[float] = []
    with server("ours", folder, options.models) as ours:
        for _ in range(1 + 4 * options.repeats):  # in turn; the first round opens the index
            alone += here()
            load = asyncio.run(clients(ours.port, requests, 1))
            served += load.latencies
    first = len(questions)
    alone, served = alone[first:], served[first:]
    row: dict[str, Any] = {"chunks": chunks, "searches": len(served)}
    for percent in (50, 99):
        row[f"store, p{percent}"] = 1e3 * percentile(alone, percent)
        row[f"over HTTP, p{percent}"] = 1e3 * percentile(served, percent)
    added = 1e3 * (median(served) - median(alone))
    row["added, p50"] = added
    promise = f"search in {chunks:,} chunks, p50 above the same call of the store"
    line = Line(promise, 3.0, added, "ms", at_most=True, note="vectors of chance, in clusters")
    return {"Milliseconds of a search": [row]}, [line]


@contextmanager
def infinity(program: Path) -> Iterator[int]:
    """The port of Infinity's server, with the same weights."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    weights = Path(str(find_spec(PACKAGED_MODEL).origin)).parent / "model"  # pyright: ignore[reportOptionalMemberAccess]
    command = [str(program), "v2", "--model-id", str(weights), "--engine", "torch"]
    command += [
        "--no-bettertransformer",
        "--device",
        "cpu",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    nothing = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stdout=nothing, stderr=nothing) as process:
        try:
            wait_for(process, f"http://127.0.0.1:{port}/health")
            yield port
        finally:
            process.terminate()


def beside_infinity(options: Any, folder: Path) -> tuple[Tables, list[Line]]:
    """20 clients with single uncached texts, by OpenAI's interface, in turn."""
    if options.infinity is None:
        sys.exit("--infinity names the program `infinity_emb` of an environment of its own")
    texts = Texts()

    def singles(path: str, model: str) -> Iterator[bytes]:
        while True:
            yield request(path, {"model": model, "input": texts.take(1)[0]})

    rates: dict[str, list[float]] = {"ours": [], "Infinity": []}
    medians: dict[str, list[float]] = {"ours": [], "Infinity": []}
    with server("ours", folder, options.models) as ours, infinity(options.infinity) as other:
        ways = {
            "ours": (ours.port, "/v1/embeddings", MODEL),
            "Infinity": (other, "/embeddings", f"{PACKAGED_MODEL}/model"),
        }
        for number in range(1 + options.repeats):
            for name, (port, path, model) in ways.items():
                load = run(port, singles(path, model), _CLIENTS, options.seconds)
                if number:  # the first round warms both
                    rates[name].append(load.per_second)
                    medians[name].append(1e3 * percentile(load.latencies, 50))
    rows_ = [
        {"server": name, "texts a second": median(rates[name]), "p50, ms": median(medians[name])}
        for name in ways
    ]
    lines = [
        Line("20 clients, single uncached texts, against Infinity", 1.5,
             median([a / b for a, b in zip(*rates.values(), strict=True)])),
        Line("the same, p50 against Infinity's", 1.0,
             median([a / b for a, b in zip(*medians.values(), strict=True)]), at_most=True),
    ]  # fmt: skip
    return {"Single texts, 20 clients": rows_}, lines


PARTS = {
    "load": ("serve", "The service under load", under_load),
    "search": ("serve_search", "Search by the service", searching),
    "infinity": ("serve_infinity", "The service beside Infinity", beside_infinity),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="of one measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--chunks", type=int, default=100_000, help="in which is searched")
    parser.add_argument("--models", type=Path, default=Path("data/models"))
    parser.add_argument("--quick", action="store_true", help="two seconds, once; few chunks")
    parser.add_argument("--only", help=f"comma-separated, of: {', '.join(PARTS)}")
    parser.add_argument("--infinity", type=Path, help="program `infinity_emb`, to compare with")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.repeats = 2.0, 1
    for part in options.only.split(",") if options.only else ("load", "search"):
        name, title, measure = PARTS[part]
        with tempfile.TemporaryDirectory(prefix="serve-benchmark-") as folder:
            tables, lines = measure(options, Path(folder))
        write_results(name, title, tables, lines)
        print_tables({**tables, "Promises": [line.row() for line in lines]})


if __name__ == "__main__":
    main()
