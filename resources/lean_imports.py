"""Imports libraries without those of their parts that a user of this project would not want."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec
from threading import Lock
from types import ModuleType
from typing import Any, cast

from pydantic import BaseModel, ConfigDict

_REST_CLIENT = "lance_namespace_urllib3_client"
_TELEMETRY = "openvino_telemetry"
_CHECKS = "overrides"
_one_at_a_time = Lock()


def import_lancedb() -> ModuleType:
    """LanceDB without a REST client that it loads and a store in a folder never calls.

    It takes the types of its requests from the client's package, whose `__init__` also loads 360
    methods, and pydantic makes a validator for each: half of the time of `import lancedb`. For the
    types themselves it makes them once they are used. Nor is checked, before Python 3.12 has a mark
    for it, that each overriding method overrides one: that reads byte code of all of them.
    """
    with _one_at_a_time:
        if "lancedb" in sys.modules:
            return sys.modules["lancedb"]
        _put_off(_REST_CLIENT)
        with _validators_when_used(), _overrides_unchecked():
            import lancedb
        return lancedb


def import_openvino() -> ModuleType:
    """OpenVINO without its telemetry, which it does without if the package is not there.

    Each process that imports it would fork another one that reports to a server: not what somebody
    with an archive of documents expects, nor safe while threads hold locks and files are open.
    """
    sys.modules.setdefault(_TELEMETRY, None)  # pyright: ignore[reportArgumentType]
    import openvino

    return openvino


@contextmanager
def _validators_when_used() -> Iterator[None]:
    """Lets pydantic put off, of models that are made meanwhile, all that they need not yet."""
    before = BaseModel.model_config
    BaseModel.model_config = cast(ConfigDict, {**before, "defer_build": True})
    try:
        yield
    finally:
        BaseModel.model_config = before


@contextmanager
def _overrides_unchecked() -> Iterator[None]:
    """In the place of a package of checks, what LanceDB does without it on Python 3.12."""
    checks = sys.modules.get(_CHECKS)
    stand_in = ModuleType(_CHECKS)
    stand_in.EnforceOverrides = type("EnforceOverrides", (), {})  # pyright: ignore[reportAttributeAccessIssue]
    stand_in.override = lambda method: method  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules[_CHECKS] = stand_in
    try:
        yield
    finally:
        if checks is None:
            del sys.modules[_CHECKS]
        else:
            sys.modules[_CHECKS] = checks


def _put_off(package: str) -> None:
    """Lets submodules be imported now; the package itself runs when one of its names is wanted."""
    spec = None if package in sys.modules else find_spec(package)
    if spec is None or spec.loader is None:
        return
    loader, module = spec.loader, module_from_spec(spec)

    def load_and_get(name: str) -> Any:
        del module.__dict__["__getattr__"]
        loader.exec_module(module)
        return getattr(module, name)

    module.__dict__["__getattr__"] = load_and_get
    sys.modules[package] = module
