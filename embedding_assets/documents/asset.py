"""Asset `documents`: read the source, validate, quarantine, and keep what is in the partition."""

import dagster as dg

from embedding_assets.collection.collection import Collection
from embedding_assets.documents.checks import DocumentChecks
from embedding_assets.documents.ingest import Ingest
from embedding_assets.documents.numbers import ESSENTIAL
from embedding_assets.runs.range_run import RangeRun


def documents_asset(collection: Collection) -> dg.AssetsDefinition:
    checks = DocumentChecks(collection)

    @collection.asset(
        "documents",
        description="The validated documents of the partition; what was refused is in the "
        "quarantine, with its reason and position.",
        kinds={"parquet"},
        check_specs=checks.specs,
    )
    def documents(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        resources = collection.resources(context)
        with RangeRun(context, ESSENTIAL) as run:
            ingest = Ingest(
                collection,
                resources.source,
                resources.artifacts,
                run.partitions,
                run.record,
                context.log,
            )
            ingested = ingest.run()
        return dg.MaterializeResult(check_results=checks.results(ingested))

    return documents
