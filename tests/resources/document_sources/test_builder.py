"""From a record to a document: ids, titles, timestamps and metadata."""

import json
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from resources.document_sources import Document, FieldNames, RefusalReason
from resources.document_sources.timestamps import parse_timestamp
from tests.support.documents import UTC, document, jsonl, read, refusal


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a", "a"),
        (" a\n", "a"),
        ("e\u0301", "é"),
        (0, "0"),
        (-5, "-5"),
        (12.0, "12"),
        ("x" * 1024, "x" * 1024),
    ],
)
def test_ids_are_non_empty_strings_or_integers(tmp_path: Path, raw: Any, expected: str):
    assert document(jsonl(tmp_path, {"id": raw, "text": "x"})).id == expected


@pytest.mark.parametrize(
    "raw", [None, "", " \u2003", True, False, 1.5, 1e22, [], {}, ["a"], "x" * 1025, "\ufb2c" * 1024]
)
def test_anything_else_is_no_id(tmp_path: Path, raw: Any):
    found = refusal(jsonl(tmp_path, {"id": raw, "text": "x"}))
    assert (found.reason, found.document_id) == (RefusalReason.no_id, None)


def test_a_missing_id_field_is_told_with_the_fields_that_are_there(tmp_path: Path):
    found = refusal(jsonl(tmp_path, {"_id": "a", "body": "x"}))
    assert "'id'" in found.detail
    assert "'_id', 'body'" in found.detail


@pytest.mark.parametrize("raw", [None, "", " \r\n\t", "\ufeff", 5, True, ["x"], {"a": "x"}])
def test_no_text_is_refused(tmp_path: Path, raw: Any):
    found = refusal(jsonl(tmp_path, {"id": "a", "text": raw}))
    assert (found.reason, found.document_id) == (RefusalReason.empty_text, "a")


def test_a_title_may_be_a_number_and_what_is_no_title_stays_in_the_metadata(tmp_path: Path):
    found = jsonl(
        tmp_path,
        {"id": 1, "title": 1984, "text": "x"},
        {"id": 2, "title": ["a"], "text": "x"},
        {"id": 3, "title": None, "text": "x"},
    )
    assert [(d.title, d.metadata) for d in found if isinstance(d, Document)] == [
        ("1984", "{}"),
        ("", '{"title":["a"]}'),
        ("", "{}"),
    ]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("2020-01-02", datetime(2020, 1, 2)),
        ("20200102", datetime(2020, 1, 2)),
        ("2020-01-02T03:04:05", datetime(2020, 1, 2, 3, 4, 5)),
        ("2020-01-02 03:04:05.123", datetime(2020, 1, 2, 3, 4, 5, 123000)),
        ("2020-01-02T03:04:05Z", datetime(2020, 1, 2, 3, 4, 5)),
        (" 2020-01-02T03:04:05+02:00 ", datetime(2020, 1, 2, 1, 4, 5)),
        ("2020-01-02T03:04:05.123456789Z", datetime(2020, 1, 2, 3, 4, 5, 123456)),
        ("2020-W01-4", datetime(2020, 1, 2)),
        ("0001-01-01", datetime(1, 1, 1)),
        (0, datetime(1970, 1, 1)),
        (-86400, datetime(1969, 12, 31)),
        (1577836800, datetime(2020, 1, 1)),
        (1577836800.5, datetime(2020, 1, 1, microsecond=500000)),
        (1577836800000, datetime(2020, 1, 1)),
        (1577836800000000, datetime(2020, 1, 1)),
        (1577836800000000000, datetime(2020, 1, 1)),
        ("1577836800", datetime(2020, 1, 1)),
        (date(2020, 1, 2), datetime(2020, 1, 2)),
        (datetime(2020, 1, 2, tzinfo=timezone(timedelta(hours=1))), datetime(2020, 1, 1, 23)),
    ],
)
def test_timestamps_come_out_in_utc(raw: Any, expected: datetime):
    found = parse_timestamp(raw)
    assert found == expected.replace(tzinfo=UTC)
    assert found.tzinfo is UTC


@pytest.mark.parametrize(
    "raw",
    [
        None,
        "",
        "yesterday",
        "2020-13-01",
        "2020-02-30",
        "٢٠٢٠-٠١-٠١",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-01:00",
        "9" * 5000,
        True,
        [],
        {},
        1e18 * 1e18,
        -100_000_000_000,
        9_223_372_036_854_775_807_000,
    ],
)
def test_an_unusable_timestamp_is_refused(tmp_path: Path, raw: Any):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"id": "a", "text": "x", "when": raw}) + "\n")
    found = refusal(read(path, fields=FieldNames(timestamp="when")))
    assert (found.reason, found.document_id) == (RefusalReason.no_timestamp, "a")


def test_the_timestamp_is_not_repeated_in_the_metadata_unless_it_is_not_declared(tmp_path: Path):
    record = {"id": "a", "text": "x", "when": "2020-01-02"}
    declared = document(jsonl(tmp_path, record, fields=FieldNames(timestamp="when")))
    assert (declared.timestamp, declared.metadata) == (datetime(2020, 1, 2, tzinfo=UTC), "{}")
    undeclared = document(jsonl(tmp_path, record))
    assert (undeclared.timestamp, undeclared.metadata) == (None, '{"when":"2020-01-02"}')
