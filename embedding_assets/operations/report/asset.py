"""Asset `report`: what a collection holds, what it is about, and how its runs went."""

import dagster as dg
from pydantic import Field

from embedding_assets.collection.collection import CollectionAssets
from embedding_assets.runs.history import latest_materializations


class ReportConfig(dg.Config):
    """What a run of the report looks at."""

    materializations: int = Field(
        default=5_000,
        ge=1,
        description="How many of the newest materialisations of `embeddings` are looked at.",
    )
    vectors: int = Field(
        default=2_000,
        ge=3,
        le=5_000,  # each is compared with each other one
        description="How many vectors the map is made of, chosen at random.",
    )


_DUE = (
    dg.AutomationCondition.cron_tick_passed("0 6 * * 1").since_last_handled()
    & dg.AutomationCondition.any_deps_updated().since_last_handled()
    & ~dg.AutomationCondition.in_progress()
).with_label("Monday 06:00 UTC has passed, and there was a run since the last report")


def report_asset(collection: CollectionAssets) -> dg.AssetsDefinition:
    def report(context: dg.AssetExecutionContext, config: ReportConfig) -> dg.MaterializeResult:
        from embedding_assets.operations.report.write import write_report  # no other run draws

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

    decorate = dg.asset(
        key=collection.asset_key("report"),
        deps=[collection.asset_key("vector_index")],
        # Without one, Dagster's command line refuses to run all assets over a range of partitions.
        backfill_policy=dg.BackfillPolicy.single_run(),
        required_resource_keys=collection.resource_keys,
        automation_condition=_DUE,
        **collection.shown(
            "A map of the vectors with the words of its clusters, what is near in meaning, "
            "repeated text, sizes and ages, the runs over time, the slowest partitions and what "
            "was refused. Materialize it when you want to look."
        ),
        kinds={"html"},
    )
    return decorate(report)
