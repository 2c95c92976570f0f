"""Asset `report`: how the collection's runs went, and what its vectors look like."""

import dagster as dg
from pydantic import Field

from embedding_assets.collection.collection import CollectionAssets
from embedding_assets.operations.report import write_report
from embedding_assets.runs.history import latest_materializations


class ReportConfig(dg.Config):
    """What a run of the report looks at."""

    materializations: int = Field(
        default=5_000,
        ge=1,
        description="How many of the newest materialisations of `embeddings` are looked at.",
    )
    vectors: int = Field(
        default=2_000, ge=3, description="How many vectors the map is made of, chosen at random."
    )


def report_asset(collection: CollectionAssets) -> dg.AssetsDefinition:
    @dg.asset(
        key=collection.asset_key("report"),
        deps=[collection.asset_key("vector_index")],
        # Without one, Dagster's command line refuses to run all assets over a range of partitions.
        backfill_policy=dg.BackfillPolicy.single_run(),
        required_resource_keys=collection.resource_keys,
        **collection.shown(
            "History of the runs, a map of the vectors, nearest neighbours, the slowest partitions "
            "and the commonest reasons of the quarantine. Materialize it when you want to look."
        ),
        kinds={"markdown"},
    )
    def report(context: dg.AssetExecutionContext, config: ReportConfig) -> dg.MaterializeResult:
        resources = collection.resources(context)
        history = latest_materializations(
            context.instance, collection.asset_key("embeddings"), config.materializations
        )
        written = write_report(collection.settings, resources, history, config.vectors)
        return dg.MaterializeResult(
            metadata={
                "report": dg.MetadataValue.md(written.markdown),
                "artifact": written.key,
                **written.numbers,
            }
        )

    return report
