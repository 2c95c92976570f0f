"""The embedding caches and the vector store at a million entries of 384 float32.

    python -m benchmarks.stores [--entries 1000000] [--dimension 384] [--only cache|redis|store]

Every operation on the DuckDB cache opens the file, acts and closes it, as in a run. The Redis cache
runs on loopback, on the same cores as its server. Rates are rows a second; "spread" keys lie all
over the cache, "together" ones were put together. Page cache is warm. "asked" is the rate that the
project wants to reach, "times asked" the median against it; "CPU ms" is this process's own time,
which other load on the machine changes less.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from resources.content_identity import HASH_BYTES
from resources.duckdb_cache import DuckDBEmbeddingCache
from resources.embedding_cache import EmbeddingCache
from resources.embedding_space import EmbeddingSpace
from resources.lancedb_store import LanceDBVectorStore
from resources.redis_cache import RedisEmbeddingCache
from resources.vector_store import row_schema
from tests.redis_server import running_redis

BATCH = 65_536
FLUSH = 4_096
ROWS_PER_BATCH = 8_192
REPEATS = 5
_REDIS_ENTRIES = 262_144  # 0.5 GB of memory at 384 float32


def random_hashes(count: int, seed: int) -> pa.Array:
    data = np.random.default_rng(seed).bytes(count * HASH_BYTES)
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(HASH_BYTES), count, [None, pa.py_buffer(data)]
    )


def random_vectors(count: int, dimension: int) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((count, dimension), dtype=np.float32)
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


class Report:
    def __init__(self) -> None:
        self.table = Table("operation", "rows", "median s", "CPU ms", "median rows/s")
        self.table.add_column("slowest rows/s")
        self.table.add_column("asked")
        self.table.add_column("times asked")

    def add(self, operation: str, rows: int, times: list[Taken], asked: int = 0) -> None:
        walls = [taken.wall for taken in times]
        median = statistics.median(walls)
        self.table.add_row(
            operation,
            f"{rows:,}",
            f"{median:.3f}",
            f"{1000 * statistics.median(taken.cpu for taken in times):.0f}",
            f"{rows / median:,.0f}",
            f"{rows / max(walls):,.0f}",
            f"{asked:,}" if asked else "",
            f"{rows / median / asked:.2f}" if asked else "",
        )


@dataclass(frozen=True)
class Asked:
    """Rates that the project wants of a cache, in rows a second; 0: none."""

    put: int
    get: int
    contains: int


def measure_cache(
    report: Report,
    name: str,
    cache: EmbeddingCache,
    space: EmbeddingSpace,
    entries: int,
    asked: Asked,
) -> None:
    vectors = random_vectors(BATCH, space.dimension)
    batches = [random_hashes(BATCH, seed) for seed in range(max(1, entries // BATCH))]
    puts = [seconds(lambda keys=keys: cache.put(space, keys, vectors)) for keys in batches]
    report.add(f"{name}.put, all batches", BATCH, puts, asked.put)
    whole = Taken(sum(taken.wall for taken in puts), sum(taken.cpu for taken in puts))
    report.add(f"{name}.put, whole filling", BATCH * len(batches), [whole], asked.put)

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
                report.add(f"{name}.{operation.__name__}, {where}", count, times, target)
    for count in (FLUSH, 512):
        fresh = [random_hashes(count, 10**7 + 10 * count + i) for i in range(REPEATS)]
        times = [seconds(lambda k=k, n=count: cache.put(space, k, vectors[:n])) for k in fresh]
        report.add(f"{name}.put into the full cache", count, times)
        times = [seconds(lambda k=k, n=count: cache.put(space, k, vectors[:n])) for k in fresh]
        report.add(f"{name}.put of what is there", count, times)


def measure_small_puts(report: Report, folder: Path, space: EmbeddingSpace) -> None:
    """A run that flushes 1,024 vectors at a time, as by default: rate, and bytes written."""
    cache = DuckDBEmbeddingCache(path=str(folder / "small-puts.duckdb"))
    vectors = random_vectors(FLUSH // 4, space.dimension)
    before = _bytes_written()
    keys = [random_hashes(len(vectors), 10**8 + number) for number in range(100)]
    times = [seconds(lambda k=k: cache.put(space, k, vectors)) for k in keys]
    report.add("duckdb.put, 100 flushes", len(vectors), times)
    if before:
        ratio = (_bytes_written() - before) / (len(keys) * vectors.nbytes)
        report.table.add_row("  bytes written / bytes of vectors", "", "", "", f"{ratio:.1f}")


def _bytes_written() -> int:
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:  # not Linux
        return 0
    return int(dict(line.split(": ") for line in lines)["wchar"])


def rows(space: EmbeddingSpace, first: int, count: int, partition: str) -> pa.RecordBatch:
    schema = row_schema(space)
    numbers = range(first, first + count)
    constants = {"document_version": bytes(HASH_BYTES), "partition": partition, "metadata": "{}"}
    columns = []
    for field in schema:
        if field.name == "vector":
            flat = pa.array(random_vectors(count, space.dimension).ravel())
            columns.append(pa.FixedSizeListArray.from_arrays(flat, space.dimension))
        elif field.name in ("chunk_id", "document_id"):
            columns.append(pa.array([f"{number:040x}" for number in numbers]))
        elif field.name == "text":
            columns.append(pa.array([f"chunk {number} " * 80 for number in numbers]))
        elif field.name == "content_hash":
            columns.append(random_hashes(count, first))
        elif field.name in constants:
            columns.append(pa.array([constants[field.name]] * count, field.type))
        else:
            columns.append(pa.nulls(count, field.type))
    return pa.record_batch(columns, schema=schema)


def measure_store(report: Report, folder: Path, space: EmbeddingSpace, entries: int) -> None:
    store = LanceDBVectorStore(uri=str(folder / "vectors"))
    per_partition = min(entries, BATCH)

    def write(partition: int, first: int) -> Taken:
        batches = [
            rows(space, first + start, min(ROWS_PER_BATCH, per_partition - start), f"p{partition}")
            for start in range(0, per_partition, ROWS_PER_BATCH)
        ]
        reader = pa.RecordBatchReader.from_batches(row_schema(space), iter(batches))
        return seconds(
            lambda: store.replace(
                "benchmark", space, reader, remove_rest_of_partition=f"p{partition}"
            )
        )

    partitions = max(1, entries // per_partition)
    times = [write(p, p * per_partition) for p in range(partitions)]
    report.add("store.replace, new partitions", per_partition, times)
    half = per_partition // 2
    times = [write(p, p * per_partition + half) for p in (partitions - 1,)]
    report.add("store.replace, half of it known", per_partition, times)
    query = random_vectors(1, space.dimension)[0]
    count = store.count("benchmark", space)
    searches = [seconds(lambda: store.search("benchmark", space, query, 10)) for _ in range(5)]
    report.add("store.search, exact, rows compared", count, searches)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--only", choices=["cache", "redis", "store"])
    options = parser.parse_args()
    space = EmbeddingSpace("benchmark", "random", "", options.dimension, 256, True)
    report = Report()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        if options.only in (None, "cache"):
            cache = DuckDBEmbeddingCache(path=str(folder / "cache.duckdb"))
            asked = Asked(put=60_000, get=0, contains=500_000)
            measure_cache(report, "duckdb", cache, space, options.entries, asked)
            measure_small_puts(report, folder, space)
        if options.only in (None, "redis"):
            with running_redis() as server:
                # The time limit is not what is measured.
                cache = RedisEmbeddingCache(url=server.url, timeout=30)
                asked = Asked(put=25_000, get=40_000, contains=0)
                entries = min(options.entries, _REDIS_ENTRIES)
                measure_cache(report, "redis", cache, space, entries, asked)
        if options.only in (None, "store"):
            measure_store(report, folder, space, options.entries)
    Console(width=130).print(report.table)


if __name__ == "__main__":
    main()
