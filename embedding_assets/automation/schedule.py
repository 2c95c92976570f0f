"""A schedule for the partition just closed.

A schedule, and neither a sensor nor an automation condition: a period ends by the clock, whether a
file changed or not, and its last run is what the freshness policy waits for.
"""

import dagster as dg

from embedding_assets.automation.run_requests import AssetJob, PartitionRun, partition_runs
from embedding_assets.collection.collection import CollectionAssets
from embedding_assets.collection.partitions import closed_partition

_DAYS = {"day": "* * *", "week": "* * 1", "month": "1 * *", "year": "1 1 *", "bucket": "* * *"}


def partition_schedule(collection: CollectionAssets, job: AssetJob) -> dg.ScheduleDefinition:
    settings = collection.settings

    @dg.schedule(
        name=f"{collection.name}_schedule",
        job=job,
        cron_schedule=f"0 {settings.automation.hour} {_DAYS[settings.partitions.by]}",
        execution_timezone="UTC",
        default_status=settings.automation.default_schedule_status,
        description="Runs the partition just closed; buckets are never closed, so all of them.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        moment = context.scheduled_execution_time
        keys = collection.partitions.get_partition_keys(moment)
        if settings.partitions.by == "bucket":
            runs, _ = partition_runs(keys, keys, settings.partitions_per_run, max_runs=len(keys))
            return [run.request(f"{moment:%Y-%m-%d}", {}) for run in runs]
        closed = closed_partition(settings.partitions, moment)
        if closed not in keys:
            return dg.SkipReason(
                f"Partition {closed} ends before the collection's first one "
                f"({settings.partitions.start}): no partition has closed yet."
            )
        return [PartitionRun([closed]).request("closed", {})]

    return schedule
