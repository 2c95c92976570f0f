"""Collections load apart from each other: a broken one is told of, and the others work."""

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click.testing
import dagster as dg
import pytest
from dagster_dg_cli.cli import create_dg_cli
from typer.testing import CliRunner

import embedding_assets as ea
from embedding_assets.cli.main import app
from embedding_assets.collection.mistakes import YamlMistakeError
from embedding_assets.component import EmbeddingCollection
from embedding_assets.project import load_collections, project_definitions
from tests.support.instance import instance_in_memory
from tests.support.pipeline import write_jsonl
from tests.support.project import Project

HEAD = "type: embedding_assets.EmbeddingCollection\nattributes:\n"
BROKEN = {
    f"{HEAD}  name: docs\n  suorce: {{path: x}}\n": ["defs.yaml:4: suorce is", "mean source?"],
    f"{HEAD}  name: docs\n  source: {{path: ' '}}\n": ["defs.yaml:4: source.path must name a file"],
    f"{HEAD}  name: docs\n  source: {{path: x\n": ["defs.yaml:5: ", "','", "begins in line 4"],
    f"{HEAD}\tname: docs\n": ["defs.yaml:3: ", "'\\t'", "not with tabs"],
    f"{HEAD}  name: docs\n  source: {{path: '{{{{ env.'}}\n": ["{{ }} holds no template"],
    f"{HEAD}  name: docs\n  source: {{path: x}}\n  source: {{fields: {{id: a}}}}\n": [
        "defs.yaml:5: source is there twice, first in line 4",
    ],
    "type: embedding_assets.EmbeddingColection\n": ["mean embedding_assets.EmbeddingCollection?"],
    "typ: embedding_assets.EmbeddingCollection\n": ["defs.yaml:1: typ is no", "mean type?"],
    "type: embedding_assets.EmbeddingCollection\n": ["defs.yaml:1: name is missing", "source is"],
    "": ["defs.yaml: No components found in YAML file"],
}


@pytest.fixture
def good(project: Project) -> Project:
    """With a collection that is as it should be."""
    source = write_jsonl(project.folder / "good.jsonl", [{"id": "a", "text": "A cat sleeps."}])
    fields = {"path": str(source), "fields": {"timestamp": None}}
    project.write(
        {"name": "good", "source": fields, "partitions": {"by": "bucket", "count": 1}}, "team/good"
    )
    return project


def not_loaded(definitions: dg.Definitions) -> list[dg.AssetSpec]:
    specs = definitions.resolve_all_asset_specs()
    return [spec for spec in specs if spec.key.path[0] == "not_loaded"]


@pytest.mark.parametrize("content", BROKEN, ids=repr)
def test_a_broken_collection_is_told_of_in_a_sentence_and_the_others_are_there(
    good: Project, content: str
) -> None:
    good.write(content)
    definitions = project_definitions()
    (entry,) = not_loaded(definitions)
    assert entry.key.path == ["not_loaded", "docs"]
    assert entry.description is not None
    for part in BROKEN[content]:
        assert part in entry.description
    (sentence,) = broken_ones()
    assert len(sentence.splitlines()) <= 5
    assert sentence in entry.description
    sensors = {sensor.name for sensor in definitions.get_repository_def().sensor_defs}
    assert sensors == {"good_source", "good_reconcile", "good_report", "not_loaded_docs"}


def test_asset_and_sensor_of_a_broken_collection_fail_with_its_sentence(good: Project) -> None:
    good.write(next(iter(BROKEN)))
    definitions = project_definitions()
    (sentence,) = broken_ones()
    repository = definitions.get_repository_def()
    sensor = repository.get_sensor_def("not_loaded_docs")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    with instance_in_memory() as instance:
        with (
            dg.build_sensor_context(instance, repository_def=repository) as context,
            pytest.raises(ea.EmbeddingAssetsError) as caught,
        ):
            sensor.evaluate_tick(context)
        assert str(caught.value) == sentence
        run = materialize(definitions, ["not_loaded", "docs"], instance)
        assert not run.success
        (failure,) = [event for event in run.all_node_events if event.is_step_failure]
        assert failure.step_failure_data.error is not None
        assert sentence in failure.step_failure_data.error.message


