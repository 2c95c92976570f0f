"""A plan says what a run then does, and leaves no trace."""

import json
import logging
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from typer.testing import CliRunner

from embedding_assets.cli import plan as cli
from embedding_assets.cli.main import app
from embedding_assets.operations.plan import Plan, plan
from embedding_assets.project import LoadedCollections
from resources.embedders.pricing import Price
from tests.support.fakes import CountingEmbedder
from tests.support.instance import instance_in_memory
from tests.support.pipeline import Pipeline, numbers, per_partition, write_jsonl

SHARED = "A paragraph that two documents of different buckets have in common."
FIRST = [{"id": str(n), "text": f"Document number {n} of the corpus."} for n in range(40)]
BUCKETS = {"partitions": {"by": "bucket", "count": 4}}


class PricedEmbedder(CountingEmbedder):
    @property
    def price(self) -> Price:
        return Price(1_000.0)


def planned(pipeline: Pipeline, instance: dg.DagsterInstance | None = None) -> Plan:
    assert pipeline.partitions is not None
    keys = pipeline.partitions.get_partition_keys()
    log = logging.getLogger("test")
    return plan(pipeline.collection, pipeline.opened.resources, keys, instance, log)


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    source = write_jsonl(tmp_path / "corpus.jsonl", FIRST)
    return Pipeline(tmp_path, str(source), embedder=PricedEmbedder(), settings=dict(BUCKETS))


def change(pipeline: Pipeline) -> None:
    """One document changed, one deleted, six of the same text added, one refused."""
    added = [{"id": f"new {n}", "text": SHARED} for n in range(6)]
    write_jsonl(
        Path(pipeline.source),
        [{"id": "0", "text": "Another text."}, *FIRST[2:], *added, {"id": "bad", "text": " "}],
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / "artifacts").rglob("*"))
        if path.is_file()
    }


def test_a_plan_has_the_numbers_of_the_run_that_follows(pipeline: Pipeline) -> None:
    for _ in range(2):
        found = planned(pipeline)
        result = pipeline.run()
        for asset in ("documents", "deduplicated_chunks"):
            for partition, metadata in per_partition(result, asset).items():
                assert partition is not None
                if asset == "documents":
                    assert metadata.pop("quarantined_of_no_partition", 0) == found.unplaced
                    assert ("refused" in metadata) == bool(found.refused)
                metadata.pop("refused", None)
                for name, value in metadata.items():
                    if name.startswith("dagster/"):  # the same under a name that Dagster shows
                        continue
                    rounded = pytest.approx(value, abs=1e-4)
                    assert found.partitions[partition][name] == rounded, (partition, name)
        embedded = numbers(result, "embeddings")
        assert found.texts == embedded["embedded"]
        assert found.dollars == found.tokens / 1_000 > 0
        change(pipeline)


def test_what_two_partitions_lack_is_counted_once(pipeline: Pipeline) -> None:
    pipeline.run()
    change(pipeline)
    found = planned(pipeline)
    assert sum(n["cache_misses"] for n in found.partitions.values()) > 2, "of several buckets"
    assert found.texts == 2
    assert found.unplaced == 1
    total = {
        name: sum(n[name] for n in found.partitions.values())
        for name in ("added", "changed", "deleted")
    }
    assert total == {"added": 6, "changed": 1, "deleted": 1}


def test_a_plan_changes_nothing_and_embeds_nothing(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.run()
    change(pipeline)
    embedder = pipeline.embedder
    assert isinstance(embedder, PricedEmbedder)
    before, rows, embedded = snapshot(tmp_path), pipeline.rows(), len(embedder.texts)
    assert planned(pipeline) == planned(pipeline)
    assert snapshot(tmp_path) == before
    assert pipeline.rows() == rows
    assert len(embedder.texts) == embedded


def test_time_is_told_from_the_speed_of_the_last_runs(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert planned(pipeline, instance_in_memory()).seconds is None
    monkeypatch.setattr(
        "embedding_assets.operations.plan.last_throughputs", lambda *_: [10.0, 20.0, 60.0]
    )
    found = planned(pipeline, instance_in_memory())
    assert found.seconds == found.tokens / 20


@pytest.fixture
def loaded(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    loaded = LoadedCollections([(pipeline.collection, pipeline.opened.resources)], [])
    monkeypatch.setattr("embedding_assets.project.load_collections", lambda *_: loaded)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return pipeline


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["plan", *arguments])


def test_the_command_shows_what_there_is_to_do(loaded: Pipeline) -> None:
    first = command()
    assert first.exit_code == 0, first.output
    assert "Something to do in each of the 4 partitions." in first.output
    assert "To embed: 40 texts" in first.output
    assert "known after the first run" in " ".join(first.output.split())
    loaded.run()
    second = command("corpus")
    assert "Nothing to do in any of the 4 partitions." in second.output
    assert "To embed: 0 texts, 0 tokens." in second.output


def test_the_command_shows_what_would_be_withheld_and_what_somebody_agreed_to(
    loaded: Pipeline, tmp_path: Path
) -> None:
    loaded.run()
    write_jsonl(Path(loaded.source), FIRST[:4])
    before = snapshot(tmp_path)
    shown = " ".join(command().output.split())
    assert "36 of the 40 known documents of corpus.jsonl are gone (90%)" in shown
    assert "`embedding-assets accept corpus --partition bucket_0...bucket_3`" in shown
    assert snapshot(tmp_path) == before
    found = planned(loaded)
    assert sum(n.get("deletions_withheld", 0) for n in found.partitions.values()) == 36

    loaded.run(assets=["documents"])
    assert loaded.opened.withheld() == {
        p: n["deletions_withheld"] for p, n in found.partitions.items()
    }
    loaded.opened.accept_deletions(None)
    agreed = planned(loaded)
    assert sum(n["deleted"] for n in agreed.partitions.values()) == 36
    assert agreed.withheld == ""
    assert "withheld until" not in command().output


@pytest.mark.usefixtures("loaded")
def test_the_command_gives_json_and_takes_a_range() -> None:
    found = json.loads(command("corpus", "bucket_1...bucket_2", "--json").stdout)
    assert list(found["partitions"]) == ["bucket_1", "bucket_2"]
    assert found["texts"] == sum(n["cache_misses"] for n in found["partitions"].values())
    assert list(json.loads(command("corpus", "bucket_3", "--json").stdout)["partitions"])
    wrong = command("corpus", "bucket_1...bucket_9")
    assert wrong.exit_code == 1
    assert "no partition 'bucket_9'; they run from bucket_0 to bucket_3" in wrong.output
    turned = command("corpus", "bucket_2...bucket_1")
    assert turned.exit_code == 1
    assert "'bucket_2...bucket_1' ends before it begins" in turned.output


def test_costs_name_what_is_known() -> None:
    def costs(**values: Any) -> str:
        return cli._costs(Plan(partitions={}, unplaced=0, texts=1, **values))

    takes = "; embedding alone takes "
    assert costs(tokens=10, dollars=0.5, seconds=61.0) == f", $0.5000{takes}about 61 s"
    assert costs(tokens=10, dollars=0.0, seconds=0.2) == f"{takes}less than a second"
    assert costs(tokens=0, dollars=0.0, seconds=0.0) == ""
