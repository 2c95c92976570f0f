"""Runs whose process is gone hold nothing: no place in a pool, no status of a run under way."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, TextIO

import dagster as dg
from dagster._core.events import JobFailureData

RUN_ENDS = (
    dg.DagsterEventType.RUN_SUCCESS,
    dg.DagsterEventType.RUN_FAILURE,
    dg.DagsterEventType.RUN_CANCELED,
)

Part = Literal["run", "steps"]
"""What a process is at: the run from its start to its end as Dagster notes them, or its steps."""


@dataclass
class _Record:
    """A file that this process holds the lock of, and what for."""

    path: Path
    file: TextIO
    parts: set[Part]


_held: dict[str, _Record] = {}
"""By run."""


def begin_work(instance: dg.DagsterInstance, run_id: str, part: Part) -> None:
    """Lets other processes tell that this one is at work on the run.

    It holds the lock of a file in the instance's folder. The system frees the lock of a process
    that ends, in whatever way, and no process of the same number is taken for it.
    """
    if run_id in _held:
        _held[run_id].parts.add(part)
        return
    path = _folder(instance) / run_id
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
    except OSError:
        path.unlink(missing_ok=True)
        file.close()
        raise
    _held[run_id] = _Record(path, file, {part})


def end_work(run_id: str, part: Part) -> None:
    """Ends what `begin_work` began; the record goes with the last part."""
    if record := _held.get(run_id):
        record.parts.discard(part)
        if not record.parts:
            del _held[run_id]
            record.path.unlink(missing_ok=True)
            record.file.close()


@contextmanager
def working_on(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """While this lasts, other processes can tell that this one is at work on the run's steps."""
    begin_work(instance, run_id, "steps")
    try:
        yield
    finally:
        end_work(run_id, "steps")
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:  # somebody else has ended it, and its end is noted
            end_work(run_id, "run")


def is_worked_on(instance: dg.DagsterInstance, run_id: str) -> bool | None:
    """Whether the run's process lives; None if no process tells so in the instance's folder."""
    try:
        with (_folder(instance) / run_id).open("r+") as record:
            return False if _dead(record) else None
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return True


def end_dead_runs(instance: dg.DagsterInstance) -> None:
    """Reports runs whose process is gone as failed, and frees their places in pools."""
    for path in _folder(instance).glob("*"):
        with suppress(FileNotFoundError, BlockingIOError), path.open("r+") as record:
            if process := _dead(record):
                run = instance.get_run_by_id(path.name)
                if run is not None and not run.is_finished:
                    _note_the_end(instance, run, process)
                instance.event_log_storage.free_concurrency_slots_for_run(path.name)
                path.unlink()  # last: whoever is killed before leaves all this to the next


def _note_the_end(instance: dg.DagsterInstance, run: dg.DagsterRun, process: str) -> None:
    """Gives a dead run the status that it has come to: by its last event, or as killed.

    Dagster stores an event and then the status that follows from it, and the process may be killed
    in between. A failure is reported once more, for whoever retries runs waits for the event.
    """
    ends = instance.get_records_for_run(
        run.run_id, of_type=set(RUN_ENDS), ascending=False, limit=1
    ).records
    event = ends[0].event_log_entry.get_dagster_event() if ends else None
    if event is None or event.is_run_failure:
        why = event.event_specific_data if event else None
        data = why if isinstance(why, JobFailureData) else None
        instance.report_run_failed(run, f"Its process {process} was killed.", data)
        return
    noted = datetime.fromtimestamp(ends[0].event_log_entry.timestamp, timezone.utc)
    instance.run_storage.handle_run_event(run.run_id, event, noted)


def free_places_of_finished_runs(instance: dg.DagsterInstance, pool: str) -> None:
    """Frees what runs that were cancelled or reported as failed still hold."""
    info = instance.event_log_storage.get_concurrency_info(pool)
    for run_id in {place.run_id for place in (*info.claimed_slots, *info.pending_steps)}:
        run = instance.get_run_by_id(run_id)
        if (run is None or run.is_finished) and not is_worked_on(instance, run_id):
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)


def holders(instance: dg.DagsterInstance, pool: str) -> list[str]:
    """For whom one waits, since when, and how to end it; one sentence for each run."""
    places = instance.event_log_storage.get_concurrency_info(pool).claimed_slots
    return [_holder(instance, run_id) for run_id in sorted({place.run_id for place in places})]


def _holder(instance: dg.DagsterInstance, run_id: str) -> str:
    record = instance.get_run_record_by_id(run_id)
    since = ""
    if record is not None and record.start_time is not None:
        since = f" since {datetime.fromtimestamp(record.start_time):%Y-%m-%d %H:%M:%S}"
    with suppress(FileNotFoundError):
        process = (_folder(instance) / run_id).read_text()
        return (
            f"run {run_id}, under way{since} in process {process}; to end it, terminate it in "
            f"Dagster's UI or `kill` that process"
        )
    return (
        f"run {run_id}, under way{since}, of which no process is known on this machine; if it is "
        "gone, terminate the run in Dagster's UI, which frees its place"
    )


def _folder(instance: dg.DagsterInstance) -> Path:
    return Path(instance.root_directory) / "runs_under_way"


def _dead(record: TextIO) -> str:
    """What a record says of a process that is gone; "" if the process begins, or ended in order.

    Raises:
        BlockingIOError: the process lives.
        FileNotFoundError: the process ended in order.
    """
    fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not os.path.samestat(os.fstat(record.fileno()), Path(record.name).stat()):
        return ""
    return record.read()
