"""A sensor that tells somebody about failed runs.

A sensor of Dagster's own kind: it sees every failure, also of runs whose process was killed, while
a hook inside the run would die with it. Running the partition again is the reconcile sensor's work.
"""

from collections.abc import Mapping

import dagster as dg

from resources.notifier import Notifier

_LONGEST = 500


def failure_sensor(*, running: bool = False) -> dg.SensorDefinition:
    """One for the whole project; it needs the resource `notifier`."""

    @dg.run_failure_sensor(
        name="run_failure",
        default_status=dg.DefaultSensorStatus.RUNNING
        if running
        else dg.DefaultSensorStatus.STOPPED,
        description="Tells somebody about each failed run: in the log, or by a webhook.",
    )
    def sensor(context: dg.RunFailureSensorContext, notifier: Notifier) -> dg.SkipReason:
        run = context.dagster_run
        assets = sorted(key.to_user_string() for key in run.asset_selection or ())
        what = ", ".join(assets) or run.job_name
        sent = notifier.notify(
            f"Run {run.run_id[:8]} failed",
            f"{what}, {_partitions(run.tags)}: {context.failure_event.message or ''}"[:_LONGEST],
        )
        return dg.SkipReason(f"Notified about run {run.run_id[:8]}. {sent}")

    return sensor


def _partitions(tags: Mapping[str, str]) -> str:
    if "dagster/partition" in tags:
        return f"partition {tags['dagster/partition']}"
    first = tags.get("dagster/asset_partition_range_start")
    last = tags.get("dagster/asset_partition_range_end")
    return f"partitions {first} to {last}" if first else "no partitions"
