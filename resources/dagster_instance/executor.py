"""Dagster's in-process executor, which here waits for nobody who is dead, and waits idly."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg

from resources.dagster_instance.dead_runs import (
    end_dead_runs,
    free_places_of_finished_runs,
    holders,
    working_on,
)

_LOOK_EVERY_SECONDS = 1.0


_CONFIG: Any = dg.in_process_executor.config_schema  # which `executor` takes, but does not declare


@dg.executor(name="in_process", config_schema=_CONFIG)
def one_process_executor(context: dg.InitExecutorContext) -> dg.Executor:
    """The steps of a run, one after the other in its process: a model is loaded once.

    Dagster frees the place of a killed run in a pool only where its daemon runs, and its executor
    waits for a place at the full speed of a core, without a word. It cannot be done from within an
    asset: a step that waits for a place has not begun.
    """
    create = dg.in_process_executor.executor_creation_fn
    assert create is not None
    return _OneProcessExecutor(create(context))


class _OneProcessExecutor(dg.Executor):
    """The in-process executor, of which a step without a place in its pool waits for one idly."""

    def __init__(self, inner: dg.Executor) -> None:
        self._inner = inner

    @property
    def retries(self) -> Any:
        return self._inner.retries

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        instance: dg.DagsterInstance = plan_context.instance
        with working_on(instance, plan_context.run_id):
            end_dead_runs(instance)
            for event in self._inner.execute(plan_context, execution_plan):
                yield event
                if event.event_type == dg.DagsterEventType.ENGINE_EVENT and event.step_key:
                    pool = event.engine_event_data.metadata.get("pool")
                    if pool is not None:  # the step was refused a place
                        _wait_for_place(plan_context, str(pool.value), event.step_key)


def _wait_for_place(context: Any, pool: str, step_key: str) -> None:
    """Returns when the step, which has asked for a place in the pool, may have it.

    Raises:
        DagsterExecutionInterruptedError: a signal came.
    """
    instance: dg.DagsterInstance = context.instance
    said: list[str] = []
    with _interruptible():
        while True:
            time.sleep(_LOOK_EVERY_SECONDS)  # earlier, Dagster itself would not look again
            end_dead_runs(instance)
            free_places_of_finished_runs(instance, pool)
            info = instance.event_log_storage.get_concurrency_info(pool)
            if not info.slot_count or not any(
                (step.run_id, step.step_key) == (context.run_id, step_key)
                and step.assigned_timestamp is None
                for step in info.pending_steps
            ):
                return
            if (now := holders(instance, pool)) != said:
                said = now
                context.log.info(
                    f"{step_key} waits for a place in the pool '{pool}' (limit "
                    f"{info.slot_count}), which has: {'. And: '.join(said)}."
                )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Dagster, which looks at signals between steps only, would notice none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise dg.DagsterExecutionInterruptedError

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
