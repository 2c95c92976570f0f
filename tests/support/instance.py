"""Dagster instances as they ship: the project's own dagster.yaml, only in another folder."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import yaml

from tests.support.checkout import PROJECT

_SHIPPED = PROJECT / "dagster_home" / "dagster.yaml"


def dagster_home(folder: Path) -> Path:
    """Makes of a folder what DAGSTER_HOME may name."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(_SHIPPED, folder)
    return folder


@contextmanager
def shipped_instance(folder: Path) -> Iterator[dg.DagsterInstance]:
    """The instance whose folder this is; made if it is not there."""
    with dg.DagsterInstance.from_config(str(dagster_home(folder))) as instance:
        yield instance


def instance_in_memory() -> dg.DagsterInstance:
    """With all that ships (pools, limits, retries), but nothing on disk, which takes seconds."""
    settings = yaml.safe_load(_SHIPPED.read_text())
    del settings["run_launcher"], settings["instance_class"]  # nothing is launched, or on disk
    return dg.DagsterInstance.ephemeral(settings=settings)
