"""`embedding-assets collections` and `drop-index`: indexes of models, in use or not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embedding_assets import api, project
from embedding_assets.cli.main import app
from resources.errors import ModelError
from resources.identity.embedding_space import EmbeddingSpace
from tests.support.fakes import CountingEmbedder
from tests.support.pipeline import Pipeline, write_jsonl


@pytest.fixture
def with_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pipeline]:
    """Gives the collection another model, and optionally the old one as its fallback."""
    records = [{"id": str(number), "text": f"Text {number}."} for number in range(8)]
    source = write_jsonl(tmp_path / "source.jsonl", records)

    def change(model: str, fallback: str = "", name: str = "corpus") -> Pipeline:
        settings = {"partitions": {"by": "bucket", "count": 4}}
        pipeline = Pipeline(
            tmp_path,
            str(source),
            name=name,
            embedder=CountingEmbedder(model=model),
            fallback=CountingEmbedder(model=fallback) if fallback else None,
            settings=settings | ({"fallback": {"model": fallback}} if fallback else {}),
        )
        opened = pipeline.opened
        loaded = project.LoadedCollections([(opened.settings, opened.resources)], [])
        monkeypatch.setattr(project, "load_collections", lambda *_: loaded)
        return pipeline

    return change


def _collections() -> list[tuple[str, int, str]]:
    result = CliRunner().invoke(app, ["collections", "--json"])
    assert result.exit_code == 0, result.output
    return [(row["model"], row["chunks"], row["use"]) for row in json.loads(result.stdout)]


def test_the_index_of_an_old_model_is_listed_and_can_be_removed(
    with_model: Callable[..., Pipeline],
) -> None:
    old = with_model("old")
    old.run()
    new = with_model("new")
    assert _collections() == [("old", 8, "none"), ("new", 0, "search")]
    new.run()
    runner = CliRunner()
    in_use = runner.invoke(app, ["drop-index", "corpus", new.embedder.space.id])
    assert in_use.exit_code == 1
    assert "uses new" in in_use.output
    assert "no index" in runner.invoke(app, ["drop-index", "corpus", "0" * 16]).output
    removed = runner.invoke(app, ["drop-index", "corpus", old.embedder.space.id])
    assert "Removed 8 chunks of old" in removed.output
    assert _collections() == [("new", 8, "search")]


def test_with_the_old_model_as_fallback_every_document_is_found_while_the_new_one_takes_over(
    with_model: Callable[..., Pipeline],
) -> None:
    with_model("old").run()
    pipeline = with_model("new", fallback="old")
    assert pipeline.partitions is not None
    for partition in pipeline.partitions.get_partition_keys():
        pipeline.run(partition)
        new, old = pipeline.rows(), pipeline.rows(pipeline.fallback)
        assert sorted(row["document_id"] for row in new + old) == [str(n) for n in range(8)]
    assert _collections() == [("old", 0, "fallback"), ("new", 8, "search")]


def test_the_index_of_a_renamed_collection_is_listed_without_a_use_and_can_be_removed(
    with_model: Callable[..., Pipeline],
) -> None:
    old = with_model("model", name="old_name")
    old.run()
    new = with_model("model", name="new_name")
    new.run()
    runner = CliRunner()
    listed = json.loads(runner.invoke(app, ["collections", "--json"]).stdout)
    assert [(row["collection"], row["source"], row["chunks"], row["use"]) for row in listed] == [
        ("new_name", new.source, 8, "search"),
        ("old_name", None, 8, "none"),
    ]
    space = old.embedder.space.id
    assert "uses model" in runner.invoke(app, ["drop-index", "new_name", space]).output
    assert "no index" in runner.invoke(app, ["drop-index", "nowhere", space]).output
    removed = runner.invoke(app, ["drop-index", "old_name", space])
    assert "Removed 8 chunks of model from 'old_name'." in removed.output
    assert _collections() == [("model", 8, "search")]
    assert len(new.rows()) == 8


def test_while_a_collection_cannot_be_loaded_no_index_is_taken_for_unused(
    with_model: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = with_model("model", name="old_name")
    old.run()
    broken = project.LoadedCollections([], ["defs.yaml: a typo"])
    monkeypatch.setattr(project, "load_collections", lambda *_: broken)
    monkeypatch.setenv("EMBEDDING_VECTORS", old.store.uri)
    runner = CliRunner()
    listed = runner.invoke(app, ["collections", "--json"])
    assert [row["use"] for row in json.loads(listed.stdout)] == ["unknown"]
    assert "Not loaded: defs.yaml: a typo" in listed.stderr
    refused = runner.invoke(app, ["drop-index", "old_name", old.embedder.space.id])
    assert refused.exit_code == 1
    assert "could not be loaded: defs.yaml: a typo" in refused.output
    assert len(old.rows()) == 8


def test_a_model_that_is_not_there_hides_no_other_collection(
    with_model: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unknown(CountingEmbedder):
        @property
        def space(self) -> EmbeddingSpace:
            raise ModelError("no model of that name")

    good, bad = with_model("model", name="good"), with_model("model", name="bad")
    good.run()
    bad.run()
    opened = [
        good.opened,
        api.Collection(bad.collection, replace(bad.opened.resources, embedder=Unknown())),
    ]
    both = project.LoadedCollections([(one.settings, one.resources) for one in opened], [])
    monkeypatch.setattr(project, "load_collections", lambda *_: both)
    listed = CliRunner().invoke(app, ["collections", "--json"])
    assert [(row["collection"], row["use"]) for row in json.loads(listed.stdout)] == [
        ("bad", "unknown"),
        ("good", "search"),
    ]
    assert "The model of 'bad' is not known: no model of that name" in listed.stderr
