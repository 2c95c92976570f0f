"""Asset `embeddings`: one vector for each distinct content hash, from the cache or the model."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedding_assets import artifacts as files
from embedding_assets.canaries import Canaries, SpaceDriftError
from embedding_assets.checks import EmbeddingChecks
from embedding_assets.collection import Collection
from embedding_assets.embedding_stream import embed_stream
from embedding_assets.fallback import Providers
from embedding_assets.process_memory import peak_memory_mb
from embedding_assets.range_run import Progress, RangeRun, stopwatch
from embedding_assets.scratch import Scratch, scratch
from resources.artifact_store import ArtifactStore
from resources.embedder import Embedder, EmbeddingError
from resources.embedding_cache import (
    CONTENT_HASH_TYPE,
    EmbeddingCache,
    encode_vectors,
)
from resources.embedding_space import EmbeddingSpace

_HASHES_PER_LOOKUP = 8_192


def embeddings_asset(collection: Collection) -> dg.AssetsDefinition:
    checks = EmbeddingChecks(collection)

    @collection.asset(
        "embeddings",
        after="deduplicated_chunks",
        description="One vector for each distinct chunk: from the cache, or from the model "
        "and then into the cache, flush by flush.",
        kinds={"parquet"},
        check_specs=checks.specs,
    )
    def embeddings(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        resources = collection.resources(context)
        providers = Providers(
            resources.embedder,
            resources.fallback,
            collection.settings.fallback,
            Canaries(resources.artifacts, resources.cache),
            context.log,
        )
        job = EmbeddingJob(
            collection.name,
            providers,
            resources.cache,
            resources.artifacts,
            collection.settings.embedder.flush_size,
        )
        total = EmbeddingNumbers()
        with RangeRun(context) as run, scratch() as database:
            progress = Progress(context.log, "chunks", partitions=len(run.partitions))
            for partition in run.partitions:
                try:
                    numbers = job.run(partition, database, progress)
                except SpaceDriftError as drift:
                    context.log_event(checks.drifted(drift))  # pyright: ignore[reportArgumentType]
                    raise
                total.add(numbers)
                run.finish(
                    partition,
                    {
                        **numbers.metadata(),
                        "peak_memory_mb": peak_memory_mb(),
                        "embedding_space": resources.embedder.space.id,
                        "model": resources.embedder.space.model,
                        "embedder": resources.embedder.describe(),
                    },
                )
            progress.finish()
        context.log.info(total.summary())
        used = {**resources.embedder.statistics(), **resources.cache.faults()}
        if used:
            context.log.info(", ".join(f"{name}: {value:,.4g}" for name, value in used.items()))
        results = checks.results(total, used, providers.canaries, context.instance)
        return dg.MaterializeResult(check_results=results)

    return embeddings


@dataclass
class EmbeddingNumbers:
    """What happened to distinct chunks.

    hits + misses = distinct; embedded + errors + left_to_fallback = misses. Only the fields that
    are named so speak of a fallback with a space of its own.
    """

    chunks: int = 0
    distinct_chunks: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    cache_entries_rejected: int = 0
    embedded: int = 0
    errors: int = 0
    left_to_fallback: int = 0
    fallback_vectors: int = 0
    fallback_embedded: int = 0
    fallback_errors: int = 0
    fallback_tokens: int = 0
    tokens: int = 0
    tokens_truncated: int = 0
    dollars: float = 0.0
    seconds: float = 0.0
    seconds_embedding: float = 0.0
    error_examples: list[str] = field(default_factory=list)

    @property
    def cache_hit_rate(self) -> float:
        return self.cache_hits / self.distinct_chunks if self.distinct_chunks else 1.0

    @property
    def texts_refused(self) -> int:
        return self.errors + self.fallback_errors

    @property
    def texts_tried(self) -> int:
        return self.embedded + self.fallback_embedded + self.texts_refused

    @property
    def error_rate(self) -> float:
        return self.texts_refused / self.texts_tried if self.texts_tried else 0.0

    @property
    def chunks_per_second(self) -> float:
        return self.embedded / self.seconds_embedding if self.seconds_embedding else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds_embedding if self.seconds_embedding else 0.0

    def add(self, other: "EmbeddingNumbers") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def metadata(self) -> dict[str, Any]:
        numbers = {
            name: value
            for name, value in vars(self).items()
            # Dagster keeps some hundred bytes of each number for each partition.
            if name != "error_examples" and (value or name not in _SELDOM)
        }
        return {
            **numbers,
            "cache_hit_rate": self.cache_hit_rate,
            "error_rate": self.error_rate,
            "chunks_per_second": self.chunks_per_second,
            "tokens_per_second": self.tokens_per_second,
        }

    def summary(self) -> str:
        if not self.cache_misses:
            return f"Nothing to embed: all {self.distinct_chunks:,} distinct chunks were cached."
        return (
            f"{self.embedded:,} chunks embedded ({self.tokens:,} tokens, "
            f"{self.tokens_per_second:,.0f} tokens/s), {self.cache_hits:,} of "
            f"{self.distinct_chunks:,} cached ({self.cache_hit_rate:.1%}), "
            f"{self.texts_refused} errors."
        )


_SELDOM = (
    "cache_entries_rejected", "left_to_fallback", "fallback_vectors", "fallback_embedded",
    "fallback_errors", "fallback_tokens", "dollars",
)  # fmt: skip


class EmbeddingJob:
    """Embeds what the cache lacks. Each finished call is durable in the cache before it counts."""

    def __init__(
        self,
        collection: str,
        providers: Providers,
        cache: EmbeddingCache,
        artifacts: ArtifactStore,
        flush_size: int,
    ) -> None:
        self._collection = collection
        self._providers = providers
        self._cache = cache
        self._artifacts = artifacts
        self._flush_size = flush_size

    def run(self, partition: str, database: Scratch, progress: Progress) -> EmbeddingNumbers:
        """Writes the vectors of a partition, and the chunks that could not be embedded."""
        database.create("failed", _FAILED)
        with (
            stopwatch() as whole,
            self._artifacts.reading(files.plan_key(self._collection, partition)) as plan,
            self._artifacts.reading(files.chunks_key(self._collection, partition)) as chunks,
        ):
            work = _Work(database, str(plan), str(chunks), progress)
            numbers = self._with_primary(partition, work)
            if self._providers.other_space is not None:
                self._with_fallback(partition, work, numbers)
            self._write_quarantine(database, partition, str(chunks))
        numbers.seconds = whole["seconds"]
        return numbers

    def _with_primary(self, partition: str, work: "_Work") -> EmbeddingNumbers:
        """The vectors of the primary's space: cached ones, and those that are missing."""
        providers, numbers = self._providers, EmbeddingNumbers()
        (numbers.chunks,) = work.database.row(
            "SELECT count(*) FROM read_parquet($chunks)", chunks=work.chunks
        )

        def embedded() -> Iterator[pa.RecordBatch]:
            if not numbers.cache_misses:
                return
            if providers.failure is None:
                try:
                    providers.canaries.prove(providers.primary)
                    yield from self._embedded(work, providers.primary, providers.space, numbers)
                    return
                except EmbeddingError as error:
                    providers.take_over(error)
            if stand_in := providers.stand_in():
                yield from self._embedded(work, stand_in, providers.space, numbers)

        def vectors() -> Iterator[pa.RecordBatch]:
            work.progress.begin(pq.read_metadata(work.plan).num_rows)
            plan = "SELECT content_hash, chunk_id FROM read_parquet($plan)"
            yield from self._cached(work, providers.space, numbers, plan, plan=work.plan)
            yield from embedded()

        self._write(files.vectors_key(self._collection, partition), providers.space, vectors())
        numbers.left_to_fallback = numbers.cache_misses - numbers.embedded - numbers.errors
        return numbers

    def _with_fallback(self, partition: str, work: "_Work", numbers: EmbeddingNumbers) -> None:
        """The documents that the primary could not finish, as a whole, in the fallback's space."""
        key = files.fallback_vectors_key(self._collection, partition)
        fallback, space = self._providers.fallback, self._providers.other_space
        if not numbers.left_to_fallback or fallback is None or space is None:
            self._artifacts.remove(key)
            return
        work.database.execute(
            """
            CREATE OR REPLACE TABLE wanted AS
            SELECT DISTINCT p.content_hash, p.chunk_id
            FROM read_parquet($plan) p JOIN read_parquet($chunks) c USING (content_hash)
            WHERE c.document_id IN (
                SELECT c.document_id FROM read_parquet($chunks) c
                JOIN read_parquet($plan) p USING (content_hash)
                JOIN missing ON missing.chunk_id = p.chunk_id
                ANTI JOIN settled ON settled.chunk_id = p.chunk_id
            )
            AND c.document_id NOT IN (
                SELECT c.document_id FROM read_parquet($chunks) c
                JOIN read_parquet($plan) p USING (content_hash)
                JOIN failed ON failed.chunk_id = p.chunk_id
            )
            """,
            plan=work.plan,
            chunks=work.chunks,
        )
        own = EmbeddingNumbers()

        def vectors() -> Iterator[pa.RecordBatch]:
            wanted = "SELECT content_hash, chunk_id FROM wanted"
            yield from self._cached(work, space, own, wanted)
            if own.cache_misses:
                self._providers.canaries.prove(fallback)
                yield from self._embedded(work, fallback, space, own)

        self._write(key, space, vectors())
        numbers.fallback_vectors = own.cache_hits + own.embedded
        numbers.fallback_embedded, numbers.fallback_tokens = own.embedded, own.tokens
        numbers.fallback_errors = own.errors
        numbers.error_examples += own.error_examples
        numbers.dollars += own.dollars

    def _write(self, key: str, space: EmbeddingSpace, vectors: Iterator[pa.RecordBatch]) -> None:
        schema = files.VECTORS.with_metadata({"space": space.to_json()})
        with self._artifacts.writing(key) as path:
            files.write_parquet(path, schema, vectors)

    def _cached(
        self,
        work: "_Work",
        space: EmbeddingSpace,
        numbers: EmbeddingNumbers,
        wanted: str,
        **parameters: Any,
    ) -> Iterator[pa.RecordBatch]:
        """Yields what the cache holds; the others go into the table `missing`."""
        # All hashes are looked up again: what the plan calls cached may be gone, and what it calls
        # missing may have been embedded for another partition in between.
        work.database.create("missing", pa.schema([files.PLAN.field("chunk_id")]))
        work.database.create("settled", pa.schema([files.PLAN.field("chunk_id")]))
        for batch in work.database.stream(wanted, batch_rows=_HASHES_PER_LOOKUP, **parameters):
            hashes = batch["content_hash"].cast(CONTENT_HASH_TYPE)
            answer = self._cache.get(space, hashes)
            hits = int(np.count_nonzero(answer.found))
            numbers.distinct_chunks += len(batch)
            numbers.cache_hits += hits
            numbers.cache_misses += len(batch) - hits
            numbers.cache_entries_rejected += answer.rejected
            work.progress.advance(hits, cached=hits)
            if hits < len(batch):
                missing = batch["chunk_id"].filter(pa.array(~answer.found))
                work.database.insert("missing", pa.table({"chunk_id": missing}))
            yield _vector_rows(hashes.filter(pa.array(answer.found)), answer.vectors[answer.found])

    def _embedded(
        self, work: "_Work", embedder: Embedder, space: EmbeddingSpace, numbers: EmbeddingNumbers
    ) -> Iterator[pa.RecordBatch]:
        """Embeds what is missing and not settled yet, into the cache under `space`."""

        def read() -> Iterator[pa.RecordBatch]:
            for window in work.database.stream(
                "SELECT content_hash, chunk_id, context || text AS text FROM read_parquet($chunks) "
                "SEMI JOIN missing USING (chunk_id) ANTI JOIN settled USING (chunk_id)",
                batch_rows=max(1, self._flush_size // embedder.concurrency),
                chunks=work.chunks,
            ):
                for part in embedder.batches(_texts(window)):
                    yield window.slice(part.start, part.stop - part.start)

        started = time.perf_counter()
        for embedded in embed_stream(embedder, read(), _texts):
            batch, errors = embedded.item, embedded.errors
            hashes = batch["content_hash"].cast(CONTENT_HASH_TYPE)
            good = np.array([error is None for error in errors])
            vectors = embedded.batch.vectors[good]
            self._cache.put(space, hashes.filter(pa.array(good)), vectors)
            work.database.insert("settled", pa.table({"chunk_id": batch["chunk_id"]}))
            numbers.embedded += int(np.count_nonzero(good))
            numbers.tokens += int(embedded.batch.tokens[good].sum())
            numbers.tokens_truncated += int(embedded.batch.truncated_tokens[good].sum())
            numbers.dollars += embedder.dollars(int(embedded.batch.tokens.sum()))
            failed = [
                (chunk, *error)
                for chunk, error in zip(batch["chunk_id"].to_pylist(), errors, strict=True)
                if error is not None
            ]
            if failed:
                numbers.errors += len(failed)
                numbers.error_examples += [f"{reason}: {why}" for _, reason, why in failed[:3]]
                columns = [pa.array(column, pa.string()) for column in zip(*failed, strict=True)]
                work.database.insert("failed", pa.table(columns, schema=_FAILED))
            errors_now = len(batch) - int(np.count_nonzero(good))
            work.progress.advance(len(batch), embedded=len(batch) - errors_now, errors=errors_now)
            yield _vector_rows(hashes.filter(pa.array(good)), vectors)
            numbers.seconds_embedding += time.perf_counter() - started
            started = time.perf_counter()

    def _write_quarantine(self, database: Scratch, partition: str, chunks: str) -> None:
        key = files.embeddings_quarantine_key(self._collection, partition)
        (failures,) = database.row("SELECT count(*) FROM failed")
        if not failures and not self._artifacts.exists(key):
            return
        database.create("known", files.QUARANTINE)
        if self._artifacts.exists(key):
            with self._artifacts.reading(key) as previous:
                database.execute("INSERT INTO known FROM read_parquet($p)", p=str(previous))
        with (
            self._artifacts.writing(key) as path,
            self._artifacts.reading(files.documents_key(self._collection, partition)) as documents,
        ):
            files.write_parquet(
                path,
                files.QUARANTINE,
                database.stream(
                    """
                    SELECT failed.reason, c.document_id, d.file, d.line,
                           'chunk ' || c.chunk_number || ': ' || failed.detail AS detail,
                           1 + coalesce((SELECT max(attempts) FROM known
                               WHERE known.document_id = c.document_id), 0) AS attempts
                    FROM failed JOIN read_parquet($chunks) f USING (chunk_id)
                    JOIN read_parquet($chunks) c ON c.content_hash = f.content_hash
                    LEFT JOIN read_parquet($documents) d ON d.id = c.document_id
                    ORDER BY c.document_id, c.chunk_number
                    """,
                    chunks=chunks,
                    documents=str(documents),
                ),
            )


@dataclass(frozen=True)
class _Work:
    """What one partition needs: a database, the files of plan and chunks, and who is told."""

    database: Scratch
    plan: str
    chunks: str
    progress: Progress


_FAILED = pa.schema([("chunk_id", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


def _texts(batch: pa.RecordBatch) -> list[str]:
    return batch["text"].to_pylist()


def _vector_rows(hashes: pa.Array, vectors: np.ndarray) -> pa.RecordBatch:
    encoded = encode_vectors(vectors).cast(pa.binary())
    return pa.record_batch([hashes, encoded], names=files.VECTORS.names)
