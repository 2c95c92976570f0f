"""Asset `deduplicated_chunks`: split, hash, remove duplicates, and plan against the cache."""

from operator import itemgetter

import dagster as dg

from embedding_assets.artifacts.schemas import CHUNK_COLUMNS, CHUNKS
from embedding_assets.artifacts.scratch import scratch
from embedding_assets.collection.collection import CollectionAssets, CollectionResources
from embedding_assets.collection.table_metadata import table_metadata
from embedding_assets.deduplicated_chunks.cache_lookup import Planner
from embedding_assets.deduplicated_chunks.chunks import Splitter, split_partition
from embedding_assets.runs.progress import Progress
from embedding_assets.runs.range_run import RangeRun


def deduplicated_chunks_asset(
    collection: CollectionAssets, declared: CollectionResources
) -> dg.AssetsDefinition:
    @collection.asset(
        "deduplicated_chunks",
        after=collection.asset_key("documents"),
        description="Chunks of the documents, their content hashes, and which of them the "
        "cache already holds a vector for.",
        kinds={"parquet", declared.cache.kind},
        metadata=table_metadata(
            CHUNKS, CHUNK_COLUMNS, collection.address("deduplicated_chunks", declared)
        ),
    )
    def deduplicated_chunks(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        resources = collection.resources(context)
        # What really was cached and embedded is told by `embeddings`, for each partition.
        with (
            RangeRun(context, itemgetter("chunks"), ()) as run,
            scratch() as database,
            Progress(context.log, "documents", partitions=len(run.partitions)) as progress,
        ):
            with progress.doing("loading the tokenizer"):
                splitter = Splitter(
                    collection.name, collection.settings.chunking, resources.embedder
                )
                planner = Planner(
                    collection.name,
                    resources.embedder.space,
                    resources.artifacts,
                    resources.cache,
                    database,
                    run.record,
                )
            for partition in run.partitions:
                numbers = split_partition(
                    splitter, resources.artifacts, database, partition, progress
                )
                planner.add(partition, numbers)
            with progress.doing("asking the cache"):
                planner.flush()
            progress.finish()
        return dg.MaterializeResult()

    return deduplicated_chunks
