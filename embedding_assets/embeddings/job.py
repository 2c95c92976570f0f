"""The work of `embeddings`: fetch what the cache holds, embed the rest, flush by flush."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import replace

from embedding_assets.artifacts.keys import (
    chunks_key,
    fallback_vectors_key,
    plan_key,
    vectors_key,
)
from embedding_assets.artifacts.parquet import parquet_writer
from embedding_assets.artifacts.partition_files import (
    FileKey,
    PartitionFiles,
    partition_by_path,
    partition_files,
)
from embedding_assets.artifacts.schemas import VECTORS
from embedding_assets.artifacts.scratch import Scratch
from embedding_assets.embeddings.failures import Failures
from embedding_assets.embeddings.numbers import EmbeddingNumbers
from embedding_assets.embeddings.providers import Providers
from embedding_assets.embeddings.space_pass import (
    ALL_CHUNKS,
    ALL_PLANS,
    PartitionVectors,
    SpacePass,
    Work,
)
from embedding_assets.runs.grouping import group_small
from embedding_assets.runs.progress import Progress, stopwatch
from resources.artifact_stores.base import ArtifactStore
from resources.caches.base import EmbeddingCache
from resources.errors import EmbeddingError
from resources.identity.embedding_space import EmbeddingSpace


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

    def run(
        self, partitions: Iterable[str], database: Scratch, progress: Progress
    ) -> Iterator[dict[str, EmbeddingNumbers]]:
        """Writes the vectors of partitions, and the chunks that could not be embedded.

        Small partitions share look-ups and calls of the model. A content that several of them hold
        counts as embedded in the first and as cached in the others, and each has that part of the
        time which it has of the chunks.

        Yields:
            The numbers of one or more partitions when everything of them is written.
        """

        def opened(partition: str) -> AbstractContextManager[PartitionFiles]:
            keys = (plan_key, chunks_key)
            return partition_files(self._artifacts, self._collection, partition, keys)

        for group in group_small(partitions, opened, lambda files: files.size(chunks_key)):
            database.name_partitions(partition_by_path(group))
            numbers = {f.partition: EmbeddingNumbers(f.rows(chunks_key)) for f in group}
            yield from self._run(Work(database, group, numbers, progress))

    def _run(self, work: Work) -> Iterator[dict[str, EmbeddingNumbers]]:
        failures = Failures(self._collection, self._artifacts, work.database)
        primary = self._pass(work, self._providers.space, failures)
        failure: Exception | None = None
        with stopwatch() as whole:
            try:
                self._with_primary(work, primary)
            except Exception as error:
                failure = error
                work = self._finished_ones(work, primary.unfinished_partitions(), failures)
            if self._providers.other_space is not None:
                self._with_fallback(work, failures)
            for files in work.group:
                failures.write_quarantine(files)
        distinct = sum(own.distinct_chunks for own in work.numbers.values())
        for own in work.numbers.values():
            share = own.distinct_chunks / distinct if distinct else 1 / len(work.numbers)
            own.seconds = whole["seconds"] * share
        yield work.numbers
        if failure is not None:
            raise failure

    def _pass(self, work: Work, space: EmbeddingSpace, failures: Failures) -> SpacePass:
        return SpacePass(work, space, self._cache, failures, self._flush_size)

    def _finished_ones(self, work: Work, unfinished: set[str], failures: Failures) -> Work:
        """Writes the vectors of those partitions that needed nothing any more when one failed."""
        space = self._providers.space
        finished = [
            files
            for files in work.group
            if files.partition not in unfinished
            and work.numbers[files.partition].distinct_chunks == files.rows(plan_key)
        ]
        for files in finished:
            one = replace(work, group=[files], numbers={files.partition: EmbeddingNumbers()})
            cached = self._pass(one, space, failures).cached(
                f"SELECT * FROM {ALL_PLANS}", plans=one.plans
            )
            self._write(one, vectors_key, space, cached)
        return replace(
            work,
            group=finished,
            numbers={files.partition: work.numbers[files.partition] for files in finished},
        )

    def _with_primary(self, work: Work, primary: SpacePass) -> None:
        """The vectors of the primary's space: cached ones, and those that are missing."""
        providers = self._providers

        def embedded() -> Iterator[PartitionVectors]:
            if providers.failure is None:
                try:
                    with work.progress.doing(f"starting '{providers.space.model}'"):
                        primary.charge(providers.canaries.verify(providers.primary))
                    with work.progress.doing(f"waiting for '{providers.space.model}'"):
                        yield from primary.embedded(providers.primary)
                    return
                except EmbeddingError as error:
                    primary.charge(error.dollars)
                    providers.fail_over(error)
            if fallback := providers.same_space_fallback():
                yield from primary.embedded(fallback)

        work.progress.begin(sum(files.rows(plan_key) for files in work.group), len(work.group))
        vectors = primary.vectors(ALL_PLANS, embedded, plans=work.plans)
        self._write(work, vectors_key, providers.space, vectors)
        for own in work.numbers.values():
            own.left_to_fallback = own.cache_misses - own.embedded - own.errors

    def _with_fallback(self, work: Work, failures: Failures) -> None:
        """The documents that the primary could not finish, as a whole, in the fallback's space.

        Tables:
            wanted: the distinct contents of these documents, for each partition.
        """
        fallback, space = self._providers.fallback, self._providers.other_space
        group = [f for f in work.group if work.numbers[f.partition].left_to_fallback]
        for files in work.group:
            if files not in group:
                key = fallback_vectors_key(self._collection, files.partition)
                self._artifacts.remove(key)
        if not group or fallback is None or space is None:
            return
        work.database.execute(
            f"""
            CREATE OR REPLACE TABLE wanted AS
            WITH held AS (
                SELECT partition, content_hash, p.chunk_id, c.document_id
                FROM {ALL_PLANS} p JOIN {ALL_CHUNKS} c USING (partition, content_hash)
            ), unfinished AS (
                SELECT partition, document_id FROM held
                SEMI JOIN missing USING (partition, chunk_id)
                ANTI JOIN settled USING (partition, chunk_id)
            ), refused AS (
                SELECT partition, document_id FROM held
                SEMI JOIN failed USING (partition, chunk_id)
            )
            SELECT DISTINCT partition, content_hash, chunk_id FROM held
            SEMI JOIN unfinished USING (partition, document_id)
            ANTI JOIN refused USING (partition, document_id)
            """,
            plans=work.plans,
            chunks=work.chunks,
        )
        own = {files.partition: EmbeddingNumbers() for files in group}
        theirs = replace(work, group=group, numbers=own)
        in_fallback = self._pass(theirs, space, failures)

        def embedded() -> Iterator[PartitionVectors]:
            with work.progress.doing(f"starting '{space.model}'"):
                in_fallback.charge(self._providers.canaries.verify(fallback))
            yield from in_fallback.embedded(fallback)

        self._write(theirs, fallback_vectors_key, space, in_fallback.vectors("wanted", embedded))
        for partition, these in own.items():
            numbers = work.numbers[partition]
            numbers.fallback_vectors = these.cache_hits + these.embedded
            numbers.fallback_embedded, numbers.fallback_tokens = these.embedded, these.tokens
            numbers.fallback_errors = these.errors
            numbers.error_examples += these.error_examples
            numbers.dollars += these.dollars

    def _write(
        self,
        work: Work,
        key: FileKey,
        space: EmbeddingSpace,
        vectors: Generator[PartitionVectors, None, None],
    ) -> None:
        """Writes a file for each partition; all of them appear when the last vector is there."""
        schema = VECTORS.with_metadata({"space": space.to_json()})
        with ExitStack() as stack:
            stack.enter_context(closing(vectors))  # it may hold the cache
            writers = {}
            for files in work.group:
                path = stack.enter_context(
                    self._artifacts.writing(key(self._collection, files.partition))
                )
                writers[files.partition] = stack.enter_context(parquet_writer(path, schema))
            for partition, rows in vectors:
                writers[partition](rows)
