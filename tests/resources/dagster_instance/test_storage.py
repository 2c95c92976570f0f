"""A range run on the project's own dagster.yaml notes each of its checks once."""

import shutil
from pathlib import Path

import dagster as dg
import pytest

from resources.dagster_instance.storage import RangeRunSqliteStorage
from tests.support.dagster_server import PROJECT

DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-02-01")
CHECK = dg.AssetCheckKey(dg.AssetKey("days"), "sound")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(PROJECT / "dagster_home" / "dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path


def executions(instance: dg.DagsterInstance) -> list[tuple[str, str | None]]:
    records = instance.event_log_storage.get_asset_check_execution_history(CHECK, limit=100)
    return [(record.status.value, record.partition) for record in records]


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("passed", [True, False])
def test_a_check_of_a_range_run_is_planned_once_and_then_has_its_result(passed: bool) -> None:
    seen: list[list[tuple[str, str | None]]] = []

    @dg.asset(
        partitions_def=DAYS,
        backfill_policy=dg.BackfillPolicy.single_run(),
        check_specs=[dg.AssetCheckSpec("sound", asset="days")],
    )
    def days(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        seen.append(executions(context.instance))
        return dg.MaterializeResult(check_results=[dg.AssetCheckResult(passed=passed)])

    tags = {
        "dagster/asset_partition_range_start": "2026-01-01",
        "dagster/asset_partition_range_end": "2026-01-31",
    }
    with dg.DagsterInstance.get() as instance:
        assert dg.materialize([days], instance=instance, tags=tags).success
        assert seen == [[("PLANNED", None)]]
        assert executions(instance) == [("SUCCEEDED" if passed else "FAILED", None)]
        assert len(instance.get_materialized_partitions(dg.AssetKey("days"))) == 31


def test_its_files_are_those_of_dagster_itself(home: Path) -> None:
    with dg.DagsterInstance.get() as instance:
        instance.add_run(dg.DagsterRun(job_name="job", run_id="a"))
        instance.report_runless_asset_event(dg.AssetMaterialization("days", partition="2026-01-01"))
    (home / "dagster.yaml").unlink()
    with dg.DagsterInstance.get() as plain:
        assert plain.get_run_by_id("a") is not None
        assert plain.get_materialized_partitions(dg.AssetKey("days")) == {"2026-01-01"}


def test_without_a_folder_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with pytest.raises(dg.DagsterInvalidConfigError, match="Set the environment variable"):
        RangeRunSqliteStorage.from_config_value(None, {})
