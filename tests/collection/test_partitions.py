"""Documents fall into the partitions in which Dagster itself would put them."""

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from embedding_assets.collection.partitions import partition_of, partitions_definition, periods
from embedding_assets.collection.settings import PartitionSettings
from resources.document_sources import Document
from tests.support.pipeline import Pipeline, checks, numbers, write_jsonl

UTC = timezone.utc


def _document(timestamp: datetime | None, document_id: str = "d") -> Document:
    return Document(document_id, "", "text", timestamp, "{}", "a.jsonl", 1)


def _boundaries(definition: dg.TimeWindowPartitionsDefinition) -> list[datetime]:
    keys = definition.get_partition_keys()
    windows = [definition.time_window_for_partition_key(key) for key in [*keys[:60], *keys[-60:]]]
    return [moment for w in windows for moment in (w.start, w.end - timedelta(microseconds=1))]


@pytest.mark.parametrize("by", ["day", "week", "month", "year"])
def test_every_instant_belongs_to_dagsters_own_partition(by: Any) -> None:
    settings = PartitionSettings(by=by, start="2019-02-27")
    definition = partitions_definition(settings)
    assert isinstance(definition, dg.TimeWindowPartitionsDefinition)
    key_of = partition_of(settings)
    offsets = [timezone(timedelta(hours=h)) for h in (-11, 0, 5.5, 14)]
    for moment in _boundaries(definition):
        window = definition.time_window_for_partition_key(key_of(_document(moment)))
        assert window.start <= moment < window.end  # half-open
        assert window.start.utcoffset() == timedelta(0)
        for offset in offsets:
            assert key_of(_document(moment.astimezone(offset))) == key_of(_document(moment))


@pytest.mark.parametrize("by", ["day", "week", "month", "year"])
def test_the_current_period_is_a_partition_and_the_next_is_not(by: Any) -> None:
    settings = PartitionSettings(by=by, start="2024-12-31")
    now = datetime.now(UTC)
    keys = partitions_definition(settings).get_partition_keys()
    assert keys[-1] == partition_of(settings)(_document(now))
    assert keys[0] == partition_of(settings)(_document(datetime(2024, 12, 31, tzinfo=UTC)))
    assert len(keys) == len(set(keys))


def test_weeks_begin_on_monday_and_periods_are_half_open_in_utc() -> None:
    definition = partitions_definition(PartitionSettings(by="week", start="2024-01-04"))
    assert definition.get_partition_keys()[0] == "2024-01-01"
    assert periods(definition, ["2024-01-08"]) == [
        (datetime(2024, 1, 8, tzinfo=UTC), datetime(2024, 1, 15, tzinfo=UTC))
    ]


@pytest.mark.parametrize("count", [1, 3, 16, 100])
def test_buckets_depend_on_the_id_alone_and_are_about_equally_full(count: int) -> None:
    settings = PartitionSettings(by="bucket", count=count)
    definition = partitions_definition(settings)
    keys = definition.get_partition_keys()
    assert len(keys) == count
    assert keys == sorted(keys)
    assert periods(definition, keys) is None
    found = [partition_of(settings)(_document(None, f"document {i}")) for i in range(200 * count)]
    assert set(found) == set(keys)
    assert max(map(found.count, keys)) < 2 * 200
    again = partition_of(settings)(_document(datetime(2020, 1, 1, tzinfo=UTC), "document 0"))
    assert again == found[0]


def test_the_bucket_of_an_id_never_changes_between_versions_of_this_project() -> None:
    key_of = partition_of(PartitionSettings(by="bucket", count=16))
    assert [key_of(_document(None, i)) for i in ("pep-0008", "a", "世界")] == [
        "bucket_00",
        "bucket_00",
        "bucket_14",
    ]


def _dated(document_id: str, created: str) -> dict[str, str]:
    return {"id": document_id, "created": created, "text": f"The text of {document_id}."}


def test_documents_on_a_boundary_and_with_offsets_are_stored_in_the_partition_of_their_utc_time(
    tmp_path: Path,
) -> None:
    expected = {
        "start": ("2026-08-01T00:00:00Z", "2026-08"),
        "before": ("2026-07-31T23:59:59.999999Z", "2026-07"),
        "west": ("2026-07-31T20:00:00-05:00", "2026-08"),
        "east": ("2026-08-01T02:00:00+05:30", "2026-07"),
        "naive": ("2026-08-01 00:00:00", "2026-08"),
        "date": ("2026-07-31", "2026-07"),
    }
    source = write_jsonl(
        tmp_path / "a.jsonl", [_dated(key, when) for key, (when, _) in expected.items()]
    )
    settings = {
        "source": {"fields": {"timestamp": "created"}},
        "partitions": {"by": "month", "start": "2026-06-15"},
    }
    pipeline = Pipeline(tmp_path, str(source), settings=settings)
    assert all(checks(pipeline.run("2026-06", "2026-08")).values())
    assert {row["document_id"]: row["partition"] for row in pipeline.rows()} == {
        key: month for key, (_, month) in expected.items()
    }


