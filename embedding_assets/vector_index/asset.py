"""Asset `vector_index`: replace the partition's rows in the vector store, in one commit."""

from contextlib import ExitStack
from operator import itemgetter

import dagster as dg

from embedding_assets.artifacts.schemas import ROW_COLUMNS
from embedding_assets.artifacts.scratch import scratch
from embedding_assets.collection.collection import CollectionAssets, CollectionResources
from embedding_assets.collection.table_metadata import ROW_COUNT, TABLE_NAME, table_metadata
from embedding_assets.runs.progress import Progress
from embedding_assets.runs.range_run import RangeRun
from embedding_assets.vector_index.checks import IndexChecks
from embedding_assets.vector_index.update import IndexUpdate, replace_rows
from resources.vector_stores.base import row_schema


def vector_index_asset(
    collection: CollectionAssets, declared: CollectionResources
) -> dg.AssetsDefinition:
    checks = IndexChecks(collection)

    @collection.asset(
        "vector_index",
        after=collection.asset_key("embeddings"),
        description="The searchable index: one row a chunk, one table for each embedding "
        "space. New and changed rows go in, those of deleted documents go out. Search it with "
        + collection.command('search "…" --collection')
        + ".",
        kinds={declared.store.kind},
        metadata={
            **table_metadata(row_schema(None), ROW_COLUMNS, declared.store.address),
            "report": dg.MetadataValue.asset(collection.asset_key("report")),
        },
        check_specs=checks.specs,
    )
    def vector_index(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        resources = collection.resources(context)
        spaces = [embedder.space for embedder in resources.embedders]
        with RangeRun(context, itemgetter("rows"), ("rows_written",)) as run, ExitStack() as stack:
            updates = [
                IndexUpdate(collection, resources, rank, stack.enter_context(scratch()))
                for rank in range(len(spaces))
            ]
            same = {
                "embedding_space": spaces[0].id,
                TABLE_NAME: resources.store.table_name(collection.name, spaces[0]),
            }
            progress = stack.enter_context(
                Progress(context.log, "partitions indexed", len(run.partitions))
            )
            with progress.doing("finding the rows that are there"):
                for update in updates:
                    update.begin(run.partitions)
            with progress.doing("writing rows"):
                for group in updates[0].groups():
                    replaced = replace_rows(updates, group)
                    written = sum(own.rows_written for own in replaced.values())
                    progress.advance(len(group), rows_written=written)
                    run.record({p: {**own.metadata(), **same} for p, own in replaced.items()})
            with progress.doing("maintaining the search index, removing old versions"):
                for space in spaces:
                    resources.store.maintain(collection.name, space)
            with progress.doing("reading the rows back"):
                integrity = [update.repair() for update in updates]
                completeness = [update.completeness() for update in updates]
            with progress.doing("running the checks"):
                rows = [resources.store.count(collection.name, space) for space in spaces]
                results = checks.results(context, resources, integrity, completeness, rows)
            progress.finish()
        # With each partition, however many: the page of the asset shows one of them, whichever.
        return dg.MaterializeResult(metadata={ROW_COUNT: sum(rows)}, check_results=results)

    return vector_index
