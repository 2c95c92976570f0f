"""What Dagster's pages show of a collection before anything ran."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.metadata.metadata_set import TableMetadataSet, UriMetadataSet

from tests.support.project import Project

MINIMAL: dict[str, Any] = {"name": "docs", "source": {"path": "docs/*.jsonl"}}
SERVER = {"provider": "openai", "model": "m", "base_url": "http://127.0.0.1:1/v1", "dimensions": 8}


def shown(project: Project, **settings: Any) -> dict[str, dg.AssetSpec]:
    """The assets of a collection by the last part of their keys."""
    specs = project.definitions({**MINIMAL, **settings}).resolve_all_asset_specs()
    return {spec.key.path[-1]: spec for spec in specs}


def test_owners_tags_and_description_are_on_all_assets(project: Project) -> None:
    assets = shown(
        project,
        description="All *minutes* of the board.",
        owners=["ann@example.org", "team:search"],
        tags={"tier": "gold", "example.org/cost": "42"},
    )
    assert {
        "docs_source",
        "documents",
        "deduplicated_chunks",
        "embeddings",
        "vector_index",
        "report",
    } <= {*assets}
    for asset in assets.values():
        own, _, below = (asset.description or "").partition("\n\n")
        assert own
        assert below == "All *minutes* of the board."
        assert asset.owners == ["ann@example.org", "team:search"]
        assert {"tier": "gold", "example.org/cost": "42"}.items() <= asset.tags.items()
        assert asset.group_name == "docs"


@pytest.mark.parametrize(
    ("settings", "variables", "expected"),
    [
        (
            {"embedder": {"device": "cpu"}},
            {"EMBEDDING_CACHE_MEMORY_MB": "8"},
            [{"parquet", "duckdb"}, {"parquet", "duckdb", "openvino"}, {"lancedb"}],
        ),
        (
            {"embedder": SERVER, "fallback": {"device": "cuda"}},
            {"EMBEDDING_CACHE": "redis://127.0.0.1:1/0"},
            [{"parquet", "redis"}, {"parquet", "redis", "openai", "pytorch"}, {"lancedb"}],
        ),
    ],
)
def test_kinds_are_those_of_the_model_the_cache_and_the_store_that_are_set(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    variables: dict[str, str],
    expected: list[set[str]],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assets = shown(project, **settings)
    kinds = [assets[name].kinds for name in ("deduplicated_chunks", "embeddings", "vector_index")]
    assert kinds == expected


def test_each_asset_tells_where_its_table_is_and_what_its_columns_mean(
    project: Project, tmp_path: Path
) -> None:
    assets = shown(project)
    places = {
        "documents": ("artifacts/docs/documents", "id"),
        "deduplicated_chunks": ("artifacts/docs/deduplicated_chunks", "chunk_id"),
        "embeddings": ("artifacts/docs/embeddings", "content_hash"),
        "vector_index": ("vectors", "chunk_id"),
    }
    for asset, (place, first) in places.items():
        # Dagster's own words: it reads them as what they are.
        table = TableMetadataSet.extract(assets[asset].metadata).column_schema
        assert table is not None
        assert table.columns[0].name == first
        assert all(column.description and column.type for column in table.columns)
        uri = UriMetadataSet.extract(assets[asset].metadata).uri
        assert uri == (tmp_path / "data" / place).as_uri()
    assert assets["vector_index"].metadata["report"].asset_key == assets["report"].key
    for asset, command in (
        ("documents", "`embedding-assets quarantine docs`"),
        ("embeddings", "`embedding-assets quarantine docs`"),
        ("vector_index", '`embedding-assets search "…" --collection docs`'),
    ):
        assert command in (assets[asset].description or "")


def test_each_asset_leads_to_its_yaml_file(project: Project) -> None:
    file = str(Path(project.beside, "defs.yaml"))
    for asset in shown(project).values():
        (reference,) = asset.metadata["dagster/code_references"].code_references
        assert (reference.file_path, reference.line_number) == (file, 1)
