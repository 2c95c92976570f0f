"""The embedding caches and the vector store, each alone, at a million entries and more.

    python -m benchmarks.stores [--quick] [--entries 1000000] [--small-entries 10000000]

Every operation on the DuckDB cache opens the file, acts and closes it, as in a run. The Redis cache
runs on loopback, on the same cores as its server. Rates are rows a second; "spread" keys lie all
over the cache, "together" ones were put together. Page cache is warm. "CPU ms" is this process's
own time, which other load on the machine changes less.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.measure import Line, median, print_tables, write_results, written_mb
from resources.caches.base import EmbeddingCache
from resources.caches.duckdb import DuckDBEmbeddingCache
from resources.caches.redis import RedisEmbeddingCache
from resources.identity.content_hash import HASH_BYTES
from resources.identity.embedding_space import EmbeddingSpace
from resources.vector_stores.base import row_schema
from resources.vector_stores.lancedb import LanceDBVectorStore
from tests.support.redis_server import running_redis

BATCH = 65_536
FLUSH = 4_096
ROWS_PER_BATCH = 8_192
REPEATS = 5
DIMENSION, SMALL_DIMENSION = 384, 8
_QUERIES = 20
PARTS = ("cache", "small", "redis", "store")
_REDIS_ENTRIES = 262_144  # 0.5 GB of memory at 384 float32


def random_hashes(count: int, seed: int) -> pa.Array:
    data = np.random.default_rng(seed).bytes(count * HASH_BYTES)
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(HASH_BYTES), count, [None, pa.py_buffer(data)]
    )


def random_vectors(count: int, dimension: int) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((count, dimension), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered_vectors(count: int, dimension: int, seed: int) -> np.ndarray:
    """Vectors with neighbours, as texts have: some hundred topics in some ten directions."""
    topics = np.random.default_rng(0).standard_normal((340, dimension), dtype=np.float32)
    chance = np.random.default_rng(seed)
    within = chance.standard_normal((count, 40), dtype=np.float32) @ topics[:40]
    noise = chance.standard_normal((count, dimension), dtype=np.float32)
    vectors = 0.7 * topics[40 + chance.integers(0, 300, count)] + 0.15 * (within + noise)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@dataclass(frozen=True)
class Taken:
    """Seconds on the clock, and of this process's CPU time in all threads."""

    wall: float
    cpu: float


def seconds(function: Callable[[], object]) -> Taken:
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return Taken(time.perf_counter() - wall, time.process_time() - cpu)


@dataclass
class Report:
    """The table of one cache or store, and the promises about it."""

    about: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def add(self, operation: str, rows: int, times: list[Taken], asked: int = 0) -> None:
        """Adds an operation on so many rows; `asked` is the rate that was promised, or 0."""
        walls = [taken.wall for taken in times]
        self.rows.append(
            {
                "operation": operation,
                "rows": f"{rows:,}",
                "median s": median(walls),
                "CPU ms": 1000 * median([taken.cpu for taken in times]),
                "median rows/s": rows / median(walls),
                "slowest rows/s": rows / max(walls),
            }
        )
        if asked:
            promise = f"{self.about}: {operation}, {rows:,} rows"
            self.lines.append(Line(promise, asked, rows / median(walls), "rows/s"))


@dataclass(frozen=True)
class Asked:
    """Rates that are promised of a cache, in rows a second; 0: none."""

    put: int
    get: int
    contains: int


