from pathlib import Path

import pytest

_LONGEST = ("test_user_journey", "test_snapshots", "test_kill", "test_browser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests begin first: at the end, one core would wait for another."""
    items.sort(key=lambda item: not item.nodeid.startswith(tuple(f"tests/{n}" for n in _LONGEST)))


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for compiled models, so that the default model is compiled once."""
    return tmp_path_factory.mktemp("models")
