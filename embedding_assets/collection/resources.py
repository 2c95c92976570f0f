"""Which resources a project and its collections work with, from their settings and environment."""

from typing import Any

from embedding_assets.collection.collection import Collection
from embedding_assets.collection.environment import Environment, read_environment
from embedding_assets.collection.settings import CollectionSettings, EmbedderSettings
from resources.artifact_stores.from_url import artifact_store_from_url
from resources.caches.from_url import cache_from_url
from resources.document_sources import FieldNames, FileDocumentSource
from resources.embedders.base import Embedder
from resources.embedders.local import LocalEmbedder
from resources.embedders.openai.embedder import OpenAIEmbedder
from resources.notifier import LogNotifier, WebhookNotifier
from resources.vector_stores.from_url import vector_store_from_url


def shared_resources(environment: Environment | None = None) -> dict[str, Any]:
    """The resources that all collections have in common, by resource key."""
    environment = environment or read_environment()
    data = environment.data_dir
    return {
        "artifact_store": artifact_store_from_url(environment.artifacts or str(data / "artifacts")),
        "embedding_cache": cache_from_url(
            environment.cache or str(data / "cache.duckdb"), environment.cache_memory_mb
        ),
        "vector_store": vector_store_from_url(environment.vectors or str(data / "vectors")),
        "notifier": WebhookNotifier() if environment.webhook_url else LogNotifier(),
    }


def collection_resources(
    settings: CollectionSettings, environment: Environment | None = None
) -> dict[str, Any]:
    """The resources of one collection, by resource key."""
    environment = environment or read_environment()
    collection = Collection(settings)
    source = settings.source
    resources: dict[str, Any] = {
        collection.source_key: FileDocumentSource(
            path=source.path,
            format=source.format,
            fields=FieldNames(**source.fields.model_dump()),
            max_document_bytes=source.max_document_bytes,
        ),
        collection.embedder_key: _embedder(settings.embedder, environment),
    }
    if settings.fallback:
        resources[collection.fallback_key] = _embedder(settings.fallback, environment)
    return resources


def _embedder(settings: EmbedderSettings, environment: Environment) -> Embedder:
    if settings.provider == "openai":
        given = settings.model_fields_set & settings.remote_fields()
        return OpenAIEmbedder(
            model=settings.model,
            **{name: value for name in given if (value := getattr(settings, name)) is not None},
        )
    return LocalEmbedder(
        model=settings.model,
        device=settings.device,
        precision=settings.precision,
        model_cache=str(environment.models),
    )
