"""Dagster's storage in SQLite, in which a range run plans each of its checks once."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import Field, StringSource
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationPlanned,
)
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._record import copy
from dagster._serdes import ConfigurableClassData


class RangeRunSqliteStorage(DagsterSqliteStorage):
    """What Dagster uses by default, in the same files, but for what it notes of planned checks.

    Dagster notes for each partition of a run that each check is planned, 1.5 kB each time, though
    checks like ours, which look at a run as a whole, give one result; the notes stay "planned" for
    ever. With seven checks they were a quarter of what a small partition takes. Here such a check
    is planned once a run, and its result takes the place of the plan.

    Args:
        base_dir: the folder; by default that of the environment variable DAGSTER_HOME.
        inst_data: where Dagster found this class.
    """

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(base_dir, inst_data)
        self._event_log_storage.dispose()
        self._event_log_storage = _EventLogStorage(str(Path(base_dir) / "history" / "runs"))

    @classmethod
    def config_type(cls) -> dict[str, Field]:
        return {"base_dir": Field(StringSource, is_required=False)}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "RangeRunSqliteStorage":
        base_dir = config_value.get("base_dir") or os.environ.get("DAGSTER_HOME")
        if not base_dir:
            raise dg.DagsterInvalidConfigError(
                "Set the environment variable DAGSTER_HOME to the folder of this dagster.yaml, or "
                "`base_dir` below `storage: custom: config:`.",
                [],
                config_value,
            )
        return cls.from_local(str(Path(base_dir).expanduser()), inst_data)


class _EventLogStorage(SqliteEventLogStorage):
    def store_asset_check_event(self, event: EventLogEntry, event_id: int | None) -> None:
        planned = event.dagster_event and event.dagster_event.event_specific_data
        if isinstance(planned, AssetCheckEvaluationPlanned) and event.dagster_event:
            once = copy(planned, partitions_subset=None)
            event = event._replace(
                dagster_event=event.dagster_event._replace(event_specific_data=once)
            )
        super().store_asset_check_event(event, event_id)
