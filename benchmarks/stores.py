"""The embedding cache and the vector store at a million entries of 384 float32.

    python -m benchmarks.stores [--entries 1000000] [--dimension 384]

Every cache operation opens the file, acts and closes it, as in a run. Rates are rows a second;
"spread" keys lie all over the cache, "together" ones were put together. Page cache is warm.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from resources.content_identity import HASH_BYTES
from resources.duckdb_cache import DuckDBEmbeddingCache
from resources.embedding_space import EmbeddingSpace
from resources.lancedb_store import LanceDBVectorStore
from resources.vector_store import row_schema

BATCH = 65_536
FLUSH = 4_096
ROWS_PER_BATCH = 8_192
REPEATS = 5


def random_hashes(count: int, seed: int) -> pa.Array:
    data = np.random.default_rng(seed).bytes(count * HASH_BYTES)
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(HASH_BYTES), count, [None, pa.py_buffer(data)]
    )


def random_vectors(count: int, dimension: int) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((count, dimension), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Report:
    def __init__(self) -> None:
        self.table = Table("operation", "rows", "median s", "median rows/s", "slowest rows/s")

    def add(self, operation: str, rows: int, times: list[float]) -> None:
        median = statistics.median(times)
        self.table.add_row(
            operation,
            f"{rows:,}",
            f"{median:.3f}",
            f"{rows / median:,.0f}",
            f"{rows / max(times):,.0f}",
        )


def measure_cache(report: Report, folder: Path, space: EmbeddingSpace, entries: int) -> None:
    cache = DuckDBEmbeddingCache(path=str(folder / "cache.duckdb"))
    vectors = random_vectors(BATCH, space.dimension)
    batches = [random_hashes(BATCH, seed) for seed in range(max(1, entries // BATCH))]
    puts = [seconds(lambda keys=keys: cache.put(space, keys, vectors)) for keys in batches]
    report.add("cache.put, all batches", BATCH, puts)
    report.add("cache.put, whole filling", BATCH * len(batches), [sum(puts)])

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
        for name, keys in lookups.items():
            for operation in (cache.contains, cache.get):
                asked = [keys(count) for _ in range(REPEATS)]
                times = [seconds(lambda o=operation, k=k: o(space, k)) for k in asked]
                report.add(f"cache.{operation.__name__}, {name}", count, times)
    for count in (FLUSH, 512):
        fresh = [random_hashes(count, 10**7 + 10 * count + i) for i in range(REPEATS)]
        times = [seconds(lambda k=k, n=count: cache.put(space, k, vectors[:n])) for k in fresh]
        report.add("cache.put into the full cache", count, times)
        times = [seconds(lambda k=k, n=count: cache.put(space, k, vectors[:n])) for k in fresh]
        report.add("cache.put of what is there", count, times)


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

    def write(partition: int, first: int) -> float:
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
    options = parser.parse_args()
    space = EmbeddingSpace("benchmark", "random", "", options.dimension, 256, True)
    report = Report()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        measure_cache(report, Path(folder), space, options.entries)
        measure_store(report, Path(folder), space, options.entries)
    Console(width=120).print(report.table)


if __name__ == "__main__":
    main()
