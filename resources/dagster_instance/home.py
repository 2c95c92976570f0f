"""Dagster's SQLite files in DAGSTER_HOME, made by one process while the others wait.

Dagster itself lets every process that opens a new home make its tables. Two at once both write them
and the version of their schema; one of them ends with an error, and the home may stay unusable.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage, SqliteStorageConfig
from dagster._serdes import ConfigurableClassData
from filelock import FileLock

from resources.dagster_instance.dead_runs import RUN_ENDS, begin_work, end_work
from resources.errors import InvalidInputError

NEW_HOME = """\
telemetry: {enabled: false}  # nothing about this project leaves the machine
nux: {enabled: false}
python_logs:
  managed_python_loggers: [embedding_assets, resources]
  python_log_level: INFO
concurrency:
  runs: {max_concurrent_runs: 4}
  pools: {default_limit: 1, granularity: op}  # one run at a time uses the device, one the index
instance_class: {module: resources.dagster_instance.home, class: SharedHomeInstance}
run_launcher: {module: resources.dagster_instance.run_launcher, class: WatchedRunLauncher}
"""
"""The dagster.yaml of a project that has none: what matters of the one that ships."""


def open_home(home: Path) -> dg.DagsterInstance:
    """The Dagster instance whose folder this is; a context manager. Made if it is not there.

    Raises:
        InvalidInputError: the path is relative, and so would be another one elsewhere.
    """
    if not home.is_absolute():
        raise InvalidInputError(f"DAGSTER_HOME must be an absolute path, not {str(home)!r}.")
    if not home.exists():
        home.mkdir(parents=True)
        (home / "dagster.yaml").write_text(NEW_HOME)
    return dg.DagsterInstance.from_config(str(home))


class SharedHomeInstance(dg.DagsterInstance):
    """Keeps its SQLite files in a `SharedSqliteStorage`, unless dagster.yaml names a `storage`.

    An instance class, since only its defaults are told where the home is, and only it is told of
    the events of runs before and after they are stored.
    """

    @classmethod
    def config_schema(cls) -> Mapping[str, Any]:
        return {}

    @staticmethod
    def config_defaults(base_dir: str) -> Mapping[str, ConfigurableClassData | None]:
        storage = SharedSqliteStorage
        made = ConfigurableClassData(
            storage.__module__, storage.__name__, yaml.safe_dump({"base_dir": base_dir})
        )
        return {**InstanceRef.config_defaults(base_dir), "storage": made}

    def handle_new_event(self, event: dg.EventLogEntry, **how: Any) -> None:
        """As Dagster's. A record says that the process is at work while the run counts as begun.

        From before its start is noted until its end is: whenever the process is killed, others
        can tell.
        """
        kind = event.dagster_event.event_type if event.dagster_event else None
        if kind is dg.DagsterEventType.RUN_START:
            begin_work(self, event.run_id, "run")
        super().handle_new_event(event, **how)
        if kind in RUN_ENDS:
            end_work(event.run_id, "run")


class SharedSqliteStorage(DagsterSqliteStorage):
    """Dagster's own, opened by one process at a time.

    What a process was killed over is made anew: nobody can have used it.
    """

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        home = Path(base_dir)
        databases = (home / "history/runs.db", home / "history/runs/index.db")
        databases += (home / "schedules/schedules.db",)
        unfinished = home / "history" / "unfinished"
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(unfinished.with_suffix(".lock")):
            if unfinished.exists():
                for database in databases:
                    for file in database.parent.glob(f"{database.name}*"):
                        file.unlink()
            elif not any(database.exists() for database in databases):
                unfinished.touch()
            super().__init__(base_dir, inst_data)
            unfinished.unlink(missing_ok=True)

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: SqliteStorageConfig
    ) -> "SharedSqliteStorage":
        return cls.from_local(inst_data=inst_data, **config_value)
