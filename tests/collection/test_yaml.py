"""One YAML file is a collection: its defaults, its paths, and what it says to wrong settings."""

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster.components.core.component_tree import ComponentTreeException

from embedding_assets.collection.mistakes import YamlMistakeError
from embedding_assets.collection.partitions import partitions_definition
from embedding_assets.collection.settings import PartitionSettings
from resources.document_sources import Document
from resources.document_sources.base import SourceNotFoundError
from tests.support.project import Project

MINIMAL: dict[str, Any] = {"name": "docs", "source": {"path": "docs/*.jsonl"}}


def test_name_and_source_path_are_enough_and_every_default_is_the_documented_one(
    project: Project,
) -> None:
    settings = project.load(MINIMAL)
    assert settings.name == "docs"
    assert settings.source.fields.model_dump() == {
        "id": "id", "title": "title", "text": "text", "timestamp": None, "timestamp_unit": None,
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
        "docs_source", "docs/documents", "docs/deduplicated_chunks", "docs/embeddings",
        "docs/vector_index", "docs/report",
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
        (
            {"nmae": "x"},
            ["nmae is no setting. Did you mean name?", "The settings: name, "],
        ),
        ({"name": "has space"}, ["name", "pattern"]),
        ({"name": 3}, ["name", "string"]),
        ({"source": {"pth": "x"}}, ["source.pth is no setting. Did you mean path?"]),
        ({"source": {"path": "  "}}, ["source.path must name a file"]),
        ({"source": {"path": "notes/**.jsonl"}}, ["source.path", "'**/*.jsonl' in place of"]),
        ({"source": {"path": "/a/old**/x.md"}}, ["source.path", "'old*' in place of 'old**'"]),
        ({"source": {"path": "s4://bucket"}}, ["source.path", "s4://", "s3://"]),
        ({"source": {"path": "a\0b"}}, ["source.path", "NUL"]),
        ({"source": "a.jsonl"}, ["source must hold settings", "source: {path: …}"]),
        ({"source": {"path": "x", "format": "xml"}}, ["format", "jsonl", "parquet"]),
        ({"source": {"path": "x", "fields": {"body": "b"}}}, ["fields", "body"]),
        ({"partitions": {"by": "yeer"}}, ["'bucket'; got 'yeer'. Did you mean year?"]),
        ({"partitions": {"by": "year"}}, ["start", "YYYY-MM-DD"]),
        ({"partitions": {"by": "year", "start": "May 2020"}}, ["start", "YYYY-MM-DD", "May 2020"]),
        ({"partitions": {"by": "year", "start": "0800-12-25"}}, ["start is 0800-12-25", "1000 or"]),
        ({"partitions": {"by": "day", "start": "2999-01-01"}}, ["partitions.start", "future"]),
        ({"partitions": {"by": "year", "start": "2020-01-01"}}, ["source.fields.timestamp"]),
        ({"partitions": {"count": 0}}, ["partitions.count must be at least 1; got 0."]),
        (
            {"chunking": {"max_tokens": "many"}},
            ["must be a whole number; got 'many'."],
        ),
        ({"chunking": {"max_tokens": 4}}, ["max_tokens must be at least 16; got 4."]),
        ({"chunking": {"overlap": 200}}, ["overlap (200)", "half of max_tokens"]),
        ({"chunking": {"strategy": "semantic"}}, ["strategy", "'structure'", "'whole'"]),
        ({"chunking": {"context": "all"}}, ["context", "'headings'"]),
        ({"embedder": {"device": "tpu"}}, ["device", "'cuda'"]),
        ({"embedder": {"modle": "x"}}, ["embedder.modle is no setting. Did you mean model?"]),
        ({"embedder": {"base_url": "http://x"}}, ["set provider: openai", "base_url"]),
        ({"fallback": {"provider": "azure"}}, ["fallback", "'local' or 'openai'"]),
        (
            {"source": {"path": "x", "max_document_bytes": "big"}},
            ["max_document_bytes", "looks like 500KB"],
        ),
        ({"evaluation": {"queries": "q"}}, ["evaluation", "qrels"]),
        ({"evaluation": {"queries": "q", "qrels": "r", "min_ndcg_at_10": 2}}, ["min_ndcg_at_10"]),
        ({"evaluation": {"queries": " ", "qrels": "r"}}, ["queries must name a file"]),
        ({"checks": {"max_error_rate": -1}}, ["max_error_rate must be at least 0; got -1."]),
        ({"backfill": {"partitions_per_run": 0}}, ["partitions_per_run"]),
        ({"max_tokens": 9}, ["Did you mean chunking.max_tokens?"]),
        ({"source": {"path": "x", "timestamp": "t"}}, ["Did you mean source.fields.timestamp?"]),
        ({"automation": {"source_sensor": {"every": 9}}}, ["Did you mean every_seconds?"]),
        ({"checks": dict.fromkeys("abcde", 1)}, ["checks.a is no", "And 2 more mistakes."]),
        ({"owners": ["ann"]}, ["owners", "ann@example.org", "team:search", "'ann'"]),
        ({"owners": ["team:"]}, ["owners", "'team:'"]),
        ({"tags": {"tier": "a b"}}, ["tags", "63 letters", "'tier': 'a b'"]),
        ({"tags": {"a/b/c": ""}}, ["tags", "'a/b/c'"]),
        ({"tags": {"tier": 1}}, ["tags", "tier", "string"]),
        ({"description": ["x"]}, ["description", "string"]),
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


def test_a_misspelt_key_is_five_lines_at_most_and_its_value_is_not_among_them(
    project: Project,
) -> None:
    project.write({**MINIMAL, "chunking": {"max_token": "sk-secret"}})
    with pytest.raises(ComponentTreeException) as caught:
        dg.ComponentTree.for_project(project.folder).load_root_component()
    assert isinstance(caught.value.__cause__, YamlMistakeError)
    lines = str(caught.value.__cause__).splitlines()
    assert lines[0].endswith(
        "docs/defs.yaml:3: chunking.max_token is no setting. Did you mean max_tokens?"
    )
    assert "strategy, max_tokens, overlap, context." in lines[1]
    assert "By default 256." in lines[-1]
    assert len(lines) <= 5
    assert "secret" not in "\n".join(lines)


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


@pytest.mark.parametrize("folder", ["100%done", "[old]", "%Y", "a*b?"])
def test_the_name_of_a_folder_that_is_there_means_just_that(project: Project, folder: str) -> None:
    for place in (project.beside / folder, project.beside / "1001one", project.beside / "o"):
        place.mkdir()
        (place / "a.jsonl").write_text(f'{{"id": "{place.name}", "text": "b"}}')
    for path in (f"{folder}/*.jsonl", f"{folder}/*", folder, f"{project.beside}/{folder}/*.jsonl"):
        source = project.load({"name": "docs", "source": {"path": path}}).source.build()
        (found,) = source.read()
        assert isinstance(found, Document)
        assert found.id == folder
        assert source.period_of(found.file) is None


@pytest.mark.parametrize("name", ["100%done", "[work]"])
def test_a_project_may_lie_in_a_folder_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / name))
    project = Project(tmp_path / name)
    for place in (project.folder / "2024", project.beside / "notes"):
        place.mkdir()
        (place / "a.jsonl").write_text('{"id": "a", "text": "b"}')
    for path in ("%Y/*.jsonl", "**/2024/*.jsonl", "notes/*.jsonl"):
        source = project.load({"name": "docs", "source": {"path": path}}).source.build()
        assert len(list(source.read())) == 1
        (file,) = source.files()
        period = source.period_of(file.path)
        assert (period and period[0].year) == (2024 if "%Y" in path else None)


def test_where_nothing_is_found_it_is_told_that_a_sign_stands_for_a_time(project: Project) -> None:
    source = project.load({"name": "docs", "source": {"path": "100%done/*.jsonl"}}).source.build()
    with pytest.raises(SourceNotFoundError, match=r"%d stands for a part of a time; .* \[%\]"):
        source.files()


def test_a_template_in_a_path_is_checked_when_it_is_filled_in(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHIVE", "s4://bucket")
    source = {"path": "{{ env.ARCHIVE }}/*.jsonl"}
    assert "source.path begins with s4://" in project.error({"name": "docs", "source": source})


def test_a_start_in_the_running_period_is_not_in_the_future() -> None:
    today = datetime.now(timezone.utc).date()
    last_day = today.replace(month=12, day=31).isoformat()
    settings = PartitionSettings(by="year", start=last_day)
    assert partitions_definition(settings).get_partition_keys() == [str(today.year)]
    today_only = PartitionSettings(by="day", start=today.isoformat())
    assert partitions_definition(today_only).get_partition_keys()[0] == today.isoformat()


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
