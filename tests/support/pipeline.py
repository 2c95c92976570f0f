"""Runs a collection's assets in this process, on real files, with real stores."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from embedding_assets import api
from embedding_assets.artifacts.keys import (
    documents_key,
    documents_quarantine_key,
    embeddings_quarantine_key,
)
from embedding_assets.collection.collection import CollectionAssets, CollectionResources
from embedding_assets.collection.settings import CollectionSettings
from embedding_assets.component import collection_definitions
from resources.artifact_stores.files import FileArtifactStore
from resources.caches.duckdb import DuckDBEmbeddingCache
from resources.dagster_instance.executor import one_process_executor
from resources.embedders.base import Embedder
from resources.vector_stores.base import row_schema
from resources.vector_stores.lancedb import LanceDBVectorStore
from tests.support.fakes import CountingEmbedder
from tests.support.instance import instance_in_memory

ASSETS = CollectionAssets.ASSETS


@dataclass
class Pipeline:
    """One collection in a folder of its own."""

    folder: Path
    source: str
    name: str = "corpus"
    embedder: Embedder = field(default_factory=CountingEmbedder)
    settings: dict[str, Any] = field(default_factory=dict)
    fallback: Embedder | None = None

    def __post_init__(self) -> None:
        # Whether a file looks unchanged depends on the time since it was written.
        source = {"path": self.source, "read_unchanged_files": True}
        source |= self.settings.pop("source", {})
        self.collection = CollectionSettings.model_validate(
            {"name": self.name, "source": source, **self.settings}
        )
        self.artifacts = FileArtifactStore(url=str(self.folder / "artifacts"))
        self.cache = DuckDBEmbeddingCache(path=str(self.folder / "cache.duckdb"))
        self.store = LanceDBVectorStore(uri=str(self.folder / "vectors"))
        definitions = collection_definitions(self.collection)
        self.resources: dict[str, Any] = {
            **(definitions.resources or {}),
            f"{self.name}_embedder": self.embedder,
            "artifact_store": self.artifacts,
            "embedding_cache": self.cache,
            "vector_store": self.store,
        }
        if self.fallback is not None:
            self.resources[f"{self.name}_fallback"] = self.fallback
        self.definitions = dg.Definitions(
            assets=definitions.assets, resources=self.resources, executor=one_process_executor
        )
        self.partitions = self.definitions.resolve_assets_def(
            dg.AssetKey([self.name, "documents"])
        ).partitions_def
        assert self.partitions is not None

    @property
    def opened(self) -> api.Collection:
        """The handle of the Python API."""
        resources = CollectionResources(
            source=self.resources[f"{self.name}_source"],
            embedder=self.embedder,
            fallback=self.fallback,
            artifacts=self.artifacts,
            cache=self.cache,
            store=self.store,
        )
        return api.Collection(self.collection, resources)

    @cached_property
    def _instance(self) -> dg.DagsterInstance:
        """Of this pipeline alone: its checks compare with the runs that are recorded there."""
        return instance_in_memory()

    def run(
        self,
        first: str | None = None,
        last: str | None = None,
        *,
        assets: Sequence[str] = ASSETS,
        instance: dg.DagsterInstance | None = None,
        raise_on_error: bool = True,
        config: Mapping[str, Any] | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Materialises a range of partitions in one run; by default all of them.

        Args:
            config: of the assets, by name.
        """
        assert self.partitions is not None
        keys = self.partitions.get_partition_keys()
        first, last = first or keys[0], last or (first or keys[-1])
        return dg.materialize(
            [a for a in self.definitions.assets or [] if isinstance(a, dg.AssetsDefinition)],
            selection=[dg.AssetKey([self.name, asset]) for asset in assets],
            resources=self.resources,
            tags={
                "dagster/asset_partition_range_start": first,
                "dagster/asset_partition_range_end": last,
            },
            instance=instance or self._instance,
            run_config={
                "loggers": {"console": {"config": {"log_level": "ERROR"}}},
                "ops": {f"{self.name}__{a}": {"config": c} for a, c in (config or {}).items()},
            },
            raise_on_error=raise_on_error,
        )

    def rows(self, embedder: Embedder | None = None) -> list[dict[str, Any]]:
        """Everything in the table of an embedder's space, sorted by key."""
        space = (embedder or self.embedder).space
        batches = list(self.store.scan(self.name, space, row_schema(space).names))
        rows = [row for batch in batches for row in batch.to_pylist()]
        return sorted(rows, key=lambda row: row["chunk_id"])

    def documents(self) -> list[dict[str, Any]]:
        return self._table(documents_key)

    def quarantine(self) -> list[dict[str, Any]]:
        key = documents_quarantine_key(self.name, None)
        unplaced = []
        if self.artifacts.exists(key):
            with self.artifacts.reading(key) as path:
                unplaced = pq.read_table(path).to_pylist()
        return unplaced + self._table(documents_quarantine_key)

    def embedding_quarantine(self) -> list[dict[str, Any]]:
        return self._table(embeddings_quarantine_key)

    def _table(self, key: Any) -> list[dict[str, Any]]:
        assert self.partitions is not None
        tables: list[pa.Table] = []
        for partition in self.partitions.get_partition_keys():
            if self.artifacts.exists(key(self.name, partition)):
                with self.artifacts.reading(key(self.name, partition)) as path:
                    tables.append(pq.read_table(path))
        return pa.concat_tables(tables).to_pylist() if tables else []


def per_partition(
    result: dg.ExecuteInProcessResult, asset: str
) -> dict[str | None, dict[str, Any]]:
    """The metadata of an asset's materialisations by partition, as Dagster shows it."""
    found: dict[str | None, dict[str, Any]] = {}
    for event in result.all_events:
        if not event.is_step_materialization:
            continue
        materialization = event.step_materialization_data.materialization
        if materialization.asset_key.path[-1] == asset:
            # A slow partition is recorded at once, and again at the end of the step.
            found[materialization.partition] = {
                key: value.value for key, value in materialization.metadata.items()
            }
    return found


def numbers(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    """The numbers in the metadata of an asset's materialisations, summed over the partitions."""
    total: dict[str, Any] = {}
    for metadata in per_partition(result, asset).values():
        for key, value in metadata.items():
            if isinstance(value, int | float):
                total[key] = total.get(key, 0) + value
    return total


def checks(result: dg.ExecuteInProcessResult | dg.JobExecutionResult) -> dict[str, bool]:
    """Whether each check passed; whatever it found, it says so in a sentence."""
    assert all(sentences(result).values())
    return {e.check_name: e.passed for e in result.get_asset_check_evaluations()}


def sentences(result: dg.ExecuteInProcessResult | dg.JobExecutionResult) -> dict[str, str]:
    """What each check says."""
    return {e.check_name: e.description or "" for e in result.get_asset_check_evaluations()}


def write_jsonl(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
