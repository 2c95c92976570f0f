import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from resources.machine import machine
from tests.support.project import Project
from tests.support.redis_server import RedisServer, running_redis


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """One more than there are cores: some tests wait, for a lock or for a process to die."""
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else machine().cores + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests begin first: at the end, one core would wait for another."""
    first = ("tests/journeys/test_pages_run", "tests/journeys/test_wheel", "tests/journeys/")
    items.sort(key=lambda item: [not item.nodeid.startswith(begin) for begin in first])


@pytest.fixture(autouse=True)
def _no_home(  # pyright: ignore[reportUnusedFunction]
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing is written into the checkout's own, unless a test names another home."""
    if "DAGSTER_HOME" not in os.environ:  # as a fixture of a module may have set it
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path_factory.getbasetemp() / "no_home"))


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for compiled models, so that all of the suite compiles the default model once.

    TEST_MODELS names a folder that stays: who runs single files again and again need not wait.
    """
    if kept := os.environ.get("TEST_MODELS"):
        return Path(kept)
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # each worker has a folder of its own in there
    models = root / "models"
    models.mkdir(exist_ok=True)
    return models


@pytest.fixture(scope="session")
def _running_redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def redis_server(_running_redis: RedisServer) -> RedisServer:
    """An empty server, which is not to be killed, stalled or filled."""
    _running_redis.client().flushall()
    return _running_redis


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A Dagster project without a collection, which commands take for theirs."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("EMBEDDING_PROJECT", str(tmp_path))
    return Project(tmp_path)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The warnings of resources."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Keep(logging.WARNING)
    logger = logging.getLogger("resources")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)
