"""`EmbeddingCollection`: one YAML file becomes its assets, their checks and their resources."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import BaseModel

from embedding_assets.automation import automation
from embedding_assets.collection.collection import Collection, CollectionResources
from embedding_assets.collection.settings import PROJECT_ROOT, CollectionSettings, EmbedderSettings
from embedding_assets.deduplicated_chunks.asset import deduplicated_chunks_asset
from embedding_assets.documents.asset import documents_asset
from embedding_assets.embeddings.asset import embeddings_asset
from embedding_assets.operations.report import report_asset
from embedding_assets.vector_index.asset import vector_index_asset
from resources.artifact_stores.files import FileArtifactStore
from resources.caches.from_url import cache_from_url
from resources.document_sources import FieldNames, FileDocumentSource
from resources.embedders.base import Embedder
from resources.embedders.local import LocalEmbedder
from resources.embedders.openai.embedder import OpenAIEmbedder
from resources.notifier import notifier_from_environment
from resources.vector_stores.lancedb import LanceDBVectorStore

_NEW_COLLECTION = """\
  # Every other setting, with its default and meaning: README, "Add your own corpus".
  source:
    path: {name}/*.jsonl        # file, folder, glob or URL
    # fields: {{id: id, title: title, text: text, timestamp: created}}
  # partitions: {{by: month, start: "2020-01-01"}}     # needs source.fields.timestamp
"""


class CollectionScaffolder(dg.Scaffolder):
    """What `dg scaffold defs embedding_assets.EmbeddingCollection NAME` writes."""

    def scaffold(self, request: dg.ScaffoldRequest) -> None:
        name = request.target_path.name
        (request.target_path / "defs.yaml").write_text(
            "type: embedding_assets.EmbeddingCollection\n"
            f"attributes:\n  name: {name}\n" + _NEW_COLLECTION.format(name=name)
        )


@dg.scaffold_with(CollectionScaffolder)
class EmbeddingCollection(dg.Component):
    """A corpus kept as a vector index, by four assets: `documents` to `vector_index`."""

    def __init__(self, settings: CollectionSettings) -> None:
        self.settings = settings

    @classmethod
    def get_model_cls(cls) -> type[CollectionSettings]:
        # The settings themselves, not a model derived from them in which each field may also be a
        # template: errors then name the field and what it may be.
        return CollectionSettings

    @classmethod
    def load(
        cls, attributes: BaseModel | None, context: dg.ComponentLoadContext
    ) -> "EmbeddingCollection":
        if not isinstance(attributes, CollectionSettings):
            raise TypeError("a collection needs at least the attributes 'name' and 'source.path'")
        settings = attributes.rendered(context.resolution_context.resolve_value)
        return cls(settings.with_absolute_paths(context.path))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        del context  # paths were resolved when the settings were loaded
        return collection_definitions(self.settings)


def collection_definitions(settings: CollectionSettings) -> dg.Definitions:
    """The assets and the resources of one collection, and what runs them."""
    collection = Collection(settings)
    automated = automation(collection)
    return dg.Definitions(
        jobs=automated.jobs,
        schedules=automated.schedules,
        sensors=automated.sensors,
        assets=[
            documents_asset(collection),
            deduplicated_chunks_asset(collection),
            embeddings_asset(collection),
            vector_index_asset(collection),
            report_asset(collection),
        ],
        resources=collection_resources(settings),
    )


def collection_resources(settings: CollectionSettings) -> dict[str, Any]:
    """The resources of one collection, by resource key."""
    collection = Collection(settings)
    source = settings.source
    resources: dict[str, Any] = {
        collection.source_key: FileDocumentSource(
            path=source.path,
            format=source.format,
            fields=FieldNames(**source.fields.model_dump()),
            max_document_bytes=source.max_document_bytes,
        ),
        collection.embedder_key: _embedder(settings.embedder),
    }
    if settings.fallback:
        resources[collection.fallback_key] = _embedder(settings.fallback)
    return resources


def _embedder(settings: EmbedderSettings) -> Embedder:
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
        model_cache=str(data_dir() / "models"),
    )


@dataclass(frozen=True)
class LoadedCollection:
    """A collection outside of Dagster: its settings, and its resources ready for use."""

    settings: CollectionSettings
    resources: CollectionResources


def load_collections() -> dict[str, LoadedCollection]:
    """The project's collections by name, with their resources, for use outside of Dagster.

    Raises:
        Exception: Dagster's own, naming file and field, if a YAML file is wrong.
    """
    tree = dg.ComponentTree.for_project(PROJECT_ROOT)
    components = tree.get_all_components(of_type=EmbeddingCollection)
    shared = shared_resources()
    loaded = {}
    for settings in sorted((c.settings for c in components), key=lambda s: s.name):
        own = collection_resources(settings)
        collection = Collection(settings)
        loaded[settings.name] = LoadedCollection(
            settings,
            CollectionResources(
                source=own[collection.source_key],
                embedder=own[collection.embedder_key],
                fallback=own.get(collection.fallback_key),
                same_space=bool(settings.fallback and settings.fallback.same_space),
                artifacts=shared["artifact_store"],
                cache=shared["embedding_cache"],
                store=shared["vector_store"],
            ),
        )
    return loaded


def shared_resources() -> dict[str, Any]:
    """The resources that all collections have in common; all outputs are in one folder."""
    return {
        "artifact_store": FileArtifactStore(url=str(data_dir() / "artifacts")),
        "embedding_cache": cache_from_url(
            os.environ.get("EMBEDDING_CACHE") or str(data_dir() / "cache.duckdb"),
            int(os.environ.get("EMBEDDING_CACHE_MEMORY_MB") or 0),
        ),
        "vector_store": LanceDBVectorStore(uri=str(data_dir() / "vectors")),
        "notifier": notifier_from_environment(),
    }


def data_dir() -> Path:
    """The folder of all outputs: EMBEDDING_DATA_DIR, by default `data/` in the project."""
    return PROJECT_ROOT / Path(os.environ.get("EMBEDDING_DATA_DIR") or "data").expanduser()
