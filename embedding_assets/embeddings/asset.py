"""Asset `embeddings`: one vector for each distinct content hash, from the cache or the model."""

import logging

import dagster as dg

from embedding_assets.artifacts.schemas import VECTOR_COLUMNS, VECTORS
from embedding_assets.artifacts.scratch import scratch
from embedding_assets.collection.collection import CollectionAssets, CollectionResources
from embedding_assets.collection.table_metadata import table_metadata
from embedding_assets.embeddings.canaries import Canaries, SpaceDriftError
from embedding_assets.embeddings.checks import EmbeddingChecks
from embedding_assets.embeddings.failures import reasons_of
from embedding_assets.embeddings.job import EmbeddingJob
from embedding_assets.embeddings.numbers import ESSENTIAL, EmbeddingNumbers, rows
from embedding_assets.embeddings.providers import Providers
from embedding_assets.runs.memory import peak_memory_mb
from embedding_assets.runs.progress import Progress
from embedding_assets.runs.range_run import RangeRun
from embedding_assets.runs.refusals import refusals_table, warn_of_refusals


def embeddings_asset(
    collection: CollectionAssets, declared: CollectionResources
) -> dg.AssetsDefinition:
    checks = EmbeddingChecks(collection)

    @collection.asset(
        "embeddings",
        after=collection.asset_key("deduplicated_chunks"),
        description="One vector for each distinct chunk: from the cache, or from the model "
        "and then into the cache, flush by flush. Chunks that were refused: "
        f"{collection.command('quarantine')}.",
        kinds={"parquet", declared.cache.kind, *declared.embedder_kinds},
        metadata=table_metadata(
            VECTORS, VECTOR_COLUMNS, collection.address("embeddings", declared)
        ),
        check_specs=checks.specs,
    )
    def embeddings(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        resources = collection.resources(context)
        providers = _providers(collection, resources, context.log)
        job = EmbeddingJob(
            collection.name,
            providers,
            resources.cache,
            resources.artifacts,
            collection.settings.embedder.flush_size,
        )
        total, refusing = EmbeddingNumbers(), list[str]()
        with (
            RangeRun(context, rows, ESSENTIAL) as run,
            scratch() as database,
            Progress(context.log, "chunks", partitions=len(run.partitions)) as progress,
        ):
            try:
                for numbers in job.run(run.partitions, database, progress):
                    same = _about_the_model(resources)
                    for own in numbers.values():
                        total.add(own)
                    refusing += [p for p, own in numbers.items() if own.texts_refused]
                    run.record({p: {**own.metadata(), **same} for p, own in numbers.items()})
            except SpaceDriftError as drift:
                context.log_event(checks.drifted(drift))  # pyright: ignore[reportArgumentType]
                raise
            progress.finish()
        context.log.info(total.summary())
        reasons = reasons_of(resources.artifacts, collection.name, refusing)
        warn_of_refusals(context.log, collection.name, reasons)
        used = {**resources.embedder.statistics(), **resources.cache.faults()}
        if used:
            context.log.info(", ".join(f"{name}: {value:,.4g}" for name, value in used.items()))
        results = checks.results(total, used, providers.canaries, context.instance)
        return dg.MaterializeResult(
            metadata=run.of_all_partitions(refusals_table(reasons)), check_results=results
        )

    return embeddings


def _providers(
    collection: CollectionAssets, resources: CollectionResources, log: logging.Logger
) -> Providers:
    return Providers(
        resources.embedder,
        resources.fallback,
        collection.settings.fallback,
        Canaries(resources.artifacts, resources.cache),
        log,
    )


def _about_the_model(resources: CollectionResources) -> dict[str, str | float]:
    """What is the same for all partitions that were embedded together."""
    embedder = resources.embedder
    return {
        "peak_memory_mb": peak_memory_mb(),
        "embedding_space": embedder.space.id,
        "model": embedder.space.model,
        "embedder": embedder.describe(),
    }
