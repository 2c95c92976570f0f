"""The vectors of a group of partitions in one space: what the cache holds, then what it lacks."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from embedding_assets.artifacts.keys import chunks_key, plan_key
from embedding_assets.artifacts.partition_files import PartitionFiles, paths
from embedding_assets.artifacts.schemas import VECTORS
from embedding_assets.artifacts.scratch import Scratch, with_partition
from embedding_assets.embeddings.failures import Failures
from embedding_assets.embeddings.numbers import EmbeddingNumbers
from embedding_assets.embeddings.stream import Pace, embed_stream, model_calls, texts_of
from embedding_assets.runs.progress import Progress
from resources.caches.base import HASHES_PER_LOOKUP, EmbeddingCache
from resources.caches.vectors import CONTENT_HASH_TYPE, encode_vectors
from resources.embedders.base import Embedder
from resources.identity.embedding_space import EmbeddingSpace

_CHUNKS = pa.schema([(name, pa.string()) for name in ("partition", "chunk_id")])
ALL_PLANS, ALL_CHUNKS = with_partition("plans"), with_partition("chunks")
"""SQL over `Work.plans` and `Work.chunks`."""

PartitionVectors = tuple[str, pa.RecordBatch]
"""A partition, and rows of its file of vectors."""


@dataclass(frozen=True)
class Work:
    """A group of partitions, what is counted of each, and who is told."""

    database: Scratch
    group: Sequence[PartitionFiles]
    numbers: dict[str, EmbeddingNumbers]
    progress: Progress

    @property
    def plans(self) -> list[str]:
        return paths(self.group, plan_key)

    @property
    def chunks(self) -> list[str]:
        return paths(self.group, chunks_key)


class SpacePass:
    """Fetches vectors from the cache and embeds the others, into the cache before they count.

    Tables:
        missing: chunks that the cache lacked.
        settled: those of them that an embedder has tried since.
    """

    def __init__(
        self,
        work: Work,
        space: EmbeddingSpace,
        cache: EmbeddingCache,
        failures: Failures,
        flush_size: int,
    ) -> None:
        self._work = work
        self._space = space
        self._cache = cache
        self._failures = failures
        self._flush_size = flush_size
        for table in ("missing", "settled"):
            work.database.create(table, _CHUNKS)

    def vectors(
        self, wanted: str, embedded: Callable[[], Iterator[PartitionVectors]], **parameters: Any
    ) -> Generator[PartitionVectors, None, None]:
        """Yields cached vectors, then those that `embedded` makes of what is missing.

        Args:
            wanted: SQL: rows with a partition, a content hash and a chunk id.
            embedded: calls `embedded` of this object, with what can embed.
            parameters: of `wanted`.
        """
        work = self._work
        rows = f"SELECT partition, content_hash, chunk_id FROM {wanted}"
        if len(work.group) == 1:
            passes = [rows]
        else:
            # What several partitions hold is embedded for the first, and then the others find it.
            nth = "row_number() OVER (PARTITION BY content_hash ORDER BY partition)"
            passes = [f"{rows} QUALIFY {nth} {which}" for which in ("= 1", "> 1")]
        for rows in passes:
            for partition, found in self.cached(rows, **parameters):
                work.progress.advance(len(found), cached=len(found))
                yield partition, found
            if self.unfinished_partitions():
                yield from embedded()

    def unfinished_partitions(self) -> set[str]:
        """Those of which some chunks are missing, and were not tried yet."""
        rows = self._work.database.rows(
            "SELECT DISTINCT partition FROM missing ANTI JOIN settled USING (partition, chunk_id)"
        )
        return {partition for (partition,) in rows}

    def cached(self, wanted: str, **parameters: Any) -> Generator[PartitionVectors, None, None]:
        """Yields what the cache holds; the others go into the table `missing`."""
        work = self._work
        # All hashes are looked up again: what the plan calls cached may be gone, and what it calls
        # missing may have been embedded for another partition in between.
        for batch in work.database.stream(wanted, batch_rows=HASHES_PER_LOOKUP, **parameters):
            hashes = batch["content_hash"].cast(CONTENT_HASH_TYPE)
            found = np.zeros(len(batch), dtype=bool)
            with closing(self._cache.find(self._space, hashes)) as parts:
                for part in parts:
                    found[part.numbers] = True
                    rejected = work.numbers[work.group[0].partition]
                    rejected.cache_entries_rejected += part.rejected
                    rows = batch.take(pa.array(part.numbers))
                    yield from _vectors_by_partition(rows, part.vectors)
            for partition, rows in _by_partition(batch):
                numbers = work.numbers[partition]
                hits = int(np.count_nonzero(found[rows]))
                numbers.distinct_chunks += len(rows)
                numbers.cache_hits += hits
                numbers.cache_misses += len(rows) - hits
            if not found.all():
                missing = batch.filter(pa.array(~found))
                work.database.insert("missing", missing.select(_CHUNKS.names))

    def charge(self, dollars: float) -> None:
        """Notes, with the first partition, what was spent for no text in particular."""
        self._work.numbers[self._work.group[0].partition].dollars += dollars

    def embedded(self, embedder: Embedder) -> Iterator[PartitionVectors]:
        """Embeds what is missing and not settled yet, into the cache under the pass's space."""
        work = self._work
        # One partition may be too large to be sorted, and need not be.
        in_order = "ORDER BY partition" if len(work.group) > 1 else ""
        most = max(1, self._flush_size // embedder.concurrency)
        unsettled = work.database.stream(
            "SELECT partition, content_hash, chunk_id, context || text AS text "
            f"FROM {ALL_CHUNKS} SEMI JOIN missing USING (partition, chunk_id) "
            f"ANTI JOIN settled USING (partition, chunk_id) {in_order}",
            batch_rows=most,
            chunks=work.chunks,
        )
        started = time.perf_counter()
        pace = Pace(embedder.seconds_per_call)
        calls = model_calls(embedder, unsettled, most, pace)
        for embedded in embed_stream(embedder, calls, texts_of):
            pace.learn(embedded)
            batch, errors = embedded.item, embedded.errors
            good = np.array([error is None for error in errors])
            hashes = batch["content_hash"].cast(CONTENT_HASH_TYPE).filter(pa.array(good))
            self._cache.put(self._space, hashes, embedded.batch.vectors[good])
            work.database.insert("settled", batch.select(_CHUNKS.names))
            self._failures.note(batch, errors, work.numbers)
            parts = _by_partition(batch)
            weights = np.maximum(1, embedded.batch.tokens)
            dollars = embedded.batch.dollars * weights / weights.sum()
            for partition, rows in parts:
                own = rows[good[rows]]
                numbers = work.numbers[partition]
                numbers.embedded += len(own)
                numbers.tokens += int(embedded.batch.tokens[own].sum())
                numbers.tokens_truncated += int(embedded.batch.truncated_tokens[own].sum())
                numbers.tokens_judged += int(embedded.batch.tokens[rows].sum())
                if embedded.batch.unknown_tokens is not None:
                    numbers.tokens_unknown += int(embedded.batch.unknown_tokens[rows].sum())
                numbers.dollars += float(dollars[rows].sum())
            embedded_rows = batch.filter(pa.array(good))
            yield from _vectors_by_partition(embedded_rows, embedded.batch.vectors[good])
            seconds = time.perf_counter() - started
            for partition, rows in parts:
                work.numbers[partition].seconds_embedding += seconds * len(rows) / len(batch)
            errors_now = len(batch) - int(np.count_nonzero(good))
            work.progress.advance(len(batch), embedded=len(batch) - errors_now, errors=errors_now)
            started = time.perf_counter()


def _by_partition(batch: pa.RecordBatch) -> list[tuple[str, np.ndarray]]:
    """The partitions of a batch, and the numbers of their rows in it."""
    encoded = batch["partition"].dictionary_encode()
    codes = encoded.indices.to_numpy()
    return [
        (partition, np.flatnonzero(codes == code))
        for code, partition in enumerate(encoded.dictionary.to_pylist())
    ]


def _vectors_by_partition(batch: pa.RecordBatch, vectors: np.ndarray) -> Iterator[PartitionVectors]:
    """Cuts n rows with partition and content hash, and vectors of shape (n, dimension)."""
    for partition, rows in _by_partition(batch):
        whole = len(rows) == len(batch)
        hashes = batch["content_hash"]
        yield (
            partition,
            pa.record_batch(
                [
                    hashes if whole else hashes.take(pa.array(rows)),
                    encode_vectors(vectors if whole else vectors[rows]).cast(pa.binary()),
                ],
                schema=VECTORS,
            ),
        )