def broken_ones() -> list[str]:
    return load_collections().broken


def materialize(
    definitions: dg.Definitions, key: list[str], instance: dg.DagsterInstance
) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        [definitions.resolve_assets_def(dg.AssetKey(key))],
        instance=instance,
        partition_key="bucket_0" if key[0] == "good" else None,
        raise_on_error=False,
    )


def test_asset_sensor_and_schedule_of_the_others_work_while_one_is_broken_and_it_too_when_mended(
    good: Project,
) -> None:
    good.write(f"{HEAD}  name: docs\n  source: {{pth: {good.folder}/good.jsonl}}\n")
    definitions = project_definitions()
    with instance_in_memory() as instance:
        repository = definitions.get_repository_def()
        with dg.build_sensor_context(
            instance, repository_def=repository, resources=definitions.resources
        ) as context:
            tick = repository.get_sensor_def("good_source").evaluate_tick(context)
            assert [request.partition_key for request in tick.run_requests or []] == ["bucket_0"]
        now = datetime.now(timezone.utc)
        with dg.build_schedule_context(
            instance, repository_def=repository, scheduled_execution_time=now
        ) as context:
            (schedule,) = repository.schedule_defs
            assert schedule.evaluate_tick(context).run_requests
        assert materialize(definitions, ["good", "documents"], instance).success
    good.write(f"{HEAD}  name: docs\n  source: {{path: {good.folder}/good.jsonl}}\n")
    mended = project_definitions()
    assert not not_loaded(mended)
    assert mended.resolve_assets_def(dg.AssetKey(["docs", "documents"]))


