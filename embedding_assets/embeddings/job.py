"""The work of `embeddings`: fetch what the cache holds, embed the rest, flush by flush."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedding_assets.artifacts.keys import (
    chunks_key,
    documents_key,
    embeddings_quarantine_key,
    fallback_vectors_key,
    plan_key,
    vectors_key,
)
from embedding_assets.artifacts.parquet import parquet_writer, uncompressed_bytes, write_parquet
from embedding_assets.artifacts.rows import to_arrow
from embedding_assets.artifacts.schemas import QUARANTINE, VECTORS
from embedding_assets.artifacts.scratch import Scratch, with_partition
from embedding_assets.embeddings.numbers import EmbeddingNumbers
from embedding_assets.embeddings.providers import Providers
from embedding_assets.embeddings.stream import embed_stream, model_calls, texts_of
from embedding_assets.runs.grouping import group_small
from embedding_assets.runs.progress import Progress, stopwatch
from resources.artifact_stores.base import ArtifactStore
from resources.caches.base import EmbeddingCache
from resources.caches.vectors import CONTENT_HASH_TYPE, encode_vectors
from resources.embedders.base import Embedder, EmbeddingError
from resources.identity.embedding_space import EmbeddingSpace

_HASHES_PER_LOOKUP = 65_536
_ERROR_EXAMPLES = 3

_Vectors = tuple[str, pa.RecordBatch]
"""A partition, and rows of its file of vectors."""


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
        for places in group_small(partitions, self._opened, _Place.size):
            yield from self._run(places, database, progress)

    @contextmanager
    def _opened(self, partition: str) -> Iterator["_Place"]:
        with (
            self._artifacts.reading(plan_key(self._collection, partition)) as plan,
            self._artifacts.reading(chunks_key(self._collection, partition)) as chunks,
        ):
            yield _Place(partition, str(plan), str(chunks))

    def _run(
        self, places: list["_Place"], database: Scratch, progress: Progress
    ) -> Iterator[dict[str, EmbeddingNumbers]]:
        database.create("failed", _FAILED)
        _forget_missing(database)
        database.name_partitions(
            {path: place.partition for place in places for path in (place.plan, place.chunks)}
        )
        numbers = {place.partition: EmbeddingNumbers(place.chunk_count) for place in places}
        work = _Work(database, places, numbers, progress)
        failure: Exception | None = None
        with stopwatch() as whole:
            try:
                self._with_primary(work)
            except Exception as error:
                failure = error
                work = self._finished_ones(work)
            if self._providers.other_space is not None:
                self._with_fallback(work)
            for place in work.places:
                self._write_quarantine(database, place)
        distinct = sum(own.distinct_chunks for own in work.numbers.values())
        for own in work.numbers.values():
            share = own.distinct_chunks / distinct if distinct else 1 / len(work.numbers)
            own.seconds = whole["seconds"] * share
        yield work.numbers
        if failure is not None:
            raise failure

    def _finished_ones(self, work: "_Work") -> "_Work":
        """Writes the vectors of those partitions that needed nothing any more when one failed."""
        unfinished = {
            partition
            for (partition,) in work.database.rows(
                "SELECT partition FROM missing ANTI JOIN settled USING (partition, chunk_id)"
            )
        }
        finished = [
            place
            for place in work.places
            if place.partition not in unfinished
            and work.numbers[place.partition].distinct_chunks == place.distinct_chunks
        ]
        for place in finished:
            one = replace(work, places=[place], numbers={place.partition: EmbeddingNumbers()})
            wanted = f"SELECT * FROM {_ALL_PLANS}"
            vectors = self._cached(one, self._providers.space, wanted, plan=one.plans)
            self._write(one, vectors_key, self._providers.space, vectors)
        return replace(
            work,
            places=finished,
            numbers={place.partition: work.numbers[place.partition] for place in finished},
        )

    def _with_primary(self, work: "_Work") -> None:
        """The vectors of the primary's space: cached ones, and those that are missing."""
        providers = self._providers

        def embedded() -> Iterator[_Vectors]:
            if providers.failure is None:
                try:
                    providers.canaries.prove(providers.primary)
                    yield from self._embedded(work, providers.primary, providers.space)
                    return
                except EmbeddingError as error:
                    providers.take_over(error)
            if stand_in := providers.stand_in():
                yield from self._embedded(work, stand_in, providers.space)

        work.progress.begin(sum(p.distinct_chunks for p in work.places), len(work.places))
        self._write(
            work,
            vectors_key,
            providers.space,
            self._vectors(
                work,
                providers.space,
                _ALL_PLANS,
                embedded,
                plan=work.plans,
            ),
        )
        for place in work.places:
            own = work.numbers[place.partition]
            own.left_to_fallback = own.cache_misses - own.embedded - own.errors

    def _with_fallback(self, work: "_Work") -> None:
        """The documents that the primary could not finish, as a whole, in the fallback's space."""
        fallback, space = self._providers.fallback, self._providers.other_space
        places = [p for p in work.places if work.numbers[p.partition].left_to_fallback]
        for place in work.places:
            if place not in places:
                key = fallback_vectors_key(self._collection, place.partition)
                self._artifacts.remove(key)
        if not places or fallback is None or space is None:
            return
        work.database.execute(
            f"""
            CREATE OR REPLACE TABLE wanted AS
            WITH held AS (
                SELECT partition, content_hash, p.chunk_id, c.document_id
                FROM {_ALL_PLANS} p JOIN {_ALL_CHUNKS} c USING (partition, content_hash)
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
            plan=work.plans,
            chunks=work.chunks,
        )
        own = {place.partition: EmbeddingNumbers() for place in places}
        theirs = replace(work, places=places, numbers=own)

        def embedded() -> Iterator[_Vectors]:
            self._providers.canaries.prove(fallback)
            yield from self._embedded(theirs, fallback, space)

        self._write(
            theirs,
            fallback_vectors_key,
            space,
            self._vectors(theirs, space, "wanted", embedded),
        )
        for partition, these in own.items():
            numbers = work.numbers[partition]
            numbers.fallback_vectors = these.cache_hits + these.embedded
            numbers.fallback_embedded, numbers.fallback_tokens = these.embedded, these.tokens
            numbers.fallback_errors = these.errors
            numbers.error_examples += these.error_examples
            numbers.dollars += these.dollars

    def _write(
        self,
        work: "_Work",
        key: Callable[[str, str], str],
        space: EmbeddingSpace,
        vectors: Generator[_Vectors, None, None],
    ) -> None:
        """Writes a file for each partition; all of them appear when the last vector is there."""
        schema = VECTORS.with_metadata({"space": space.to_json()})
        with ExitStack() as stack:
            stack.enter_context(closing(vectors))  # it may hold the cache
            writers = {}
            for place in work.places:
                path = stack.enter_context(
                    self._artifacts.writing(key(self._collection, place.partition))
                )
                writers[place.partition] = stack.enter_context(parquet_writer(path, schema))
            for partition, rows in vectors:
                writers[partition](rows)

    def _vectors(
        self,
        work: "_Work",
        space: EmbeddingSpace,
        wanted: str,
        embedded: Callable[[], Iterator[_Vectors]],
        **parameters: Any,
    ) -> Generator[_Vectors, None, None]:
        """Yields cached vectors, then those that `embedded` makes of what is missing."""
        _forget_missing(work.database)
        rows = f"SELECT partition, content_hash, chunk_id FROM {wanted}"
        if len(work.places) == 1:
            passes = [rows]
        else:
            # What several partitions hold is embedded for the first, and then the others find it.
            nth = "row_number() OVER (PARTITION BY content_hash ORDER BY partition)"
            passes = [f"{rows} QUALIFY {nth} {which}" for which in ("= 1", "> 1")]
        for rows in passes:
            for partition, found in self._cached(work, space, rows, **parameters):
                work.progress.advance(len(found), cached=len(found))
                yield partition, found
            (unsettled,) = work.database.row(
                "SELECT count(*) FROM missing ANTI JOIN settled USING (partition, chunk_id)"
            )
            if unsettled:
                yield from embedded()

    def _cached(
        self, work: "_Work", space: EmbeddingSpace, wanted: str, **parameters: Any
    ) -> Generator[_Vectors, None, None]:
        """Yields what the cache holds; the others go into the table `missing`."""
        # All hashes are looked up again: what the plan calls cached may be gone, and what it calls
        # missing may have been embedded for another partition in between.
        for batch in work.database.stream(wanted, batch_rows=_HASHES_PER_LOOKUP, **parameters):
            hashes = batch["content_hash"].cast(CONTENT_HASH_TYPE)
            found = np.zeros(len(batch), dtype=bool)
            with closing(self._cache.find(space, hashes)) as parts:
                for part in parts:
                    found[part.numbers] = True
                    rejected = work.numbers[work.places[0].partition]
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

    def _embedded(
        self, work: "_Work", embedder: Embedder, space: EmbeddingSpace
    ) -> Iterator[_Vectors]:
        """Embeds what is missing and not settled yet, into the cache under `space`."""
        # One partition may be too large to be sorted, and need not be.
        in_order = "ORDER BY partition" if len(work.places) > 1 else ""
        most = max(1, self._flush_size // embedder.concurrency)
        unsettled = work.database.stream(
            "SELECT partition, content_hash, chunk_id, context || text AS text "
            f"FROM {_ALL_CHUNKS} SEMI JOIN missing USING (partition, chunk_id) "
            f"ANTI JOIN settled USING (partition, chunk_id) {in_order}",
            batch_rows=most,
            chunks=work.chunks,
        )
        started = time.perf_counter()
        calls = model_calls(embedder, unsettled, most)
        for embedded in embed_stream(embedder, calls, texts_of):
            batch, errors = embedded.item, embedded.errors
            good = np.array([error is None for error in errors])
            hashes = batch["content_hash"].cast(CONTENT_HASH_TYPE).filter(pa.array(good))
            self._cache.put(space, hashes, embedded.batch.vectors[good])
            work.database.insert("settled", batch.select(_CHUNKS.names))
            self._note_failures(work, batch, errors)
            parts = _by_partition(batch)
            for partition, rows in parts:
                own = rows[good[rows]]
                numbers = work.numbers[partition]
                numbers.embedded += len(own)
                numbers.tokens += int(embedded.batch.tokens[own].sum())
                numbers.tokens_truncated += int(embedded.batch.truncated_tokens[own].sum())
                numbers.dollars += embedder.dollars(int(embedded.batch.tokens[rows].sum()))
            embedded_rows = batch.filter(pa.array(good))
            yield from _vectors_by_partition(embedded_rows, embedded.batch.vectors[good])
            seconds = time.perf_counter() - started
            for partition, rows in parts:
                work.numbers[partition].seconds_embedding += seconds * len(rows) / len(batch)
            errors_now = len(batch) - int(np.count_nonzero(good))
            work.progress.advance(len(batch), embedded=len(batch) - errors_now, errors=errors_now)
            started = time.perf_counter()

    def _note_failures(
        self, work: "_Work", batch: pa.RecordBatch, errors: Sequence[tuple[str, str] | None]
    ) -> None:
        failed = [
            (partition, chunk, *error)
            for partition, chunk, error in zip(
                batch["partition"].to_pylist(), batch["chunk_id"].to_pylist(), errors, strict=True
            )
            if error is not None
        ]
        if not failed:
            return
        for partition, _, reason, why in failed:
            numbers = work.numbers[partition]
            numbers.errors += 1
            if len(numbers.error_examples) < _ERROR_EXAMPLES:
                numbers.error_examples.append(f"{reason}: {why}")
        work.database.insert("failed", to_arrow(failed, _FAILED))

    def _write_quarantine(self, database: Scratch, place: "_Place") -> None:
        key = embeddings_quarantine_key(self._collection, place.partition)
        (failures,) = database.row(
            "SELECT count(*) FROM failed WHERE partition = $partition", partition=place.partition
        )
        if not failures and not self._artifacts.exists(key):
            return
        database.create("known", QUARANTINE)
        if self._artifacts.exists(key):
            with self._artifacts.reading(key) as previous:
                database.execute("INSERT INTO known FROM read_parquet($p)", p=str(previous))
        documents = documents_key(self._collection, place.partition)
        with (
            self._artifacts.writing(key) as path,
            self._artifacts.reading(documents) as documents,
        ):
            write_parquet(
                path,
                QUARANTINE,
                database.stream(
                    """
                    SELECT failed.reason, c.document_id, d.file, d.line,
                           'chunk ' || c.chunk_number || ': ' || failed.detail AS detail,
                           1 + coalesce((SELECT max(attempts) FROM known
                               WHERE known.document_id = c.document_id), 0) AS attempts
                    FROM failed JOIN read_parquet($chunks) f USING (chunk_id)
                    JOIN read_parquet($chunks) c ON c.content_hash = f.content_hash
                    LEFT JOIN read_parquet($documents) d ON d.id = c.document_id
                    WHERE failed.partition = $partition
                    ORDER BY c.document_id, c.chunk_number
                    """,
                    partition=place.partition,
                    chunks=place.chunks,
                    documents=str(documents),
                ),
            )


@dataclass(frozen=True)
class _Place:
    """A partition, and where its plan and chunks can be read."""

    partition: str
    plan: str
    chunks: str

    @cached_property
    def distinct_chunks(self) -> int:
        return pq.read_metadata(self.plan).num_rows

    @cached_property
    def chunk_count(self) -> int:
        return pq.read_metadata(self.chunks).num_rows

    def size(self) -> int:
        return uncompressed_bytes(self.chunks)


@dataclass(frozen=True)
class _Work:
    """What a group of partitions needs: a database, files, what is counted, and who is told."""

    database: Scratch
    places: list[_Place]
    numbers: dict[str, EmbeddingNumbers]
    progress: Progress

    @property
    def plans(self) -> list[str]:
        return [place.plan for place in self.places]

    @property
    def chunks(self) -> list[str]:
        return [place.chunks for place in self.places]


_ALL_PLANS, _ALL_CHUNKS = with_partition("plan"), with_partition("chunks")
_CHUNKS = pa.schema([(name, pa.string()) for name in ("partition", "chunk_id")])
_FAILED = pa.schema([*_CHUNKS, ("reason", pa.string()), ("detail", pa.string())])


def _forget_missing(database: Scratch) -> None:
    """Empties the tables of chunks that the cache lacked, and of those that were tried since."""
    for table in ("missing", "settled"):
        database.create(table, _CHUNKS)


def _by_partition(batch: pa.RecordBatch) -> list[tuple[str, np.ndarray]]:
    """The partitions of a batch, and the numbers of their rows in it."""
    encoded = batch["partition"].dictionary_encode()
    codes = encoded.indices.to_numpy()
    return [
        (partition, np.flatnonzero(codes == code))
        for code, partition in enumerate(encoded.dictionary.to_pylist())
    ]


def _vectors_by_partition(batch: pa.RecordBatch, vectors: np.ndarray) -> Iterator[_Vectors]:
    """Args:
    batch: n rows with a partition and a content hash.
    vectors: shape (n, dimension), float32.
    """
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
