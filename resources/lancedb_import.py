"""Imports LanceDB without a REST client that it loads and a store in a folder never calls.

LanceDB takes the types of its requests from `lance_namespace_urllib3_client`. That package's
`__init__` also loads a client of 360 methods, and pydantic makes a validator for each: a third to
a half of the time of `import lancedb`.
"""

import sys
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

_REST_CLIENT = "lance_namespace_urllib3_client"


def import_lancedb() -> ModuleType:
    """The module `lancedb`."""
    if _REST_CLIENT not in sys.modules:
        _put_off(_REST_CLIENT)
    import lancedb

    return lancedb


def _put_off(package: str) -> None:
    """Lets submodules be imported now; the package itself runs when one of its names is wanted."""
    spec = find_spec(package)
    if spec is None or spec.loader is None:
        return
    loader, module = spec.loader, module_from_spec(spec)

    def load_and_get(name: str) -> Any:
        del module.__dict__["__getattr__"]
        loader.exec_module(module)
        return getattr(module, name)

    module.__dict__["__getattr__"] = load_and_get
    sys.modules[package] = module
