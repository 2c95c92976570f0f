"""Asset `vector_index`: replace the partition's rows in the vector store, in one commit."""

from contextlib import ExitStack

import dagster as dg

from embedding_assets.artifacts.scratch import scratch
from embedding_assets.collection.collection import Collection
from embedding_assets.collection.partitions import partition_for
from embedding_assets.runs.grouping import group_small
from embedding_assets.runs.progress import Progress
from embedding_assets.runs.range_run import RangeRun
from embedding_assets.vector_index.checks import IndexChecks
from embedding_assets.vector_index.update import IndexUpdate, PartitionFiles, replace_rows


def vector_index_asset(collection: Collection) -> dg.AssetsDefinition:
    checks = IndexChecks(collection)

    @collection.asset(
        "vector_index",
        after="embeddings",
        description="The searchable index: one row a chunk, one table for each embedding "
        "space. New and changed rows go in, those of deleted documents go out.",
        kinds={"lancedb"},
        check_specs=checks.specs,
    )
    def vector_index(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        resources = collection.resources(context)
        spaces = [embedder.space for embedder in resources.embedders]
        with RangeRun(context, essential=("rows_written",)) as run, ExitStack() as stack:
            updates = [
                IndexUpdate(
                    collection.name,
                    spaces,
                    place,
                    resources.artifacts,
                    resources.store,
                    stack.enter_context(scratch()),
                    resources.source.period_of,
                    collection.partitions.get_partition_keys(),
                    partition_for(collection.settings.partitions),
                )
                for place in range(len(spaces))
            ]
            for update in updates:
                update.begin(run.partitions)
            progress = Progress(context.log, "partitions indexed", len(run.partitions))
            first = updates[0]
            for group in group_small(run.partitions, first.opened, PartitionFiles.size):
                replaced = replace_rows(updates, group)
                progress.advance(len(group))
                run.finish(
                    {p: {**own, "embedding_space": spaces[0].id} for p, own in replaced.items()}
                )
            for space in spaces:
                resources.store.maintain(collection.name, space)
            results = checks.results(context, resources, updates)
        return dg.MaterializeResult(check_results=results)

    return vector_index