def measure_cache(
    report: Report, cache: EmbeddingCache, space: EmbeddingSpace, entries: int, asked: Asked
) -> None:
    vectors = random_vectors(BATCH, space.dimension)
    batches = [random_hashes(BATCH, seed) for seed in range(max(1, entries // BATCH))]
    puts = [seconds(lambda keys=keys: cache.put(space, keys, vectors)) for keys in batches]
    report.add("put", BATCH, puts)
    whole = Taken(sum(taken.wall for taken in puts), sum(taken.cpu for taken in puts))
    report.add("put, whole filling", BATCH * len(batches), [whole], asked.put)

    held = pa.concat_arrays(batches)
    positions = np.random.default_rng(1)
    unknown = random_hashes(BATCH, 10**6)

    def spread(count: int) -> pa.Array:
        return held.take(pa.array(positions.choice(len(held), count, replace=False)))

    lookups = {
        "together": lambda count: held.slice(int(positions.integers(len(held) - count + 1)), count),
        "spread": spread,
        "unknown": lambda count: unknown.slice(0, count),
    }
    for count in (BATCH, 8_192):
        for where, keys in lookups.items():
            for operation, rate in ((cache.contains, asked.contains), (cache.get, asked.get)):
                several = [keys(count) for _ in range(REPEATS)]
                times = [seconds(lambda o=operation, k=k: o(space, k)) for k in several]
                target = rate if count == BATCH else 0
                report.add(f"{operation.__name__}, {where}", count, times, target)
    for count in (FLUSH, 512):
        fresh = [random_hashes(count, 10**7 + 10 * count + i) for i in range(REPEATS)]
        times = [seconds(lambda k=k, n=count: cache.put(space, k, vectors[:n])) for k in fresh]
        report.add("put into the full cache", count, times)
        times = [seconds(lambda k=k, n=count: cache.put(space, k, vectors[:n])) for k in fresh]
        report.add("put of what is there", count, times)


def measure_small_puts(report: Report, folder: Path, space: EmbeddingSpace) -> None:
    """A run that flushes 1,024 vectors at a time, as by default: rate, and bytes written."""
    cache = DuckDBEmbeddingCache(path=str(folder / "small-puts.duckdb"))
    vectors = random_vectors(FLUSH // 4, space.dimension)
    before = written_mb()
    keys = [random_hashes(len(vectors), 10**8 + number) for number in range(100)]
    times = [seconds(lambda k=k: cache.put(space, k, vectors)) for k in keys]
    report.add("put, 100 flushes", len(vectors), times)
    ratio = (written_mb() - before) * 1e6 / (len(keys) * vectors.nbytes)
    report.rows[-1]["operation"] += f" ({ratio:.1f} bytes written a byte of vectors)"


def rows(space: EmbeddingSpace, first: int, count: int, partition: str) -> pa.RecordBatch:
    schema = row_schema(space)
    numbers = range(first, first + count)
    constants = {"document_version": bytes(HASH_BYTES), "partition": partition, "metadata": "{}"}
    columns = []
    for column in schema:
        if column.name == "vector":
            flat = pa.array(clustered_vectors(count, space.dimension, first).ravel())
            columns.append(pa.FixedSizeListArray.from_arrays(flat, space.dimension))
        elif column.name in ("chunk_id", "document_id"):
            columns.append(pa.array([f"{number:040x}" for number in numbers]))
        elif column.name == "text":
            columns.append(pa.array([f"chunk {number} " * 80 for number in numbers]))
        elif column.name == "content_hash":
            columns.append(random_hashes(count, first))
        elif column.name in constants:
            columns.append(pa.array([constants[column.name]] * count, column.type))
        else:
            columns.append(pa.nulls(count, column.type))
    return pa.record_batch(columns, schema=schema)


def measure_store(report: Report, folder: Path, space: EmbeddingSpace, entries: int) -> None:
    store = LanceDBVectorStore(uri=str(folder / "vectors"))
    per_partition = min(entries, BATCH)

    def write(partition: int, first: int, removed: range = range(0)) -> Taken:
        batches = [
            rows(space, first + start, min(ROWS_PER_BATCH, per_partition - start), f"p{partition}")
            for start in range(0, per_partition, ROWS_PER_BATCH)
        ]
        reader = pa.RecordBatchReader.from_batches(row_schema(space), iter(batches))
        return seconds(
            lambda: store.replace(
                "benchmark", space, reader, remove_chunk_ids=[f"{n:040x}" for n in removed]
            )
        )

    partitions = max(1, entries // per_partition)
    times = [write(p, p * per_partition) for p in range(partitions)]
    report.add("replace, new partitions", per_partition, times, asked=50_000)
    half = per_partition // 2
    last = (partitions - 1) * per_partition
    times = [write(partitions - 1, last + half, range(last, last + half))]
    report.add("replace, half of it known", per_partition, times)
    count = store.count("benchmark", space)
    queries = clustered_vectors(_QUERIES, space.dimension, 10**9)
    report.add("maintain", count, [seconds(lambda: store.maintain("benchmark", space))])
    found: dict[bool, list[set[str]]] = {True: [], False: []}

    def search(query: np.ndarray, exact: bool) -> None:
        hits = store.search("benchmark", space, query, 10, exact=exact)
        found[exact].append({hit.chunk_id for hit in hits})

    for exact in (True, False):
        report.add(
            f"search, {'exact' if exact else 'approximate'}",
            count,
            [seconds(lambda q=query, e=exact: search(q, e)) for query in queries],
        )
    shared = [len(one & other) / 10 for one, other in zip(*found.values(), strict=True)]
    report.rows[-1]["operation"] += f" (recall@10 {sum(shared) / len(shared):.3f})"


def measure_all(options: argparse.Namespace, folder: Path) -> list[Report]:
    def space(dimension: int) -> EmbeddingSpace:
        return EmbeddingSpace("benchmark", "random", "", dimension, 256, True)

    wide = space(DIMENSION)
    reports = []
    parts = options.only.split(",") if options.only else PARTS
    if "cache" in parts:
        reports.append(Report(f"DuckDB cache, {options.entries:,} entries of {DIMENSION} float32"))
        cache = DuckDBEmbeddingCache(path=str(folder / "cache.duckdb"))
        measure_cache(reports[-1], cache, wide, options.entries, Asked(60_000, 0, 500_000))
        measure_small_puts(reports[-1], folder, wide)
    if "small" in parts:
        many = options.small_entries
        reports.append(Report(f"DuckDB cache, {many:,} entries of {SMALL_DIMENSION} float32"))
        cache = DuckDBEmbeddingCache(path=str(folder / "small.duckdb"))
        measure_cache(reports[-1], cache, space(SMALL_DIMENSION), many, Asked(0, 0, 500_000))
    if "redis" in parts:
        entries = min(options.entries, _REDIS_ENTRIES)
        reports.append(Report(f"Redis cache, {entries:,} entries of {DIMENSION} float32"))
        with running_redis() as server:
            # The time limit is not what is measured.
            cache = RedisEmbeddingCache(url=server.url, timeout=30)
            measure_cache(reports[-1], cache, wide, entries, Asked(25_000, 40_000, 0))
    if "store" in parts:
        reports.append(Report(f"vector store, {options.entries:,} rows of {DIMENSION} float32"))
        measure_store(reports[-1], folder, wide, options.entries)
    return reports


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--small-entries", type=int, default=10_000_000)
    parser.add_argument("--quick", action="store_true", help="a tenth of the entries")
    parser.add_argument("--only", help=f"comma-separated, of: {', '.join(PARTS)}")
    options = parser.parse_args()
    if options.quick:
        options.entries, options.small_entries = 100_000, 1_000_000
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        reports = measure_all(options, Path(name))
    tables = {report.about: report.rows for report in reports}
    lines = [line for report in reports for line in report.lines]
    write_results("stores", "Caches and vector store, alone", tables, lines)
    print_tables({**tables, "Promises": [line.row() for line in lines]})


if __name__ == "__main__":
    main()
