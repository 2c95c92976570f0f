"""A fallback to another model never mixes its vectors with the primary's, and is undone later."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from embedding_assets.collection.settings import CollectionSettings
from embedding_assets.embeddings.canaries import CANARIES, SpaceDriftError
from embedding_assets.retrieval.fusion import fuse_rankings
from embedding_assets.retrieval.search import IndexReader
from resources import errors
from resources.embedders.base import Embedder, EmbeddingBatch, Role
from resources.embedders.local import LocalEmbedder
from resources.embedders.local_model import device_workers
from resources.embedders.local_model.device_workers import WorkerSettings
from resources.errors import EmbeddingError
from resources.identity.embedding_space import EmbeddingSpace
from tests.support.fakes import CountingEmbedder, fake_vector
from tests.support.instance import instance_in_memory
from tests.support.pipeline import (
    Pipeline,
    checks,
    numbers,
    per_partition,
    sentences,
    write_jsonl,
)

YEARS = ("2021", "2022", "2023")


class Faulty(CountingEmbedder):
    """Fails for texts that hold `fails_at`, and for all once it has embedded `fails_after`."""

    fails_at: str = ""
    fails_after: int = 1_000_000
    error: str = "EmbedderUnavailableError"
    switch: str = ""
    """A file; while it is there, the embedder works."""

    def embed(self, texts: Sequence[str], role: Role = "document") -> EmbeddingBatch:
        fails = self.fails_at and any(self.fails_at in text for text in texts)
        if (fails or len(self.texts) >= self.fails_after) and not Path(self.switch).exists():
            raise getattr(errors, self.error)("nobody answers")
        return super().embed(texts, role)


class Drifting(CountingEmbedder):
    """Another model behind the same name, once the file `switch` is there."""

    switch: str = ""

    def embed(self, texts: Sequence[str], role: Role = "document") -> EmbeddingBatch:
        batch = super().embed(texts, role)
        if not Path(self.switch).exists():
            return batch
        return EmbeddingBatch(np.roll(batch.vectors, 1, axis=1), batch.tokens, batch.tokens * 0)


class Flaky(CountingEmbedder):
    """Returns a broken vector for a canary, until the file `switch` is there."""

    switch: str = ""

    def embed(self, texts: Sequence[str], role: Role = "document") -> EmbeddingBatch:
        batch = super().embed(texts, role)
        if tuple(texts) == CANARIES and not Path(self.switch).exists():
            batch.vectors[2] = np.nan
        return batch


class SameModelElsewhere(CountingEmbedder):
    @property
    def space(self) -> EmbeddingSpace:
        return EmbeddingSpace("another server", self.model, "", self.dimension, 256, True)


def documents() -> list[dict[str, Any]]:
    """Three documents a year; each of several chunks, none of which equals another's."""
    return [
        {
            "id": f"{year}-{number}",
            "title": f"Report {year}-{number}",
            "created": f"{year}-06-0{number + 1}",
            "text": "\n\n".join(
                f"Paragraph {part} of report {number} of {year}. " + f"word{part} " * 120
                for part in range(3)
            ),
        }
        for year in YEARS
        for number in range(3)
    ]


def make(folder: Path, primary: Embedder, **options: Any) -> Pipeline:
    source = write_jsonl(folder / "source.jsonl", documents())
    settings = {
        "source": {"fields": {"timestamp": "created"}},
        "partitions": {"by": "year", "start": "2021-01-01"},
        "embedder": {"flush_size": 1},
        **options.pop("settings", {}),
    }
    return Pipeline(folder, str(source), embedder=primary, settings=settings, **options)


def content(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(str(value) for value in row.values()) for row in rows]


def assert_spaces_are_apart(pipeline: Pipeline) -> None:
    """Every document is in one table as a whole, and each vector is that table's model's."""
    assert pipeline.fallback is not None
    seen: dict[str, int] = {}
    for place, embedder in enumerate((pipeline.embedder, pipeline.fallback)):
        for row in pipeline.rows(embedder):
            assert seen.setdefault(row["document_id"], place) == place
            expected = fake_vector(row["context"] + row["text"], embedder.space.dimension)
            np.testing.assert_allclose(row["vector"], expected, atol=1e-6)
    assert len(seen) == len(documents())


