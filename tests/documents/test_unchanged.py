"""Partitions whose files are as they were are not read again, and only those."""

import logging
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from embedding_assets.collection.collection import CollectionAssets
from embedding_assets.collection.settings import CollectionSettings
from embedding_assets.documents import unchanged
from embedding_assets.documents.ingest import Ingest
from embedding_assets.documents.source_state import SourceState
from embedding_assets.documents.unchanged import listing_marks
from resources.document_sources import FileDocumentSource, SourceFile
from tests.support.pipeline import Pipeline, checks, numbers, per_partition, write_jsonl

TRUSTING = {"read_unchanged_files": False}
BUCKETS = {"source": TRUSTING, "partitions": {"by": "bucket", "count": 4}}
MONTHS = {
    "source": {**TRUSTING, "fields": {"timestamp": "created"}},
    "partitions": {"by": "month", "start": "2026-06-01"},
}


@pytest.fixture
def fine_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were just written are trusted, as on a storage whose clock never stands still."""
    monkeypatch.setattr(unchanged, "_CLOCK_TICK", timedelta(0))


def _records(count: int, word: str = "number") -> list[dict[str, Any]]:
    return [{"id": f"d{i}", "text": f"The document with the {word} {i}."} for i in range(count)]


def _write_with_refusals(path: Path) -> None:
    """Of 22 records one is malformed, which is of no partition, and one has a known id."""
    write_jsonl(path, _records(20))
    with path.open("a") as file:
        file.write("no json\n" + '{"id": "d0", "text": "A later one."}\n')


def _pipeline(folder: Path, settings: dict[str, Any]) -> Pipeline:
    return Pipeline(folder, str(folder / "source"), settings=dict(settings))


def _unread(result: Any) -> tuple[Any, Any]:
    """Records that were read, and partitions that were not read again."""
    (accounting,) = [
        e for e in result.get_asset_check_evaluations() if e.check_name == "accounting"
    ]
    metadata = accounting.metadata
    return metadata["read"].value, metadata["partitions_not_read_again"].value


@pytest.mark.usefixtures("fine_clock")
def test_files_that_are_as_they_were_are_not_read_again(tmp_path: Path) -> None:
    _write_with_refusals(tmp_path / "source" / "a.jsonl")
    pipeline = _pipeline(tmp_path, BUCKETS)
    first = pipeline.run()
    assert _unread(first) == (22, 0)
    before, documents = pipeline.rows(), pipeline.documents()
    refused = pipeline.quarantine()
    assert len(refused) == 2
    quarantined = numbers(first, "documents")["quarantined"]

    again = pipeline.run()
    assert _unread(again) == (0, 4)
    assert all(checks(again).values())
    found = numbers(again, "documents")
    assert {k: found[k] for k in ("documents", "added", "changed", "unchanged", "deleted")} == {
        "documents": 20, "added": 0, "changed": 0, "unchanged": 20, "deleted": 0,
    }  # fmt: skip
    assert found["quarantined"] == quarantined == 1
    assert (pipeline.rows(), pipeline.documents(), pipeline.quarantine()) == (
        before, documents, refused,
    )  # fmt: skip


@pytest.mark.usefixtures("fine_clock")
def test_a_change_is_seen_though_size_and_time_are_as_before(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "source" / "a.jsonl", _records(20))
    pipeline = _pipeline(tmp_path, BUCKETS)
    pipeline.run()
    before = path.stat()
    write_jsonl(path, _records(20, "figure"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert numbers(pipeline.run(), "documents")["changed"] == 20
    assert {"figure" in row["text"] for row in pipeline.rows()} == {True}


@pytest.mark.usefixtures("fine_clock")
def test_a_change_behind_a_link_is_seen(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "elsewhere" / "a.jsonl", _records(20))
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.jsonl").symlink_to(path)
    pipeline = _pipeline(tmp_path, BUCKETS)
    pipeline.run()
    assert _unread(pipeline.run()) == (0, 4)
    before = path.stat()
    write_jsonl(path, _records(20, "figure"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert numbers(pipeline.run(), "documents")["changed"] == 20


def test_a_file_that_was_just_written_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unchanged, "_CLOCK_TICK", timedelta(hours=1))
    write_jsonl(tmp_path / "source" / "a.jsonl", _records(20))
    pipeline = _pipeline(tmp_path, BUCKETS)
    pipeline.run()
    monkeypatch.setattr(unchanged, "_CLOCK_TICK", timedelta(0))
    assert _unread(pipeline.run()) == (20, 0)
    assert _unread(pipeline.run()) == (0, 4)


@pytest.mark.usefixtures("fine_clock")
def test_what_is_not_as_it_was_is_read(tmp_path: Path) -> None:
    """Another setting, another file, a lost artifact, and a user who wants it."""
    write_jsonl(tmp_path / "source" / "a.jsonl", _records(20))
    pipeline = _pipeline(tmp_path, BUCKETS)
    pipeline.run()
    settings = {**BUCKETS, "source": {**TRUSTING, "max_document_bytes": 1_000}}
    assert _unread(_pipeline(tmp_path, settings).run()) == (20, 0)
    settings = {**BUCKETS, "source": {"read_unchanged_files": True}}
    assert _unread(_pipeline(tmp_path, settings).run()) == (20, 0)

    pipeline.run()
    pipeline.artifacts.remove("corpus/documents/bucket_2/documents.parquet")
    found = pipeline.run()
    assert _unread(found) == (20, 3)
    assert {p for p, own in per_partition(found, "documents").items() if own["added"]} == {
        "bucket_2"
    }
    write_jsonl(tmp_path / "source" / "b.jsonl", [{"id": "new", "text": "A new document."}])
    found = pipeline.run()
    assert _unread(found) == (21, 0)
    assert numbers(found, "documents")["added"] == 1


@pytest.mark.usefixtures("fine_clock")
def test_a_broken_file_is_read_until_it_is_whole(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "source" / "a.jsonl", _records(20))
    (tmp_path / "source" / "b.jsonl.gz").write_bytes(b"no gzip")
    pipeline = _pipeline(tmp_path, BUCKETS)
    for _ in range(2):
        result = pipeline.run()
        assert checks(result)["accounting"] is False
        assert _unread(result) == (21, 0)
    (tmp_path / "source" / "b.jsonl.gz").unlink()
    assert _unread(pipeline.run()) == (20, 0)
    assert _unread(pipeline.run()) == (0, 4)


@pytest.mark.usefixtures("fine_clock")
def test_partitions_with_withheld_deletions_are_read_until_somebody_agrees(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "source" / "a.jsonl", _records(20))
    pipeline = _pipeline(tmp_path, BUCKETS)
    pipeline.run(assets=["documents"])
    write_jsonl(path, _records(1))
    for _ in range(2):
        result = pipeline.run(assets=["documents"])
        assert checks(result)["accounting"] is False
        assert _unread(result) == (1, 0)
    pipeline.opened.accept_deletions(None)
    result = pipeline.run(assets=["documents"])
    assert numbers(result, "documents")["deleted"] == 19
    assert checks(result)["accounting"]
    assert _unread(pipeline.run(assets=["documents"])) == (0, 4)


@pytest.mark.usefixtures("fine_clock")
def test_of_a_source_with_dates_only_the_changed_period_is_read(tmp_path: Path) -> None:
    archive = tmp_path / "archive"

    def write(month: int, text: str) -> None:
        record = {"id": f"d{month}", "text": text, "created": f"2026-{month:02d}-15"}
        write_jsonl(archive / f"2026-{month:02d}.jsonl", [record])

    for month in (6, 7, 8):
        write(month, "As it was.")
    (archive / "2026-07.jsonl").open("a").write("no json\n")
    pipeline = Pipeline(tmp_path, f"{archive}/%Y-%m.jsonl", settings=dict(MONTHS))
    for month in ("2026-06", "2026-07"):  # alone or in a range, the marks are the same
        pipeline.run(month)
    assert _unread(pipeline.run("2026-06", "2026-08")) == (1, 2)
    write(8, "Changed.")
    found = pipeline.run("2026-06", "2026-08")
    assert _unread(found) == (1, 2)
    assert per_partition(found, "documents")["2026-08"]["changed"] == 1
    refused = pipeline.quarantine()
    assert [(q["file"], q["reason"]) for q in refused] == [("2026-07.jsonl", "malformed_line")]

    # What is known of a file that is gone goes, though nothing else is read.
    (archive / "2026-07.jsonl").unlink()
    assert _unread(pipeline.run("2026-06")) == (0, 1)
    assert pipeline.quarantine() == []


@pytest.mark.usefixtures("fine_clock")
def test_a_run_that_is_stopped_loses_no_refusal(tmp_path: Path) -> None:
    """No partition counts as read before the refusals of the run are written down."""
    _write_with_refusals(tmp_path / "source" / "a.jsonl")
    pipeline = _pipeline(tmp_path, BUCKETS)
    collection = CollectionAssets(pipeline.collection)

    class Stopped(Exception):
        pass

    def stop(finished: dict[str, Any]) -> None:
        if "bucket_3" in finished:
            raise Stopped

    source = FileDocumentSource(path=pipeline.source)
    keys = collection.partitions.get_partition_keys()
    arguments = (collection, source, pipeline.artifacts, keys)
    with pytest.raises(Stopped):
        Ingest(*arguments, stop, logging.getLogger()).run()
    found = Ingest(*arguments, lambda _: None, logging.getLogger()).run()
    assert found.unread_partitions == 4
    assert sorted(q["reason"] for q in pipeline.quarantine()) == ["duplicate_id", "malformed_line"]


_NOON = datetime(2026, 6, 15, 12, tzinfo=timezone.utc)


def _file(path: str, **given: Any) -> SourceFile:
    details = {"size": 1, "modified": _NOON, "etag": None, **given}
    return SourceFile(path=path, location=f"/x/{path}", **details)


def _settings(path: str) -> CollectionSettings:
    source = {"path": path, "fields": {"timestamp": "created"}}
    partitions = {"by": "month", "start": "2026-01-01"}
    return CollectionSettings.model_validate(
        {"name": "corpus", "source": source, "partitions": partitions}
    )


def _state(path: str) -> SourceState:
    return SourceState(FileDocumentSource(path=path), _settings(path).partitions)


def _marks(path: str, listing: list[SourceFile], partitions: list[str]) -> dict[str, str]:
    later = _NOON + timedelta(days=900)
    return dict(listing_marks(listing, partitions, _state(path), _settings(path), later))


@pytest.mark.parametrize("placeholders", ["%Y", "%Y-%m", "%Y-%m-%d", "%Y-%m-%dT%H", "all"])
def test_a_mark_tells_exactly_the_files_that_are_read_for_the_partition(
    placeholders: str,
) -> None:
    path = f"/x/{placeholders}.jsonl"
    times = [datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(hours=37 * i) for i in range(99)]
    names = dict.fromkeys(f"{time:{placeholders}}.jsonl" for time in times)
    listing = [_file(name) for name in names]
    partitions = [f"2026-{month:02d}" for month in range(1, 9)]
    state = _state(path)
    before = _marks(path, listing, partitions)
    assert list(before) == partitions
    for place in range(0, len(listing), 7):
        changed = [*listing]
        changed[place] = _file(listing[place].path, size=2)
        after = _marks(path, changed, partitions)
        touched = {p for p in partitions if state.is_read_for(p, listing[place].path)}
        assert {p for p in partitions if before[p] != after[p]} == touched


@pytest.mark.parametrize(
    ("details", "trusted"),
    [
        ({}, True),
        ({"modified": None}, False),
        ({"modified": None, "etag": "v1"}, True),
        ({"modified": _NOON + timedelta(days=900, seconds=-1)}, False),
        ({"modified": _NOON + timedelta(days=900, seconds=-1), "etag": "v1"}, True),
        ({"etag": f"ctime {(_NOON + timedelta(days=900, seconds=-1)).timestamp()}"}, False),
        ({"etag": f"ctime {_NOON.timestamp()}"}, True),
        ({"problem": "not a regular file"}, False),
    ],
)
def test_a_file_is_trusted_if_the_storage_would_tell_a_change(
    details: dict[str, Any], trusted: bool
) -> None:
    listing = [_file("2026-02.jsonl", **details), _file("2026-03.jsonl")]
    found = _marks("/x/%Y-%m.jsonl", listing, ["2026-02", "2026-03"])
    assert ("2026-02" in found, "2026-03" in found) == (trusted, True)
    # A file that is read for all partitions speaks for all.
    found = _marks("/x/*.jsonl", listing, ["2026-02", "2026-03"])
    assert ("2026-02" in found, "2026-03" in found) == (trusted, trusted)
