"""Dagster assets that keep a vector index of a document archive up to date, and its Python API."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedding_assets.api import Collection, collections, open, search
    from embedding_assets.collection.collection import CollectionResources
    from embedding_assets.collection.settings import CollectionSettings
    from embedding_assets.component import EmbeddingCollection
    from resources.errors import EmbeddingAssetsError

__all__ = [
    "Collection",
    "CollectionResources",
    "CollectionSettings",
    "EmbeddingAssetsError",
    "EmbeddingCollection",
    "collections",
    "open",
    "search",
]

# The API and the component bring pyarrow, DuckDB and more along, half of what `import dagster`
# costs: not for whoever only imports the package.
_MODULES = {
    "Collection": "embedding_assets.api",
    "CollectionResources": "embedding_assets.collection.collection",
    "CollectionSettings": "embedding_assets.collection.settings",
    "EmbeddingAssetsError": "resources.errors",
    "EmbeddingCollection": "embedding_assets.component",
    "collections": "embedding_assets.api",
    "open": "embedding_assets.api",
    "search": "embedding_assets.api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
