"""Asset `embeddings`: one vector for each distinct content hash, from the cache or the model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa

from embedding_assets import artifacts as files
from embedding_assets.checks import EmbeddingChecks
from embedding_assets.collection import Collection
from embedding_assets.range_run import Progress, RangeRun, peak_memory_mb, stopwatch
from embedding_assets.scratch import Scratch, scratch
from resources.artifact_store import ArtifactStore
from resources.embedder import Embedder, EmbeddingBatch, EmbeddingError
from resources.embedding_cache import (
    CONTENT_HASH_TYPE,
    EmbeddingCache,
    encode_vectors,
    valid_vectors,
)

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
        job = EmbeddingJob(
            collection.name,
            resources.embedder,
            resources.cache,
            resources.artifacts,
            collection.settings.embedder.flush_size,
        )
        total = EmbeddingNumbers()
        with RangeRun(context) as run, scratch() as database:
            progress = Progress(context.log, "chunks embedded")
            for partition in run.partitions:
                numbers = job.run(partition, database, progress)
                total.add(numbers)
                run.finish(
                    partition,
                    {
                        **numbers.metadata(),
                        "peak_memory_mb": peak_memory_mb(),
                        "embedding_space": resources.embedder.space.id,
                        "model": resources.embedder.space.model,
                    },
                )
        context.log.info(total.summary())
        return dg.MaterializeResult(check_results=checks.results(total, context.instance))

    return embeddings


@dataclass
class EmbeddingNumbers:
    """What happened to distinct chunks: hits + misses = distinct, embedded + errors = misses."""

    chunks: int = 0
    distinct_chunks: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    cache_entries_rejected: int = 0
    embedded: int = 0
    errors: int = 0
    tokens: int = 0
    tokens_truncated: int = 0
    seconds: float = 0.0
    seconds_embedding: float = 0.0
    error_examples: list[str] = field(default_factory=list)

    @property
    def cache_hit_rate(self) -> float:
        return self.cache_hits / self.distinct_chunks if self.distinct_chunks else 1.0

    @property
    def error_rate(self) -> float:
        return self.errors / self.cache_misses if self.cache_misses else 0.0

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
        numbers = {name: value for name, value in vars(self).items() if name != "error_examples"}
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
            f"{self.distinct_chunks:,} cached ({self.cache_hit_rate:.1%}), {self.errors} errors."
        )


class EmbeddingJob:
    """Embeds what the cache lacks. Each flush is durable in the cache before the next begins."""

    def __init__(
        self,
        collection: str,
        embedder: Embedder,
        cache: EmbeddingCache,
        artifacts: ArtifactStore,
        flush_size: int,
    ) -> None:
        self._collection = collection
        self._embedder = embedder
        self._cache = cache
        self._artifacts = artifacts
        self._flush_size = flush_size

    def run(self, partition: str, database: Scratch, progress: Progress) -> EmbeddingNumbers:
        """Writes the vectors of a partition, and the chunks that could not be embedded."""
        numbers = EmbeddingNumbers()
        space = self._embedder.space
        schema = files.VECTORS.with_metadata({"space": space.to_json()})
        database.create("missing", pa.schema([files.PLAN.field("chunk_id")]))
        database.create("failed", _FAILED)
        with (
            stopwatch() as whole,
            self._artifacts.reading(files.plan_key(self._collection, partition)) as plan,
            self._artifacts.reading(files.chunks_key(self._collection, partition)) as chunks,
        ):
            (numbers.chunks,) = database.row(
                "SELECT count(*) FROM read_parquet($chunks)", chunks=str(chunks)
            )

            def vectors() -> Iterator[pa.RecordBatch]:
                yield from self._cached(database, str(plan), numbers)
                yield from self._embedded(database, str(chunks), numbers, progress)

            with self._artifacts.writing(files.vectors_key(self._collection, partition)) as path:
                files.write_parquet(path, schema, vectors())
            self._write_quarantine(database, partition, str(chunks))
        numbers.seconds = whole["seconds"]
        return numbers

    def _cached(
        self, database: Scratch, plan: str, numbers: EmbeddingNumbers
    ) -> Iterator[pa.RecordBatch]:
        # All hashes are looked up again: what the plan calls cached may be gone, and what it calls
        # missing may have been embedded for another partition in between.
        for batch in database.stream(
            "SELECT content_hash, chunk_id FROM read_parquet($plan)",
            batch_rows=_HASHES_PER_LOOKUP,
            plan=plan,
        ):
            hashes = batch["content_hash"].cast(CONTENT_HASH_TYPE)
            answer = self._cache.get(self._embedder.space, hashes)
            hits = int(np.count_nonzero(answer.found))
            numbers.distinct_chunks += len(batch)
            numbers.cache_hits += hits
            numbers.cache_misses += len(batch) - hits
            numbers.cache_entries_rejected += answer.rejected
            missing = batch["chunk_id"].filter(pa.array(~answer.found))
            database.insert("missing", pa.table({"chunk_id": missing}))
            yield _vector_rows(hashes.filter(pa.array(answer.found)), answer.vectors[answer.found])

    def _embedded(
        self, database: Scratch, chunks: str, numbers: EmbeddingNumbers, progress: Progress
    ) -> Iterator[pa.RecordBatch]:
        for batch in database.stream(
            "SELECT content_hash, chunk_id, context || text AS text FROM read_parquet($chunks) "
            "SEMI JOIN missing USING (chunk_id)",
            batch_rows=self._flush_size,
            chunks=chunks,
        ):
            hashes = batch["content_hash"].cast(CONTENT_HASH_TYPE)
            with stopwatch() as watch:
                result, errors = embed_each(self._embedder, batch["text"].to_pylist())
            good = np.array([error is None for error in errors])
            self._cache.put(
                self._embedder.space, hashes.filter(pa.array(good)), result.vectors[good]
            )
            numbers.seconds_embedding += watch["seconds"]
            numbers.embedded += int(np.count_nonzero(good))
            numbers.tokens += int(result.tokens[good].sum())
            numbers.tokens_truncated += int(result.truncated_tokens[good].sum())
            failed = [
                (chunk, *error)
                for chunk, error in zip(batch["chunk_id"].to_pylist(), errors, strict=True)
                if error is not None
            ]
            if failed:
                numbers.errors += len(failed)
                numbers.error_examples += [f"{reason}: {why}" for _, reason, why in failed[:3]]
                columns = [pa.array(column, pa.string()) for column in zip(*failed, strict=True)]
                database.insert("failed", pa.table(columns, schema=_FAILED))
            progress.advance(len(batch))
            yield _vector_rows(hashes.filter(pa.array(good)), result.vectors[good])

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


_FAILED = pa.schema([("chunk_id", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


def embed_each(
    embedder: Embedder, texts: Sequence[str]
) -> tuple[EmbeddingBatch, list[tuple[str, str] | None]]:
    """Embeds texts; a text that cannot be embedded does not stop the others.

    Args:
        embedder: the model.
        texts: n texts.

    Returns:
        The batch (rows of failed texts are zero) and, for each text, None or the reason code and
        a sentence for the quarantine.

    Raises:
        EmbeddingError: the embedder also fails for a harmless text: then not these are at fault.
    """
    dimension = embedder.space.dimension
    vectors = np.zeros((len(texts), dimension), dtype=np.float32)
    tokens = np.zeros(len(texts), dtype=np.int32)
    truncated = np.zeros(len(texts), dtype=np.int32)
    errors: list[tuple[str, str] | None] = [None] * len(texts)
    failed_in_a_row = 0

    def embed(start: int, end: int) -> None:
        nonlocal failed_in_a_row
        try:
            result = embedder.embed(texts[start:end])
        except EmbeddingError as error:
            if error.stage in _NO_TEXT_AT_FAULT:
                raise
            if end - start == 1:
                if failed_in_a_row % _DOUBT_AFTER == 0:
                    embedder.embed([_HARMLESS_TEXT])
                failed_in_a_row += 1
                errors[start] = ("embedding_failed", str(error)[:200])
                return
        else:
            failed_in_a_row = 0
            vectors[start:end] = result.vectors
            tokens[start:end] = result.tokens
            truncated[start:end] = result.truncated_tokens
            return
        # Halve outside the `except` block: the traceback would keep the batch's tensors alive.
        middle = (start + end) // 2
        embed(start, middle)
        embed(middle, end)

    embed(0, len(texts))
    for row in np.flatnonzero(~valid_vectors(embedder.space, vectors)):
        if errors[row] is None:
            norm = float(np.linalg.norm(vectors[row]))
            errors[row] = ("invalid_vector", f"the model returned a vector of norm {norm}")
            vectors[row] = 0
    return EmbeddingBatch(vectors, tokens, truncated), errors


_NO_TEXT_AT_FAULT = ("resolve", "load", "compile", "self-check")
_HARMLESS_TEXT = "A short text that every model can embed."
_DOUBT_AFTER = 8
"""At the first failure, and again after so many in a row, a harmless text tells whether the texts
are at fault or the embedder."""


def _vector_rows(hashes: pa.Array, vectors: np.ndarray) -> pa.RecordBatch:
    encoded = encode_vectors(vectors).cast(pa.binary())
    return pa.record_batch([hashes, encoded], names=files.VECTORS.names)
