"""Imports libraries without those of their parts that a user of this project would not want."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any, cast

from pydantic import BaseModel, ConfigDict

_REST_CLIENT = "lance_namespace_urllib3_client"
_TELEMETRY = "openvino_telemetry"


def import_lancedb() -> ModuleType:
    """LanceDB without a REST client that it loads and a store in a folder never calls.

    It takes the types of its requests from the client's package, whose `__init__` also loads 360
    methods, and pydantic makes a validator for each: half of the time of `import lancedb`. For the
    types themselves it makes them once they are used.
    """
    if "lancedb" in sys.modules:
        return sys.modules["lancedb"]
    _put_off(_REST_CLIENT)
    with _validators_when_used():
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
