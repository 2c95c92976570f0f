"""The one Definitions object of a project: what stands under its `defs/`, and what it has once."""

from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    from embedding_assets.project import project_definitions
    from resources.garbage_collection import collect_garbage_rarely

    collect_garbage_rarely()
    return dg.Definitions.merge(project_definitions(), shared_definitions())


def shared_definitions(around: Path | None = None) -> dg.Definitions:
    """What a project has once, whatever its collections, for `dg.Definitions.merge` in another one.

    Its sensor tells somebody about failed runs. Its executor lets the steps of a run share one
    process, so that a model is loaded once; runs are the unit of parallelism.

    Args:
        around: a path within the project; by default the working directory.
    """
    from embedding_assets.automation.failure_sensor import failure_sensor
    from embedding_assets.collection.environment import read_environment
    from embedding_assets.collection.resources import shared_resources
    from resources.dagster_instance.executor import one_process_executor

    return dg.Definitions(
        resources=shared_resources(read_environment(around)),
        sensors=[failure_sensor()],
        executor=one_process_executor,
    )
