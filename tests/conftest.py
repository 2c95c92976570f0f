import os
from pathlib import Path

import pytest

_LONGEST = tuple(
    f"tests/journeys/test_{name}.py" for name in ("user_journey", "snapshots", "kill", "browser")
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests begin first: at the end, one core would wait for another."""
    items.sort(key=lambda item: not item.nodeid.startswith(_LONGEST))


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for compiled models, so that all of the suite compiles the default model once."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # each worker has a folder of its own in there
    models = root / "models"
    models.mkdir(exist_ok=True)
    return models
