"""One collection at run time: its settings, names, and the resources its assets ask for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, ClassVar

import dagster as dg

from embedding_assets.collection.partitions import LONGEST_DAYS, partitions_definition
from embedding_assets.collection.settings import CollectionSettings
from resources.artifact_stores.base import ArtifactStore
from resources.caches.base import EmbeddingCache
from resources.document_sources import DocumentSource
from resources.embedders.base import Embedder
from resources.vector_stores.base import VectorStore

_POOLS = {"embeddings": "embedding_device", "vector_index": "vector_store_writer"}
"""Assets of which only some may be at work at a time, in all runs together: limits in dagster.yaml.
`embeddings` uses the device, and it alone writes to the cache."""


@dataclass(frozen=True)
class CollectionAssets:
    """The assets of a collection, as Dagster sees them: keys, partitions, common properties."""

    ASSETS: ClassVar = ("documents", "deduplicated_chunks", "embeddings", "vector_index")

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

    def asset_key(self, asset: str) -> dg.AssetKey:
        return dg.AssetKey([self.name, asset])

    @property
    def source_asset_key(self) -> dg.AssetKey:
        """Not below the collection's name: what selects all that is there wants to run it."""
        return dg.AssetKey([self.source_key])

    def address(self, asset: str, declared: "CollectionResources") -> str:
        """The URI of the folder with an asset's files."""
        return declared.artifacts.address(f"{self.name}/{asset}")

    def command(self, words: str) -> str:
        """A command of `embedding-assets` for this collection, as Markdown."""
        return f"`embedding-assets {words} {self.name}`"

    def shown(self, description: str) -> dict[str, Any]:
        """What is shown of any asset of the collection, as arguments of `dg.asset`.

        Args:
            description: of the asset; that of the collection comes below it.
        """
        below = f"\n\n{self.settings.description}" if self.settings.description else ""
        return {
            "description": description + below,
            "group_name": self.name,
            "owners": self.settings.owners,
            "tags": self.settings.tags,
        }

    def asset(
        self, name: str, *, description: str, after: dg.AssetKey, **options: Any
    ) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
        """`dg.asset` with what every asset of the collection has in common."""
        per_run = self.settings.partitions_per_run
        return dg.asset(
            key=self.asset_key(name),
            deps=[after],
            **self.shown(description),
            pool=_POOLS.get(name),
            freshness_policy=self._freshness_policy,
            partitions_def=self.partitions,
            backfill_policy=(
                dg.BackfillPolicy.single_run()
                if per_run is None
                else dg.BackfillPolicy.multi_run(per_run)
            ),
            required_resource_keys=self.resource_keys,
            **options,
        )

    @property
    def _freshness_policy(self) -> dg.FreshnessPolicy | None:
        """Watches for runs that do not come: a sensor that is switched off tells nobody."""
        days = LONGEST_DAYS.get(self.settings.partitions.by)
        hours = self.settings.automation.freshness_hours or (days and 24 * days + 12)
        if hours is None:
            return None
        return dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=hours))

    @property
    def resource_keys(self) -> set[str]:
        own = {self.source_key, self.embedder_key}
        if self.settings.fallback:
            own.add(self.fallback_key)
        return own | {"artifact_store", "embedding_cache", "vector_store"}

    def resources(
        self, context: dg.AssetExecutionContext | dg.SensorEvaluationContext
    ) -> "CollectionResources":
        return self.resources_of(
            {key: getattr(context.resources, key) for key in self.resource_keys}
        )

    def resources_of(self, by_key: Mapping[str, Any]) -> "CollectionResources":
        """Its resources, out of those by resource key."""
        return CollectionResources(
            source=by_key[self.source_key],
            embedder=by_key[self.embedder_key],
            fallback=by_key.get(self.fallback_key),
            same_space=bool(self.settings.fallback and self.settings.fallback.same_space),
            artifacts=by_key["artifact_store"],
            cache=by_key["embedding_cache"],
            store=by_key["vector_store"],
        )

    def keyed(self, resources: "CollectionResources") -> dict[str, Any]:
        """Resources by resource key, as `resources_of` takes them."""
        keyed = {
            self.source_key: resources.source,
            self.embedder_key: resources.embedder,
            "artifact_store": resources.artifacts,
            "embedding_cache": resources.cache,
            "vector_store": resources.store,
        }
        if resources.fallback is not None:
            keyed[self.fallback_key] = resources.fallback
        return keyed


@dataclass(frozen=True)
class CollectionResources:
    """What the assets of a collection, and those who search it, work with."""

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

    @property
    def embedder_kinds(self) -> set[str]:
        """What computes vectors, as Dagster calls it."""
        return {each.kind for each in (self.embedder, self.fallback) if each is not None}
