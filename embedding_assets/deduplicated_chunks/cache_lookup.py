"""The plan: each distinct content hash of a partition, and whether the cache holds its vector."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa

from embedding_assets.artifacts.keys import chunks_key, plan_key
from embedding_assets.artifacts.parquet import grouped_by_partition, write_parquet
from embedding_assets.artifacts.schemas import PLAN
from embedding_assets.artifacts.scratch import Scratch, with_partition
from embedding_assets.runs.range_run import is_long
from resources.artifact_stores.base import ArtifactStore
from resources.caches.base import HASHES_PER_LOOKUP, EmbeddingCache
from resources.caches.vectors import CONTENT_HASH_TYPE
from resources.identity.embedding_space import EmbeddingSpace


class Planner:
    """Writes each distinct content hash of the partitions, and whether the cache holds it.

    To open the cache takes as long as to plan some small partitions, so they share a lookup.

    Args:
        collection: the collection's name.
        space: the embedding space.
        artifacts: where chunks are, and plans go.
        cache: is asked for keys only.
        database: for counts that spill to disk.
        record: called with the numbers of partitions when their plans are written.
    """

    def __init__(
        self,
        collection: str,
        space: EmbeddingSpace,
        artifacts: ArtifactStore,
        cache: EmbeddingCache,
        database: Scratch,
        record: Callable[[dict[str, dict[str, Any]]], None],
    ) -> None:
        self._collection = collection
        self._space = space
        self._artifacts = artifacts
        self._cache = cache
        self._database = database
        self._record = record
        self._waiting: dict[str, dict[str, Any]] = {}
        self._rows = 0
        self._flushed = time.monotonic()

    def add(self, partition: str, numbers: dict[str, Any]) -> None:
        """Plans a partition now, or with its neighbours; `numbers` are those of its chunks."""
        if self._rows + numbers["chunks"] > HASHES_PER_LOOKUP:
            self.flush()
        self._waiting[partition] = numbers
        self._rows += numbers["chunks"]
        if is_long(time.monotonic() - self._flushed):
            self.flush()

    def flush(self) -> None:
        """Plans the partitions that are waiting: some small ones, or one of any size."""
        if not self._waiting:
            return
        with ExitStack() as stack:
            partitions = {
                str(stack.enter_context(self._artifacts.reading(key))): partition
                for partition in self._waiting
                for key in [chunks_key(self._collection, partition)]
            }
            planned = {
                partition: self._write(partition, batches)
                for partition, batches in grouped_by_partition(self._planned(partitions))
            }
        for partition in self._waiting.keys() - planned.keys():
            planned[partition] = self._write(partition, ())
        self._record({p: {**numbers, **planned[p]} for p, numbers in self._waiting.items()})
        self._waiting, self._rows, self._flushed = {}, 0, time.monotonic()

    def _planned(self, partitions: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
        """Yields a column `partition` and those of `artifacts.PLAN`, one partition after another.

        Args:
            partitions: the partition of each file of chunks.
        """
        self._database.name_partitions(partitions)
        # One partition may be too large to be sorted, and need not be.
        in_order = "ORDER BY partition" if len(partitions) > 1 else ""
        for batch in self._database.stream(
            "SELECT partition, content_hash, min(chunk_id) AS chunk_id, min(tokens) AS tokens, "
            "min(tokens_truncated) AS tokens_truncated "
            f"FROM {with_partition('chunks')} GROUP BY partition, content_hash {in_order}",
            batch_rows=HASHES_PER_LOOKUP,
            chunks=[*partitions],
        ):
            hashes = batch["content_hash"].cast(CONTENT_HASH_TYPE)
            cached = self._cache.contains(self._space, hashes)
            names = [*batch.schema.names, "cached"]
            yield pa.record_batch([*batch.columns, pa.array(cached)], names=names)

    def _write(self, partition: str, batches: Iterable[pa.RecordBatch]) -> dict[str, Any]:
        planned = {"distinct_chunks": 0, "cache_hits": 0, "cache_misses": 0, "tokens_to_embed": 0}

        def counted() -> Iterator[pa.RecordBatch]:
            for batch in batches:
                cached = batch["cached"].to_numpy(zero_copy_only=False)
                hits = int(np.count_nonzero(cached))
                planned["distinct_chunks"] += len(batch)
                planned["cache_hits"] += hits
                planned["cache_misses"] += len(batch) - hits
                planned["tokens_to_embed"] += int(batch["tokens"].to_numpy()[~cached].sum())
                yield batch

        with self._artifacts.writing(plan_key(self._collection, partition)) as path:
            write_parquet(path, PLAN, counted())
        looked_up = planned["distinct_chunks"]
        hit_rate = planned["cache_hits"] / looked_up if looked_up else 1.0
        return {**planned, "cache_hit_rate": hit_rate}