def test_a_primary_that_fails_half_way_is_stood_in_for_and_comes_back_by_itself(tmp_path):
    undisturbed = make(tmp_path / "undisturbed", CountingEmbedder())
    undisturbed.run("2021", "2023")
    chunks = Counter(row["partition"] for row in undisturbed.rows())

    switch = tmp_path / "works again"
    all_but_one = chunks["2021"] + chunks["2022"] - 1
    primary = Faulty(fails_after=all_but_one, switch=str(switch))
    fallback = CountingEmbedder(model="other", dimension=16)
    settings = {"fallback": {"model": "other"}, "checks": {"max_fallback_share": 0.1}}
    pipeline = make(tmp_path / "run", primary, fallback=fallback, settings=settings)
    first = pipeline.run("2021", "2023")

    assert_spaces_are_apart(pipeline)
    in_fallback = {(row["partition"], row["document_id"]) for row in pipeline.rows(fallback)}
    assert Counter(year for year, _ in in_fallback) == {"2022": 1, "2023": 3}
    result = checks(first)
    assert not result["fallback_share"]
    assert "more than 10% (checks.max_fallback_share)" in sentences(first)["fallback_share"]
    assert result["completeness"]
    assert result["vector_integrity"]
    told = per_partition(first, "embeddings")
    assert [told[year].get("fallback_vectors", 0) > 0 for year in YEARS] == [False, True, True]
    for metadata in told.values():
        assert metadata["cache_misses"] == (
            metadata["embedded"] + metadata["errors"] + metadata.get("left_to_fallback", 0)
        )

    switch.touch()
    second = pipeline.run("2021", "2023")
    assert checks(second)["fallback_share"]
    assert pipeline.rows(fallback) == []
    assert content(pipeline.rows()) == content(undisturbed.rows())
    assert len(primary.texts) == sum(chunks.values()), (
        "what was embedded before is not embedded again"
    )
    assert not list((tmp_path / "run" / "artifacts").rglob("fallback_vectors.parquet"))


def test_texts_that_the_fallback_refuses_are_errors_too(tmp_path):
    primary = Faulty(fails_after=0, switch=str(tmp_path / "never"))
    other = {"model": "other", "dimension": 16}
    fallback = Faulty(
        fails_at="report 1 of 2021", error="TextError", switch=primary.switch, **other
    )
    settings = {"fallback": {"model": "other"}}
    pipeline = make(tmp_path, primary, fallback=fallback, settings=settings)
    result = pipeline.run("2021", "2021")
    refused = {(row["document_id"], row["detail"]) for row in pipeline.embedding_quarantine()}
    assert {document for document, _ in refused} == {"2021-1"}
    assert {row["document_id"] for row in pipeline.rows(fallback)} == {"2021-0", "2021-2"}
    assert per_partition(result, "embeddings")["2021"]["fallback_errors"] == len(refused)
    assert not checks(result)["error_rate"]


def searchable(pipeline: Pipeline, embedder: Embedder, fallback: Embedder) -> IndexReader:
    resources = replace(pipeline.opened.resources, embedder=embedder, fallback=fallback)
    return IndexReader(pipeline.name, resources)


def test_the_old_model_as_fallback_of_a_new_one_is_searched_before_the_new_one_has_run(tmp_path):
    old = CountingEmbedder(model="old")
    pipeline = make(tmp_path, old)
    pipeline.run("2021", "2022")
    new = CountingEmbedder(model="new")
    index = searchable(pipeline, new, old)
    row = pipeline.rows(old)[0]
    hits = index.search(row["context"] + row["text"], 4)
    assert hits[0].chunk_id == row["chunk_id"]
    assert new.texts == []


def test_while_documents_are_in_two_spaces_search_asks_both_and_fuses_the_ranks(tmp_path):
    primary = Faulty(fails_at="of 2022", switch=str(tmp_path / "works again"))
    fallback = CountingEmbedder(model="other", dimension=16)
    pipeline = make(tmp_path, primary, fallback=fallback, settings={"fallback": {"model": "other"}})
    pipeline.run("2021", "2022")
    (tmp_path / "works again").touch()
    index = searchable(pipeline, primary, fallback)
    assert [e.space.model for e in index.embedders()] == ["fake", "other"]
    row = pipeline.rows(fallback)[0]
    hits = index.search(row["context"] + row["text"], 4)
    assert hits[0].chunk_id == row["chunk_id"] or hits[1].chunk_id == row["chunk_id"]
    assert {hit.partition for hit in hits[:2]} == {"2021", "2022"}


