"""Dagster's launcher of local runs, which also notices that a run's process is gone."""

import dagster as dg
import psutil
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus

from resources.dagster_instance.dead_runs import end_dead_runs, is_worked_on


class WatchedRunLauncher(DefaultRunLauncher):
    """For runs on the machine of the daemon.

    A code server reports it when one of its runs is killed. When it is killed with them, as at a
    power loss, nobody does: the run stays "started", and its backfill waits, until
    `max_runtime_seconds` are over. With this launcher Dagster's run monitoring looks whether the
    run's process tells that it is at work, or else at the process that the run's events name.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        worked_on = is_worked_on(self._instance, run.run_id)
        if worked_on is False:
            end_dead_runs(self._instance)  # it may have come to its end; monitoring looks again
        if worked_on is not None:
            status = WorkerStatus.RUNNING if worked_on else WorkerStatus.FAILED
            return CheckRunHealthResult(status, "" if worked_on else "its process was killed")
        found = self._process(run.run_id)
        if found is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "its process is not known yet")
        process, seen = found
        try:
            there = psutil.Process(process)
            # A process that began later than the event has only got the same number; a dead one
            # keeps it until somebody asks what became of it, which in a container may be never.
            alive = there.create_time() <= seen and there.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            alive = False
        if alive:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, f"process {process} is gone")

    def _process(self, run_id: str) -> tuple[int, float] | None:
        """The run's process, and when it was last heard of."""
        records = self._instance.get_records_for_run(
            run_id, of_type=dg.DagsterEventType.ENGINE_EVENT
        ).records
        for record in reversed(records):
            event = record.event_log_entry.dagster_event
            pid = event and event.engine_event_data.metadata.get("pid")
            if pid is not None:
                return int(str(pid.value)), record.event_log_entry.timestamp
        return None
