"""Who waits for a place in a pool gets it as soon as nobody has it, whatever was missed."""

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from resources.dagster_instance import executor
from tests.support.instance import shipped_instance

POOL = "embedding_device"


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with shipped_instance(tmp_path) as instance:
        instance.event_log_storage.initialize_concurrency_limit_to_default(POOL)
        yield instance


def _claim(instance: dg.DagsterInstance, run_id: str) -> bool:
    return instance.event_log_storage.claim_concurrency_slot(POOL, run_id, "step").is_claimed


def _begin_a_run(instance: dg.DagsterInstance) -> str:
    return instance.add_run(dg.DagsterRun("job", status=dg.DagsterRunStatus.STARTED)).run_id


def _looks_until_it_has_a_place(
    instance: dg.DagsterInstance, run_id: str, monkeypatch: pytest.MonkeyPatch, then: Any = None
) -> int:
    """How often the executor looks; `then` is called before the second look."""
    looks = 0

    def look(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 2 and then is not None:
            then()
        assert looks < 5, "it waits for a place that nobody has"

    monkeypatch.setattr(executor.time, "sleep", look)
    context = SimpleNamespace(instance=instance, run_id=run_id, log=logging.getLogger())
    executor._wait_for_place(context, POOL, "step")
    return looks


def test_a_place_that_becomes_free_while_a_step_comes_to_the_queue_is_taken(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage: Any = instance.event_log_storage
    holder, waiting = _begin_a_run(instance), _begin_a_run(instance)
    assert _claim(instance, holder)
    look = storage.has_unassigned_slots

    def look_before_it_is_free(pool: str) -> bool:
        found = look(pool)
        storage.free_concurrency_slots_for_run(holder)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(storage, "has_unassigned_slots", look_before_it_is_free)
        assert not _claim(instance, waiting)
    assert _looks_until_it_has_a_place(instance, waiting, monkeypatch) == 1
    assert _claim(instance, waiting)


def test_a_place_whose_last_holder_was_killed_before_it_called_the_next_is_taken(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage: Any = instance.event_log_storage
    holder, waiting = _begin_a_run(instance), _begin_a_run(instance)
    assert _claim(instance, holder)
    assert not _claim(instance, waiting)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "assign_pending_steps", lambda _: None)
        storage.free_concurrency_slots_for_run(holder)
    assert _looks_until_it_has_a_place(instance, waiting, monkeypatch) == 1
    assert _claim(instance, waiting)


def test_of_two_that_are_called_for_one_place_the_second_waits_for_the_first(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage: Any = instance.event_log_storage
    first, second = _begin_a_run(instance), _begin_a_run(instance)
    assert _claim(instance, first)
    assert not _claim(instance, second)
    storage.assign_pending_steps([POOL])
    assert not _claim(instance, second)

    def ends() -> None:
        storage.free_concurrency_slots_for_run(first)

    assert _looks_until_it_has_a_place(instance, second, monkeypatch, then=ends) == 2
    assert _claim(instance, second)