def test_a_document_that_moved_out_of_the_fallback_is_not_brought_back_by_its_old_partition(
    tmp_path,
):
    switch = tmp_path / "works again"
    primary = Faulty(fails_at="of 2022", switch=str(switch))
    fallback = CountingEmbedder(model="other", dimension=16)
    settings = {"fallback": {"model": "other"}}
    pipeline = make(tmp_path, primary, fallback=fallback, settings=settings)
    pipeline.run("2021", "2023")
    records = documents()
    (moving,) = (record for record in records if record["id"] == "2022-1")
    moving["created"] = "2023-06-09"
    write_jsonl(tmp_path / "source.jsonl", records)
    switch.touch()
    pipeline.run("2023")
    before = content(pipeline.rows()), content(pipeline.rows(fallback))
    pipeline.run("2022", assets=["vector_index"])
    assert_spaces_are_apart(pipeline)
    assert (content(pipeline.rows()), content(pipeline.rows(fallback))) == before


def test_ranks_are_fused_by_reciprocal_rank():
    assert fuse_rankings([["a", "b", "c"], ["b", "d"]]) == ["b", "a", "d", "c"]
    assert fuse_rankings([["a", "b"]]) == ["a", "b"]


@pytest.mark.parametrize(
    ("error", "when"),
    [("EmbedderUnavailableError", ["out_of_memory"]), ("ModelError", ["unavailable"])],
)
def test_failures_for_which_no_fallback_was_declared_end_the_run(tmp_path, error, when):
    primary = Faulty(fails_at="of 2021", error=error, switch=str(tmp_path / "never"))
    pipeline = make(
        tmp_path,
        primary,
        fallback=CountingEmbedder(model="other"),
        settings={"fallback": {"model": "other", "when": when}},
    )
    with pytest.raises(EmbeddingError, match="nobody answers"):
        pipeline.run("2021")


def test_no_fallback_takes_over_from_an_embedder_with_wrong_settings_and_no_run_is_repeated(
    tmp_path,
):
    primary = Faulty(fails_at="of 2021", error="SettingsError", switch=str(tmp_path / "never"))
    fallback = CountingEmbedder(model="other")
    pipeline = make(tmp_path, primary, fallback=fallback, settings={"fallback": {"model": "other"}})
    with pytest.raises(dg.Failure) as caught:
        pipeline.run("2021")
    assert caught.value.description == "nobody answers"
    assert not caught.value.allow_retries


NO_MEMORY = """
import pathlib, torch

real = torch.nn.functional.linear

def linear(*arguments, **options):
    if pathlib.Path({switch!r}).exists():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    return real(*arguments, **options)

torch.nn.functional.linear = linear
"""


@pytest.mark.slow
@pytest.mark.parametrize("when_loading", [True, False])
def test_a_fallback_for_want_of_memory_takes_over_from_a_device_that_has_none(
    when_loading, tmp_path, monkeypatch
):
    switch, project = tmp_path / "memory is full", Path(errors.__file__).parents[1]
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "sitecustomize.py").write_text(NO_MEMORY.format(switch=str(switch)))
    device = {"device A": {"PYTHONPATH": f"{tmp_path / 'device'}{os.pathsep}{project}"}}
    monkeypatch.setattr(device_workers, "visible_gpus", lambda: device)
    monkeypatch.setattr(
        device_workers,
        "WorkerSettings",
        lambda files, space, _, *rest: WorkerSettings(files, space, "cpu", *rest),
    )
    primary = LocalEmbedder(model_cache=str(tmp_path / "models"), device="cuda")
    fallback = CountingEmbedder(model="other")
    settings = {"fallback": {"model": "other", "when": ["out_of_memory"]}}
    pipeline = make(tmp_path, primary, fallback=fallback, settings=settings)
    if not when_loading:
        pipeline.run("2021")
    switch.touch()
    assert pipeline.run("2022").success
    assert {row["partition"] for row in pipeline.rows(fallback)} == {"2022"}
    assert {row["partition"] for row in pipeline.rows()} == (set() if when_loading else {"2021"})
    assert not pipeline.embedding_quarantine()


def test_a_fallback_in_the_same_space_writes_into_it_once_it_has_proved_to_be_the_same(tmp_path):
    primary = Faulty(fails_at="of 2022", switch=str(tmp_path / "never"))
    fallback = SameModelElsewhere()
    pipeline = make(
        tmp_path,
        primary,
        fallback=fallback,
        settings={"fallback": {"model": "fake", "same_space": True}},
    )
    result = pipeline.run("2021", "2022")
    assert {row["partition"] for row in pipeline.rows()} == {"2021", "2022"}
    assert "left_to_fallback" not in numbers(result, "embeddings")
    assert checks(result)["fallback_share"]
    assert fallback.texts


