"""One YAML file is a collection: its defaults, its paths, and what it says to wrong settings."""

from typing import Any

import dagster as dg
import pytest

from tests.support.project import Project

MINIMAL: dict[str, Any] = {"name": "docs", "source": {"path": "docs/*.jsonl"}}


def test_name_and_source_path_are_enough_and_every_default_is_the_documented_one(
    project: Project,
) -> None:
    settings = project.load(MINIMAL)
    assert settings.name == "docs"
    assert settings.source.fields.model_dump() == {
        "id": "id", "title": "title", "text": "text", "timestamp": None,
    }  # fmt: skip
    assert (settings.partitions.by, settings.partitions.count) == ("bucket", 16)
    assert settings.chunking.model_dump() == {
        "strategy": "structure", "max_tokens": 256, "overlap": 0, "context": "title",
    }  # fmt: skip
    assert settings.embedder.model == "sentence-transformers/all-MiniLM-L6-v2"
    assert settings.evaluation is None
    definitions = project.definitions(MINIMAL)
    keys = {key.to_user_string() for key in definitions.resolve_asset_graph().get_all_asset_keys()}
    assert keys == {
        "docs/documents", "docs/deduplicated_chunks", "docs/embeddings", "docs/vector_index",
        "docs/report",
    }  # fmt: skip


def test_the_example_of_twelve_lines_is_understood(project: Project) -> None:
    settings = project.load(
        """\
type: embedding_assets.EmbeddingCollection
attributes:
  name: peps
  source:
    path: sample_data/*.jsonl.gz
    fields: {id: id, title: title, text: text, timestamp: created}
  partitions: {by: year, start: "2000-01-01"}
  chunking: {strategy: structure, max_tokens: 256, overlap: 0, context: title}
  embedder: {model: sentence-transformers/all-MiniLM-L6-v2}
  evaluation: {queries: queries.jsonl, qrels: qrels.tsv, min_ndcg_at_10: 0.9}
"""
    )
    assert settings.evaluation is not None
    assert settings.evaluation.min_ndcg_at_10 == 0.9
    assert settings.partitions.start == "2000-01-01"


def test_the_largest_document_may_be_said_in_megabytes(project: Project) -> None:
    settings = project.load({"name": "docs", "source": {"path": "x", "max_document_bytes": "2MB"}})
    assert settings.source.max_document_bytes == 2_000_000
    assert settings.source.build().max_document_bytes == 2_000_000


def test_a_start_day_needs_no_quotes(project: Project) -> None:
    settings = project.load(
        "type: embedding_assets.EmbeddingCollection\n"
        "attributes:\n"
        "  name: docs\n"
        "  source: {path: a.jsonl, fields: {timestamp: created}}\n"
        "  partitions: {by: day, start: 2024-02-29}\n"
    )
    assert settings.partitions.start == "2024-02-29"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"nmae": "x"}, ["nmae"]),
        ({"name": "has space"}, ["name", "pattern"]),
        ({"name": 3}, ["name", "string"]),
        ({"source": {"pth": "x"}}, ["source", "pth"]),
        ({"source": {"path": "  "}}, ["source.path must name a file"]),
        ({"source": "a.jsonl"}, ["source"]),
        ({"source": {"path": "x", "format": "xml"}}, ["format", "jsonl", "parquet"]),
        ({"source": {"path": "x", "fields": {"body": "b"}}}, ["fields", "body"]),
        ({"partitions": {"by": "yeer"}}, ["by", "'year'", "'bucket'"]),
        ({"partitions": {"by": "year"}}, ["start", "YYYY-MM-DD"]),
        ({"partitions": {"by": "year", "start": "May 2020"}}, ["start", "YYYY-MM-DD", "May 2020"]),
        ({"partitions": {"by": "year", "start": "2020-01-01"}}, ["source.fields.timestamp"]),
        ({"partitions": {"count": 0}}, ["count", "greater than or equal to 1"]),
        ({"chunking": {"max_tokens": "many"}}, ["max_tokens", "integer"]),
        ({"chunking": {"max_tokens": 4}}, ["max_tokens", "greater than or equal to 16"]),
        ({"chunking": {"overlap": 200}}, ["overlap (200)", "half of max_tokens"]),
        ({"chunking": {"strategy": "semantic"}}, ["strategy", "'structure'", "'whole'"]),
        ({"chunking": {"context": "all"}}, ["context", "'headings'"]),
        ({"embedder": {"device": "tpu"}}, ["device", "'cuda'"]),
        ({"embedder": {"modle": "x"}}, ["modle", "not permitted"]),
        ({"embedder": {"base_url": "http://x"}}, ["set provider: openai", "base_url"]),
        ({"fallback": {"provider": "azure"}}, ["fallback", "'local' or 'openai'"]),
        (
            {"source": {"path": "x", "max_document_bytes": "big"}},
            ["max_document_bytes", "looks like 500KB"],
        ),
        ({"evaluation": {"queries": "q"}}, ["evaluation", "qrels"]),
        ({"evaluation": {"queries": "q", "qrels": "r", "min_ndcg_at_10": 2}}, ["min_ndcg_at_10"]),
        ({"evaluation": {"queries": " ", "qrels": "r"}}, ["queries must name a file"]),
        ({"checks": {"max_error_rate": -1}}, ["max_error_rate", "greater than or equal to 0"]),
        ({"backfill": {"partitions_per_run": 0}}, ["partitions_per_run"]),
    ],
    ids=str,
)
def test_a_wrong_setting_is_told_with_file_field_and_what_was_expected(
    project: Project, changes: dict[str, Any], expected: list[str]
) -> None:
    message = project.error({**MINIMAL, **changes})
    assert "defs.yaml" in message
    for part in expected:
        assert part in message


