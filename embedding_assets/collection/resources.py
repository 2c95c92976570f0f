"""Which resources a project and its collections work with, from their settings and environment."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from embedding_assets.collection.collection import CollectionAssets
from embedding_assets.collection.environment import Environment, read_environment
from embedding_assets.collection.settings import CollectionSettings
from resources.artifact_stores.from_url import artifact_store_from_url
from resources.caches.from_url import cache_from_url
from resources.errors import InvalidInputError
from resources.notifier import LogNotifier, WebhookNotifier
from resources.vector_stores.from_url import vector_store_from_url

_Made = TypeVar("_Made")


def shared_resources(environment: Environment | None = None) -> dict[str, Any]:
    """The resources that all collections have in common, by resource key."""
    return _shared_resources(environment or read_environment())


@lru_cache(maxsize=8)  # Dagster merges what several collections bring only if it is the same object
def _shared_resources(environment: Environment) -> dict[str, Any]:
    data, memory = environment.data_dir, environment.cache_memory_mb
    return {
        "artifact_store": _opened(
            "EMBEDDING_ARTIFACTS",
            artifact_store_from_url,
            environment.artifacts or str(data / "artifacts"),
        ),
        "embedding_cache": _opened(
            "EMBEDDING_CACHE",
            lambda url: cache_from_url(url, memory),
            environment.cache or str(data / "cache.duckdb"),
        ),
        "vector_store": _opened(
            "EMBEDDING_VECTORS", vector_store_from_url, environment.vectors or str(data / "vectors")
        ),
        "notifier": WebhookNotifier() if environment.webhook_url else LogNotifier(),
    }


def collection_resources(
    settings: CollectionSettings, environment: Environment | None = None
) -> dict[str, Any]:
    """The resources of one collection, by resource key."""
    environment = environment or read_environment()
    collection = CollectionAssets(settings)
    resources: dict[str, Any] = {
        collection.source_key: settings.source.build(),
        collection.embedder_key: settings.embedder.build(environment.models),
    }
    if settings.fallback:
        resources[collection.fallback_key] = settings.fallback.build(environment.models)
    return resources


def _opened(variable: str, door: Callable[[str], _Made], url: str) -> _Made:
    try:
        return door(url)
    except InvalidInputError as error:
        raise InvalidInputError(f"{variable}: {error}") from None
