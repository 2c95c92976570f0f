"""Dagster's in-process executor, which here waits for nobody who is dead, and waits idly."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster._utils.concurrency import ConcurrencyKeyInfo

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
            if _may_have_a_place(instance, info, context.run_id, step_key):
                return
            if (now := holders(instance, pool)) != said:
                said = now
                context.log.info(
                    f"{step_key} waits for a place in the pool '{pool}' (limit "
                    f"{info.slot_count}), which has: {'. And: '.join(said)}."
                )


def _may_have_a_place(
    instance: dg.DagsterInstance, info: ConcurrencyKeyInfo, run_id: str, step_key: str
) -> bool:
    """Whether a step's turn has come; one that nobody would ever call queues up anew.

    Dagster looks for a place first and queues the step up afterwards, and a place that becomes free
    is given to who is in the queue by then. So a step that comes to the queue just after, or whose
    predecessor was killed before it gave the place on, would wait for a place that nobody has.
    """
    us = (run_id, step_key)
    ours = [step for step in info.pending_steps if (step.run_id, step.step_key) == us]
    if not info.slot_count or not ours:
        return True
    if ours[0].assigned_timestamp is not None:  # two that queue up anew at once may both be called
        has_it = us in [(place.run_id, place.step_key) for place in info.claimed_slots]
        return has_it or len(info.claimed_slots) < info.slot_count
    called = sum(step.assigned_timestamp is not None for step in info.pending_steps)
    if called >= info.slot_count:
        return False
    storage, pool = instance.event_log_storage, info.concurrency_key
    storage.free_concurrency_slot_for_step(run_id, step_key)
    return storage.claim_concurrency_slot(pool, run_id, step_key, ours[0].priority).is_claimed


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