def test_a_fallback_that_only_claims_to_be_the_same_space_writes_nothing(tmp_path):
    primary = Faulty(fails_at="of 2022", switch=str(tmp_path / "never"))
    (tmp_path / "drift").touch()
    fallback = Drifting(switch=str(tmp_path / "drift"))
    pipeline = make(
        tmp_path,
        primary,
        fallback=fallback,
        settings={"fallback": {"model": "fake", "same_space": True}},
    )
    with pytest.raises(SpaceDriftError, match="same_space: false"):
        pipeline.run("2021", "2022")
    assert fallback.texts == []
    pipeline.run("2021")  # what was embedded before is not lost
    assert {row["partition"] for row in pipeline.rows()} == {"2021"}


def test_a_model_that_changed_behind_its_name_fails_a_check_before_a_vector_is_written(tmp_path):
    switch = tmp_path / "drift"
    pipeline = make(tmp_path, Drifting(switch=str(switch)))
    first = pipeline.run("2021")
    assert checks(first)["space_drift"]
    rows = content(pipeline.rows())
    entries = pipeline.cache.statistics()[0].entries

    switch.touch()
    with instance_in_memory() as instance:
        failed = pipeline.run("2021", "2022", instance=instance, raise_on_error=False)
        assert not failed.success
        (record,) = instance.all_logs(
            failed.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION
        )[-1:]
        assert record.dagster_event is not None
        evaluation = record.dagster_event.asset_check_evaluation_data
        assert (evaluation.check_name, evaluation.passed) == ("space_drift", False)
    assert content(pipeline.rows()) == rows
    assert pipeline.cache.statistics()[0].entries == entries

    switch.unlink()
    assert checks(pipeline.run("2021", "2022"))["space_drift"]


def test_who_shares_the_cache_is_held_to_the_same_canaries(tmp_path):
    switch = tmp_path / "the provider changed the model"
    first = make(tmp_path / "here", Drifting(switch=str(switch)))
    first.run("2021", "2021")
    switch.touch()
    second = make(tmp_path / "there", Drifting(switch=str(switch)))
    for file in (tmp_path / "here").glob("cache.duckdb*"):
        shutil.copy(file, tmp_path / "there")
    with pytest.raises(SpaceDriftError):
        second.run("2021", "2022")
    switch.unlink()
    assert checks(second.run("2021", "2022"))["space_drift"]
    with second.artifacts.reading(f"canaries/{second.embedder.space.id}.parquet") as path:
        assert pq.read_metadata(path).num_rows == len(CANARIES)


def test_a_broken_first_canary_ends_the_run_and_is_not_held_against_the_next(tmp_path):
    switch = tmp_path / "well again"
    pipeline = make(tmp_path, Flaky(switch=str(switch)))
    with pytest.raises(EmbeddingError, match="broken vector"):
        pipeline.run("2021", "2021")
    assert pipeline.cache.statistics() == []
    switch.touch()
    assert pipeline.run("2021", "2021").success
    assert checks(pipeline.run("2022", "2022"))["space_drift"]


def test_a_run_with_nothing_to_embed_does_not_ask_the_model_for_canaries(tmp_path):
    switch = tmp_path / "drift"
    pipeline = make(tmp_path, Drifting(switch=str(switch)))
    pipeline.run("2021")
    switch.touch()  # would fail if the model was asked
    assert checks(pipeline.run("2021"))["space_drift"]


def test_canaries_are_stored_with_their_space(tmp_path):
    pipeline = make(tmp_path, CountingEmbedder())
    pipeline.run("2021")
    (file,) = (tmp_path / "artifacts" / "canaries").iterdir()
    assert file.stem == pipeline.embedder.space.id
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    assert tuple(table["text"].to_pylist()) == CANARIES
    assert json.loads(table.schema.metadata[b"space"])["model"] == "fake"


def test_a_fallback_for_no_failure_at_all_is_refused():
    with pytest.raises(ValidationError, match="when"):
        CollectionSettings.model_validate(
            {"name": "x", "source": {"path": "y"}, "fallback": {"model": "z", "when": []}}
        )
