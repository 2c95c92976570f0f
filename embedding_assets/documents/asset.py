"""Asset `documents`: read the source, validate, quarantine, and keep what is in the partition."""

from operator import itemgetter

import dagster as dg
from pydantic import Field

from embedding_assets.artifacts.schemas import DOCUMENT_COLUMNS, DOCUMENTS
from embedding_assets.collection.collection import CollectionAssets, CollectionResources
from embedding_assets.collection.table_metadata import table_metadata
from embedding_assets.documents.checks import DocumentChecks, refused_metadata
from embedding_assets.documents.ingest import Ingest
from embedding_assets.documents.numbers import ESSENTIAL
from embedding_assets.documents.source_asset import observation
from embedding_assets.runs.range_run import RangeRun
from embedding_assets.runs.refusals import warn_of_refusals


class DocumentsConfig(dg.Config):
    """What one run may do differently."""

    accept_deletions: bool = Field(
        default=False,
        description="Remove every document that the source no longer has, however many they are: "
        "whoever sets this agrees to the deletions that a run withholds.",
    )


def documents_asset(
    collection: CollectionAssets, declared: CollectionResources
) -> dg.AssetsDefinition:
    checks = DocumentChecks(collection)

    @collection.asset(
        "documents",
        after=collection.source_asset_key,
        description="The validated documents of the partition; what was refused is in the "
        f"quarantine, with its reason and position: {collection.command('quarantine')}.",
        kinds={"parquet"},
        metadata=table_metadata(
            DOCUMENTS, DOCUMENT_COLUMNS, collection.address("documents", declared)
        ),
        check_specs=checks.specs,
    )
    def documents(
        context: dg.AssetExecutionContext, config: DocumentsConfig
    ) -> dg.MaterializeResult:
        resources = collection.resources(context)
        with RangeRun(context, itemgetter("documents"), ESSENTIAL) as run:
            ingest = Ingest(
                collection,
                resources.source,
                resources.artifacts,
                run.partitions,
                run.record,
                context.log,
                config.accept_deletions,
            )
            ingested = ingest.run()
            if ingested.source is not None:
                context.log_event(observation(collection, ingested.source))
            warn_of_refusals(context.log, collection.name, ingested.reasons)
        return dg.MaterializeResult(
            metadata=run.of_all_partitions(refused_metadata(ingested)),
            check_results=checks.results(ingested),
        )

    return documents
