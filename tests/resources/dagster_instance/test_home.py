"""A new DAGSTER_HOME is made by one process, whoever opens it at the same time or dies over it."""

import multiprocessing
import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage

from resources.dagster_instance.home import NEW_HOME, SharedHomeInstance, open_home
from resources.errors import InvalidInputError
from tests.support.checkout import PROJECT
from tests.support.instance import dagster_home, shipped_instance

_SPAWN = multiprocessing.get_context("spawn")
_STEPS: dict[str, tuple[Any, str]] = {
    "runs": (sqlite_run_storage, "stamp_alembic_rev"),
    "events": (sqlite_event_log.SqliteEventLogStorage, "reindex_events"),
    "schedules": (sqlite_schedule_storage, "stamp_alembic_rev"),
}
"""In the middle of making each of the three databases."""


def _use(home: Path, together: Callable[[], object] = lambda: None) -> None:
    together()
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert isinstance(instance, SharedHomeInstance)
        assert instance.get_runs_count() == 0
        assert not instance.all_instigator_state()
        assert instance.get_latest_materialization_event(dg.AssetKey("a")) is None


def _die_over(home: Path, step: str) -> None:
    where, name = _STEPS[step]
    setattr(where, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    _use(home)


def _process(target: Callable[..., None], *arguments: Any) -> Any:
    process = _SPAWN.Process(target=target, args=arguments)
    process.start()
    return process


def _contents(home: Path) -> dict[str, Any]:
    """Tables, version of the schema and finished migrations, by database."""
    found = {}
    for file in sorted(home.rglob("*.db")):
        with sqlite3.connect(file) as database:
            tables = database.execute("SELECT sql FROM sqlite_master ORDER BY 1").fetchall()
            version = database.execute("SELECT * FROM alembic_version").fetchall()
            names = [name for (name,) in database.execute("SELECT name FROM sqlite_master")]
            migrated = []
            if "secondary_indexes" in names:
                migrated = database.execute(
                    "SELECT name FROM secondary_indexes ORDER BY 1"
                ).fetchall()
        database.close()
        found[str(file.relative_to(home))] = (tables, version, migrated)
    return found


def test_several_processes_may_open_a_new_home_at_once(tmp_path: Path) -> None:
    home = dagster_home(tmp_path / "home")
    barrier = _SPAWN.Barrier(3)
    processes = [_process(_use, home, barrier.wait) for _ in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    _use(home)
    alone = dagster_home(tmp_path / "alone")
    _use(alone)
    assert _contents(home) == _contents(alone)


@pytest.mark.slow
def test_a_home_whose_maker_was_killed_is_made_anew(tmp_path: Path) -> None:
    whole = dagster_home(tmp_path / "whole")
    _use(whole)
    homes = {step: dagster_home(tmp_path / step) for step in _STEPS}
    killed = {step: _process(_die_over, home, step) for step, home in homes.items()}
    for step, process in killed.items():
        process.join()
        assert process.exitcode == -signal.SIGKILL
        _use(homes[step])
        assert _contents(homes[step]) == _contents(whole)


def test_a_home_that_was_in_use_before_stays_as_it_is(tmp_path: Path) -> None:
    DagsterSqliteStorage.from_local(str(tmp_path / "home")).dispose()
    with shipped_instance(tmp_path / "home") as instance:
        instance.add_dynamic_partitions("kept", ["a"])
    with shipped_instance(tmp_path / "home") as instance:
        assert instance.get_dynamic_partitions("kept") == ["a"]


def test_the_storage_of_dagster_yaml_wins(tmp_path: Path) -> None:
    home = dagster_home(tmp_path / "home")
    with (home / "dagster.yaml").open("a") as file:
        file.write(f"storage: {{sqlite: {{base_dir: {tmp_path}/elsewhere}}}}\n")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert instance.get_runs_count() == 0
    assert (tmp_path / "elsewhere/history/runs.db").exists()
    assert not (home / "history/runs.db").exists()


def test_a_home_that_is_made_has_what_matters_of_the_one_that_ships(tmp_path: Path) -> None:
    shipped = yaml.safe_load((PROJECT / "dagster_home" / "dagster.yaml").read_text())
    assert shipped | yaml.safe_load(NEW_HOME) == shipped
    with open_home(tmp_path / "home") as instance:
        assert isinstance(instance, SharedHomeInstance)
        assert not instance.telemetry_enabled
    with pytest.raises(InvalidInputError, match="absolute path"):
        open_home(Path("home"))