def test_documents_outside_all_partitions_are_quarantined_not_lost(tmp_path: Path) -> None:
    records = [
        _dated("ancient", "1066-10-14"),
        _dated("before", "2023-12-31T23:59:59Z"),
        _dated("in", "2024-01-01"),
        _dated("future", "2999-01-01"),
        _dated("now", datetime.now(UTC).isoformat()),
    ]
    source = write_jsonl(tmp_path / "a.jsonl", records)
    settings = {
        "source": {"fields": {"timestamp": "created"}},
        "partitions": {"by": "year", "start": "2024-01-01"},
    }
    pipeline = Pipeline(tmp_path, str(source), settings=settings)
    assert all(checks(pipeline.run()).values())
    assert {row["document_id"] for row in pipeline.rows()} == {"in", "now"}
    assert {(q["document_id"], q["reason"], q["line"]) for q in pipeline.quarantine()} == {
        ("ancient", "outside_partitions", 1),
        ("before", "outside_partitions", 2),
        ("future", "outside_partitions", 4),
    }
    pipeline.run("2024")
    assert {q["attempts"] for q in pipeline.quarantine()} == {2}


def test_a_source_path_with_dates_is_read_for_the_wanted_partitions_only(tmp_path: Path) -> None:
    for month in (6, 7, 8):
        write_jsonl(
            tmp_path / "archive" / "2026" / f"{month:02d}" / "a.jsonl",
            [_dated(f"d{month}", f"2026-{month:02d}-15")],
        )
    broken = tmp_path / "archive" / "2026" / "08" / "b.jsonl.gz"
    broken.write_bytes(b"not gzip: whoever reads this file says so")
    settings = {
        "source": {"fields": {"timestamp": "created"}},
        "partitions": {"by": "month", "start": "2026-06-01"},
    }
    pipeline = Pipeline(tmp_path, f"{tmp_path}/archive/%Y/%m/*.jsonl*", settings=settings)
    result = pipeline.run("2026-06", "2026-07")
    assert all(checks(result).values())
    (accounting,) = [
        e for e in result.get_asset_check_evaluations() if e.check_name == "accounting"
    ]
    assert accounting.metadata["read"].value == 2
    assert {row["document_id"] for row in pipeline.rows()} == {"d6", "d7"}
    assert pipeline.quarantine() == []

    assert checks(pipeline.run("2026-08"))["accounting"] is False
    assert {row["document_id"] for row in pipeline.rows()} == {"d6", "d7", "d8"}
    unread = pipeline.quarantine()
    assert [(q["reason"], q["file"]) for q in unread] == [("broken_file", "2026/08/b.jsonl.gz")]
    # A run that does not read the broken file neither forgets nor counts it.
    pipeline.run("2026-06")
    assert pipeline.quarantine() == unread
    broken.unlink()
    pipeline.run("2026-06")
    assert pipeline.quarantine() == []


def test_a_document_of_another_time_than_its_files_name_is_quarantined_whatever_is_run(
    tmp_path: Path,
) -> None:
    archive = tmp_path / "archive"
    write_jsonl(archive / "2026-06.jsonl", [_dated("june", "2026-06-30T23:59:59Z")])
    write_jsonl(
        archive / "2026-07.jsonl", [_dated("july", "2026-07-31"), _dated("stray", "2026-08-01")]
    )
    settings = {
        "source": {"fields": {"timestamp": "created"}},
        "partitions": {"by": "month", "start": "2026-06-01"},
    }
    pipeline = Pipeline(tmp_path, f"{archive}/%Y-%m.jsonl", settings=settings)
    for first, last in (("2026-06", "2026-08"), ("2026-08", "2026-08"), ("2026-07", "2026-07")):
        assert all(checks(pipeline.run(first, last)).values())
        assert {row["document_id"] for row in pipeline.rows()} == {"june", "july"}
        (refused,) = pipeline.quarantine()
        assert (refused["document_id"], refused["reason"]) == ("stray", "outside_file_period")
        assert (refused["file"], refused["line"]) == ("2026-07.jsonl", 2)


def test_a_period_without_any_file_is_an_empty_partition(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "archive" / "2026-06.jsonl", [_dated("d6", "2026-06-15")])
    settings = {
        "source": {"fields": {"timestamp": "created"}},
        "partitions": {"by": "month", "start": "2026-06-01"},
    }
    pipeline = Pipeline(tmp_path, f"{tmp_path}/archive/%Y-%m.jsonl", settings=settings)
    result = pipeline.run("2026-06", "2026-07")
    assert all(checks(result).values())
    assert numbers(result, "documents")["documents"] == 1
    assert json.loads(pipeline.documents()[0]["metadata"]) == {}