@pytest.mark.parametrize("attributes", [None, {}, {"name": "docs"}, {"source": {"path": "x"}}])
def test_a_missing_setting_is_told_with_file_and_field(
    project: Project, attributes: dict[str, Any] | None
) -> None:
    message = project.error(attributes)
    assert "defs.yaml" in message
    assert "name" in message or "source" in message


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("mine.jsonl", "mine.jsonl"),
        ("deep/*.jsonl", "deep/a.jsonl"),
        ("deep", "deep/a.jsonl"),
        ("**/*.jsonl", "deep/a.jsonl"),
        ("%Y/%m/*.jsonl", "2026/08/a.jsonl"),
        ("../docs/mine.jsonl", "mine.jsonl"),
        ("[odd] name.jsonl", "[odd] name.jsonl"),
    ],
)
def test_relative_paths_start_beside_the_yaml_if_there_is_something_else_at_the_project(
    project: Project, path: str, file: str
) -> None:
    attributes = {"name": "docs", "source": {"path": path}}
    assert project.load(attributes).source.path == str(project.folder / path)
    (project.beside / file).parent.mkdir(parents=True, exist_ok=True)
    (project.beside / file).touch()
    assert project.load(attributes).source.path == str(project.beside / path)


def test_absolute_paths_and_urls_stay_as_they_are(project: Project) -> None:
    for path in ("/archive/*.jsonl", "s3://bucket/archive/%Y/*.parquet"):
        assert project.load({"name": "docs", "source": {"path": path}}).source.path == path


def test_paths_of_queries_and_judgements_are_resolved_too(project: Project) -> None:
    (project.beside / "q.jsonl").touch()
    evaluation = {"queries": "q.jsonl", "qrels": "r.tsv"}
    settings = project.load({**MINIMAL, "evaluation": evaluation})
    assert settings.evaluation is not None
    assert settings.evaluation.queries == str(project.beside / "q.jsonl")
    assert settings.evaluation.qrels == str(project.folder / "r.tsv")


def test_environment_variables_can_stand_in_paths(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHIVE", "/mnt/archive")
    path = "{{ env.ARCHIVE }}/*.jsonl"
    settings = project.load({"name": "docs", "source": {"path": path}})
    assert settings.source.path == "/mnt/archive/*.jsonl"


def test_partitions_per_run_limits_the_runs_of_a_backfill(project: Project) -> None:
    several = project.definitions({**MINIMAL, "backfill": {"partitions_per_run": 5}})
    one = project.definitions(MINIMAL)
    for asset in ("documents", "deduplicated_chunks", "embeddings", "vector_index"):
        key = dg.AssetKey(["docs", asset])
        assert several.resolve_assets_def(key).backfill_policy == dg.BackfillPolicy.multi_run(5)
        assert one.resolve_assets_def(key).backfill_policy == dg.BackfillPolicy.single_run()
