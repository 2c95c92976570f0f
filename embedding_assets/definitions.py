"""The one Definitions object: every collection under `defs/`, benchmarks, and what they share."""

from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    from benchmarks.assets import benchmark_definitions
    from embedding_assets.automation.failure_sensor import failure_sensor
    from embedding_assets.component import data_dir, shared_resources

    return dg.Definitions.merge(
        dg.load_from_defs_folder(path_within_project=Path(__file__).parent),
        benchmark_definitions(model_cache=str(data_dir() / "models")),
        # Steps of a run share one process, so that a model is loaded once; runs are the unit of
        # parallelism.
        dg.Definitions(
            resources=shared_resources(),
            sensors=[failure_sensor()],
            executor=dg.in_process_executor,
        ),
    )