def test_definitions_are_made_once_until_a_file_or_a_variable_changes(
    good: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = project_definitions()
    assert project_definitions() is first
    monkeypatch.setenv("ANY_VARIABLE", "of which a template may speak")
    second = project_definitions()
    assert second is not first
    assert project_definitions() is second
    good.write(f"{HEAD}  name: new\n  source: {{path: {good.folder}/good.jsonl}}\n", "new")
    third = project_definitions()
    assert third.resolve_assets_def(dg.AssetKey(["new", "documents"]))
    (good.beside.parent / "new" / "defs.yaml").unlink()
    assert dg.AssetKey(["new", "documents"]) not in project_definitions().resolve_all_asset_keys()


def test_whoever_names_a_collection_waits_for_no_other_file(
    good: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"  source: {{path: {good.folder}/good.jsonl}}\n"
    good.write(f"{HEAD}  name: other\n{source}", "other")
    good.write(f"{HEAD}  name: broken\n  suorce: {{path: x}}\n", "broken")
    looked_into = []
    load = EmbeddingCollection.load

    def counted(attributes: Any, context: dg.ComponentLoadContext) -> EmbeddingCollection:
        looked_into.append(context.path.name)
        return load(attributes, context)

    monkeypatch.setattr(EmbeddingCollection, "load", counted)
    assert ea.open("good").name == "good"
    assert looked_into == ["good"]
    with pytest.raises(ea.EmbeddingAssetsError, match=r"(?s)no collection 'broken'.*good.*suorce"):
        ea.open("broken")
    assert {*looked_into} == {"good", "other", "broken"}


def test_one_of_several_collections_of_a_file_may_be_broken(good: Project) -> None:
    first = f"{HEAD}  name: first\n  source: {{path: x}}\n"
    good.write(f"{first}---\n{HEAD}  name: docs\n  source: {{pth: x}}\n")
    assert list(ea.collections()) == ["first", "good"]
    assert len(not_loaded(project_definitions())) == 1
    good.write(f"{first}post_processing: {{assets: [{{traget: '*'}}]}}\n")
    (entry,) = not_loaded(project_definitions())
    assert "post_processing.assets" in str(entry.description)


def test_what_is_no_collection_and_broken_stops_no_collection_either(good: Project) -> None:
    (good.beside.parent / "mine.py").write_text("import nowhere_to_be_found\n")
    (entry,) = not_loaded(project_definitions())
    assert "mine.py: ModuleNotFoundError: No module named 'nowhere_to_be_found'" in str(
        entry.description
    )
    assert list(ea.collections()) == ["good"]


def test_of_two_collections_of_one_name_none_is_loaded_and_both_files_are_named(
    good: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"name": "docs", "source": {"path": "x"}}
    files = [good.write(settings, folder) for folder in ("a-b", "a_b")]
    entries = not_loaded(project_definitions())
    assert len({entry.key for entry in entries}) == 2
    (sentence,) = broken_ones()
    assert all(sentence in str(entry.description) for entry in entries)
    assert all(str(file) in sentence for file in files)
    assert list(ea.collections()) == ["good"]
    monkeypatch.setenv("DAGSTER_IS_DEFS_VALIDATION_CLI", "1")
    with pytest.raises(YamlMistakeError) as caught:
        project_definitions()
    assert str(caught.value) == sentence


def test_commands_that_look_for_errors_say_the_same_of_all_files_at_once(
    good: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, content in enumerate(BROKEN):
        good.write(content, f"broken_{number}")
    sentences = broken_ones()
    assert len(sentences) == len(BROKEN)
    monkeypatch.setenv("DAGSTER_IS_DEFS_VALIDATION_CLI", "1")
    with pytest.raises(YamlMistakeError) as caught:
        project_definitions()
    assert str(caught.value) == "\n\n".join(sorted(sentences))


def test_commands_that_look_for_errors_show_where_in_the_code_one_arose_that_is_not_in_yaml(
    good: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    (good.beside.parent / "mine.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.setenv("DAGSTER_IS_DEFS_VALIDATION_CLI", "1")
    with pytest.raises(ModuleNotFoundError):
        project_definitions()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("defs", "docs/defs.yaml:4: suorce is no setting. Did you mean source?"),
        ("yaml", "Additional properties are not allowed ('suorce' was unexpected)"),
    ],
)
def test_dg_check_says_what_is_wrong(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: str,
    said: str,
) -> None:
    with (project.folder / "pyproject.toml").open("a") as config:
        config.write('code_location_target_module = "embedding_assets.definitions"\n')
    project.write(f"{HEAD}  name: docs\n  suorce: {{path: x}}\n")
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("DAGSTER_IS_DEFS_VALIDATION_CLI", "1")  # as dg does, but not for good
    result = click.testing.CliRunner().invoke(create_dg_cli(), ["check", command])
    assert result.exit_code == 1
    assert said in result.output + capfd.readouterr().err


def test_on_the_command_line_the_others_work_and_the_broken_one_is_told_of_in_a_sentence(
    good: Project, model_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = good.folder / "data"
    data.mkdir()
    (data / "models").symlink_to(model_cache)
    monkeypatch.setenv("EMBEDDING_DATA_DIR", str(data))
    good.write(f"{HEAD}  name: docs\n  suorce: {{path: x}}\n")
    definitions = project_definitions()
    with instance_in_memory() as instance:
        for asset in ("documents", "deduplicated_chunks", "embeddings", "vector_index"):
            assert materialize(definitions, ["good", asset], instance).success

    runner = CliRunner()
    found = runner.invoke(app, ["search", "kitten", "-c", "good"])
    assert found.exit_code == 0
    assert "A cat sleeps." in found.output
    assert "suorce" not in found.output
    assert "suorce" not in runner.invoke(app, ["collections", "--json"]).stdout
    broken = runner.invoke(app, ["search", "kitten", "-c", "docs"])
    assert broken.exit_code == 1
    assert "Collections: good.\nNot loaded: " in broken.output
    assert "defs.yaml:4: suorce is no setting. Did you mean source?" in broken.output
    others = runner.invoke(app, ["search", "kitten"])
    assert others.exit_code == 0
    assert "A cat sleeps." in others.stdout
    assert "defs.yaml:4: suorce is no setting. Did you mean source?" in others.stderr
