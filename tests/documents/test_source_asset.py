"""The source stands before `documents`, with what was last seen of it."""

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from embedding_assets.automation.source_sensor import SourceTick
from embedding_assets.collection.collection import CollectionAssets
from embedding_assets.documents.numbers import SourceFiles
from resources.document_sources import FileDocumentSource, SourceFile
from tests.support.instance import instance_in_memory
from tests.support.pipeline import Pipeline, write_jsonl

KEY = dg.AssetKey(["corpus_source"])
RECORDS = [{"id": "1", "text": "one"}, {"id": "2", "text": "two", "created": "2024-05-01"}]


def seen(observation: object) -> dict[str, Any]:
    assert isinstance(observation, dg.AssetObservation)
    assert observation.asset_key == KEY
    return {name: entry.value for name, entry in observation.metadata.items()}


def test_a_run_that_reads_the_source_tells_what_is_there_and_one_that_does_not_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedding_assets.documents.unchanged._CLOCK_TICK", timedelta(0))
    files = [write_jsonl(tmp_path / "docs" / f"{n}.jsonl", [RECORDS[n]]) for n in range(2)]
    settings = {"partitions": {"count": 2}, "source": {"read_unchanged_files": False}}
    pipeline = Pipeline(tmp_path, str(tmp_path / "docs"), settings=settings)

    def observations(instance: dg.DagsterInstance) -> list[dict[str, Any]]:
        records = instance.fetch_observations(KEY, limit=10).records
        return [seen(r.asset_observation) for r in records if r.asset_observation]

    with instance_in_memory() as instance:
        pipeline.run(assets=["documents"], instance=instance)
        (one,) = observations(instance)
        assert one == {
            "files": 2,
            "dagster/size_bytes": sum(file.stat().st_size for file in files),
            "newest_file": pytest.approx(max(file.stat().st_mtime for file in files)),
        }
        pipeline.run(assets=["documents"], instance=instance)
        assert len(observations(instance)) == 1
        write_jsonl(tmp_path / "docs" / "2.jsonl", [{"id": "3", "text": "three"}])
        pipeline.run(assets=["documents"], instance=instance)
        assert [told["files"] for told in observations(instance)] == [3, 2]


def test_a_run_that_lists_the_files_of_its_own_periods_does_not_pass_them_for_the_source(
    tmp_path: Path,
) -> None:
    write_jsonl(tmp_path / "docs" / "2024" / "a.jsonl", [RECORDS[1]])
    settings: dict[str, Any] = {
        "partitions": {"by": "year", "start": "2024-01-01"},
        "source": {"fields": {"timestamp": "created"}},
    }
    pipeline = Pipeline(tmp_path, str(tmp_path / "docs" / "%Y" / "*.jsonl"), settings=settings)
    with instance_in_memory() as instance:
        assert pipeline.run("2024", assets=["documents"], instance=instance).success
        assert not instance.fetch_observations(KEY, limit=10).records


def test_the_sensor_tells_of_each_list_of_files_once(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "docs" / "a.jsonl", RECORDS)
    pipeline = Pipeline(tmp_path, str(tmp_path / "docs"), settings={"partitions": {"count": 2}})
    tick = SourceTick(
        CollectionAssets(pipeline.collection),
        pipeline.resources["corpus_source"],
        pipeline.artifacts,
    )
    first = tick.evaluate(None)
    assert isinstance(first, dg.SensorResult)
    assert [seen(event)["files"] for event in first.asset_events] == [1]
    again = tick.evaluate(first.cursor)
    assert isinstance(again, dg.SkipReason)
    write_jsonl(tmp_path / "docs" / "b.jsonl", RECORDS)
    second = tick.evaluate(first.cursor)
    assert isinstance(second, dg.SensorResult)
    assert [seen(event)["files"] for event in second.asset_events] == [2]


@pytest.mark.parametrize(
    ("path", "address", "kinds"),
    [
        ("/a b/*.jsonl.gz", "file:///a%20b", {"json"}),
        ("/archive/%Y/*.md", "file:///archive", {"markdown"}),
        ("/archive", "file:///archive", {"file"}),
        ("/archive/a.csv", "file:///archive/a.csv", {"csv"}),
        ("s3://bucket/archive/**/*.parquet", "s3://bucket/archive", {"parquet", "s3"}),
        ("gs://bucket/%Y/*.txt", "gs://bucket", {"text", "gcs"}),
    ],
)
def test_the_source_says_where_it_is_and_of_what_kind(
    path: str, address: str, kinds: set[str]
) -> None:
    source = FileDocumentSource(path=path)
    assert source.address == address
    assert source.kinds == kinds


def test_the_newest_time_is_that_of_the_storage() -> None:
    time = datetime(2024, 5, 1, tzinfo=timezone.utc)
    files = [SourceFile("a", "a", 3, time, None), SourceFile("b", "b", None, None, None)]
    assert SourceFiles.of(files) == SourceFiles(2, 3, time)
    assert SourceFiles.of([]) == SourceFiles(0, 0, None)
