"""One collection at run time: its settings, names, and the resources its assets ask for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dagster as dg

from embedding_assets.partitions import partitions_definition
from embedding_assets.settings import CollectionSettings
from resources.artifact_store import ArtifactStore
from resources.document_source import DocumentSource
from resources.embedder import Embedder
from resources.embedding_cache import EmbeddingCache
from resources.vector_store import VectorStore


@dataclass(frozen=True)
class Collection:
    settings: CollectionSettings

    @property
    def name(self) -> str:
        return self.settings.name

    @cached_property
    def partitions(self) -> dg.PartitionsDefinition:
        return partitions_definition(self.settings.partitions)

    @property
    def source_key(self) -> str:
        return f"{self.name}_source"

    @property
    def embedder_key(self) -> str:
        return f"{self.name}_embedder"

    @property
    def fallback_key(self) -> str:
        return f"{self.name}_fallback"

    @property
    def resource_keys(self) -> set[str]:
        return {
            self.source_key,
            self.embedder_key,
            "artifact_store",
            "embedding_cache",
            "vector_store",
            *([self.fallback_key] if self.settings.fallback else []),
        }

    def asset_key(self, asset: str) -> dg.AssetKey:
        return dg.AssetKey([self.name, asset])

    def asset(
        self, name: str, *, after: str | None = None, **options: Any
    ) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
        """`dg.asset` with what every asset of the collection has in common."""
        per_run = self.settings.backfill.partitions_per_run
        return dg.asset(
            key=self.asset_key(name),
            deps=[self.asset_key(after)] if after else [],
            group_name=self.name,
            partitions_def=self.partitions,
            backfill_policy=(
                dg.BackfillPolicy.single_run()
                if per_run is None
                else dg.BackfillPolicy.multi_run(per_run)
            ),
            required_resource_keys=self.resource_keys,
            **options,
        )

    def resources(self, context: dg.AssetExecutionContext) -> "CollectionResources":
        return CollectionResources(
            source=getattr(context.resources, self.source_key),
            embedder=getattr(context.resources, self.embedder_key),
            fallback=getattr(context.resources, self.fallback_key, None),
            same_space=bool(self.settings.fallback and self.settings.fallback.same_space),
            artifacts=context.resources.artifact_store,
            cache=context.resources.embedding_cache,
            store=context.resources.vector_store,
        )


@dataclass(frozen=True)
class CollectionResources:
    source: DocumentSource
    embedder: Embedder
    artifacts: ArtifactStore
    cache: EmbeddingCache
    store: VectorStore
    fallback: Embedder | None = None
    same_space: bool = False

    @property
    def embedders(self) -> tuple[Embedder, ...]:
        """One for each embedding space that the index may hold; the one it should hold first."""
        if self.fallback is None or self.same_space:
            return (self.embedder,)
        return (self.embedder, self.fallback)
