"""The one Definitions object: every collection under `defs/`, benchmarks, and what they share."""

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    from benchmarks.assets import benchmark_definitions
    from embedding_assets.automation.failure_sensor import failure_sensor
    from embedding_assets.collection.environment import read_environment
    from embedding_assets.collection.resources import shared_resources
    from resources.dagster_instance.executor import one_process_executor

    environment = read_environment()
    return dg.Definitions.merge(
        dg.load_from_defs_folder(path_within_project=environment.project),
        benchmark_definitions(model_cache=str(environment.models)),
        dg.Definitions(
            resources=shared_resources(environment),
            sensors=[failure_sensor()],
            executor=one_process_executor,
        ),
    )
