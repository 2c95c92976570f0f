"""What runs a collection without anybody's hand: its job, schedule and sensors.

Each is of the kind that does its work best: the schedule knows the clock, the source sensor the
files, the reconcile sensor what all of it should add up to. The report, which is not partitioned
and depends on nothing but other assets, has an automation condition. For the four partitioned
assets one would weigh each partition at each tick, see no files, and request a run for each stage
rather than one for all.
"""

from dataclasses import dataclass

import dagster as dg

from embedding_assets.artifacts.withheld import accepting_job
from embedding_assets.automation.reconcile_sensor import reconcile_sensor
from embedding_assets.automation.run_requests import AssetJob
from embedding_assets.automation.schedule import partition_schedule
from embedding_assets.automation.source_sensor import source_sensor
from embedding_assets.collection.collection import CollectionAssets

_SECONDS_BETWEEN_LOOKS = 300


@dataclass(frozen=True)
class Automation:
    """What starts the runs of a collection."""

    jobs: list[AssetJob]
    schedules: list[dg.ScheduleDefinition]
    sensors: list[dg.SensorDefinition]


def automation(collection: CollectionAssets) -> Automation:
    """The jobs over all assets of a collection, and what starts the first of them."""
    job = dg.define_asset_job(
        f"{collection.name}_update",
        selection=[collection.asset_key(asset) for asset in collection.ASSETS],
        description="All four assets, over some partitions.",
    )
    accepting = dg.define_asset_job(
        accepting_job(collection.name),
        selection=[collection.asset_key(asset) for asset in collection.ASSETS],
        config={
            "ops": {
                collection.asset_key("documents").to_python_identifier(): {
                    "config": {"accept_deletions": True}
                }
            }
        },
        description="All four assets, over some partitions, and every document goes that the "
        "source no longer has: whoever starts it agrees to the deletions that are withheld.",
    )
    return Automation(
        [job, accepting],
        [partition_schedule(collection, job)],
        [source_sensor(collection, job), reconcile_sensor(collection, job), _report(collection)],
    )


def _report(collection: CollectionAssets) -> dg.SensorDefinition:
    """Requests the report when its automation condition says that it is due."""
    return dg.AutomationConditionSensorDefinition(
        f"{collection.name}_report",
        target=dg.AssetSelection.assets(collection.asset_key("report")),
        minimum_interval_seconds=_SECONDS_BETWEEN_LOOKS,
        default_status=collection.settings.automation.default_sensor_status,
        description="Requests the report once a week, if there was a run since the last one.",
    )
