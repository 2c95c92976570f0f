"""From a record to a document: ids, titles, timestamps and metadata."""

import json
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from resources.document_sources import Document, FieldNames, RefusalReason
from resources.document_sources.timestamps import TimestampUnit, parse_timestamp
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


@pytest.mark.parametrize("field", ["id", "title", "text"])
def test_nul_is_never_stored_as_text(tmp_path: Path, field: str):
    found = refusal(jsonl(tmp_path, {"id": "a", "title": "T", "text": "x", field: "N\0U"}))
    assert found.reason is RefusalReason.nul_character
    assert "source.encoding" in found.detail


def test_fields_inside_others_are_reached_by_their_path(tmp_path: Path):
    fields = FieldNames(id="_id.$oid", title="meta.title", text="body.en.text", timestamp="meta.at")
    nested = {
        "_id": {"$oid": "5f"},
        "meta": {"title": "T", "at": "2020-01-02", "lang": "en"},
        "body": {"en": {"text": "x", "words": 1}, "fr": {}},
    }
    found = document(jsonl(tmp_path, nested, fields=fields))
    assert (found.id, found.title, found.text) == ("5f", "T", "x")
    assert found.timestamp == datetime(2020, 1, 2, tzinfo=UTC)
    assert found.metadata == '{"body":{"en":{"words":1},"fr":{}},"meta":{"lang":"en"}}'
    flat = {"_id.$oid": "flat", "_id": {"$oid": "nested"}, "body": {"en": {"text": "x"}}}
    found = document(jsonl(tmp_path, flat, fields=fields.model_copy(update={"timestamp": None})))
    assert (found.id, found.metadata) == ("flat", '{"_id":{"$oid":"nested"}}')


@pytest.mark.parametrize("meta", [None, 5, ["uuid"], {"uuid": {"x": "y"}}, {"other": "a"}])
def test_a_path_that_leads_nowhere_is_refused_with_the_paths_that_are_there(
    tmp_path: Path, meta: Any
):
    record = {"text": "x", "meta": meta, "nested": {"uid": "a"}}
    found = refusal(jsonl(tmp_path, record, fields=FieldNames(id="meta.uuid")))
    assert found.reason is RefusalReason.no_id
    assert "'meta.uuid'" in found.detail
    if not isinstance(meta, dict) or "uuid" not in meta:
        assert "'nested.uid'" in found.detail


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (
            {"Id": 1, "text": "x"},
            "no field 'id' (did you mean 'Id'? set source.fields.id); the record has: 'Id', 'text'",
        ),
        ({"_id": "a", "body": "x"}, "no field 'id' (did you mean '_id'? set source.fields.id)"),
        (
            {"meta": {"id": "a", "by": "b"}, "text": "x"},
            "no field 'id' (did you mean 'meta.id'? set source.fields.id)",
        ),
        ({"doc_id": 1, "text": "x"}, "no field 'id' (did you mean 'doc_id'? set source.fields.id)"),
        (
            {"key": 1, "text": "x"},
            "no field 'id' (set source.fields.id); the record has: 'key', 'text'",
        ),
        ({"id": None, "text": "x"}, "field 'id' is null; the record has: 'id', 'text'"),
        ({"id": 1, "Text": "x"}, "no field 'text' (did you mean 'Text'? set source.fields.text)"),
        (
            {"id": 1, "text": "x", "created": 1},
            "no field 'created_at' (did you mean 'created'? set source.fields.timestamp)",
        ),
        ({}, "no field 'id' (set source.fields.id); the record has: none"),
        ({"x" * 999: 1, "\x1b[2J": 1}, f"the record has: '{'x' * 59}…', '\\x1b[2J'"),
    ],
)
def test_a_missing_field_is_told_with_those_that_are_there(
    tmp_path: Path, record: dict[str, Any], told: str
):
    fields = FieldNames(timestamp="created_at")
    assert told in refusal(jsonl(tmp_path, record, fields=fields)).detail


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
        (1577836800123456789, datetime(2020, 1, 1, microsecond=123456)),
        (-62135596800, datetime(1, 1, 1)),
        (Decimal("1577836800.1234567"), datetime(2020, 1, 1, microsecond=123456)),
        ("1577836800", datetime(2020, 1, 1)),
        ("1577836800.25", datetime(2020, 1, 1, microsecond=250000)),
        ("-1577836800", datetime(1920, 1, 2)),
        (2024, datetime(2024, 1, 1)),
        (2024.0, datetime(2024, 1, 1)),
        ("2024", datetime(2024, 1, 1)),
        (202402, datetime(2024, 2, 1)),
        (20240115, datetime(2024, 1, 15)),
        ("20240115123000", datetime(2024, 1, 15, 12, 30)),
        (20240115123000, datetime(2024, 1, 15, 12, 30)),
        ("20240115123000123", datetime(2024, 1, 15, 12, 30, microsecond=123000)),
        (date(2020, 1, 2), datetime(2020, 1, 2)),
        (datetime(2020, 1, 2, tzinfo=timezone(timedelta(hours=1))), datetime(2020, 1, 1, 23)),
    ],
)
def test_timestamps_come_out_in_utc(raw: Any, expected: datetime):
    found = parse_timestamp(raw)
    assert found == expected.replace(tzinfo=UTC)
    assert found.tzinfo is UTC


@pytest.mark.parametrize("year", [1, 1502, 1969, 1970, 1978, 2024, 9999])
@pytest.mark.parametrize(
    ("unit", "per_second"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)]
)
def test_numbers_of_a_set_unit_are_exact_from_the_year_1_to_9999(
    year: int, unit: str, per_second: int
):
    moment = datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC)
    number = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1) * per_second
    for value in (number, str(number), Decimal(number)):
        assert parse_timestamp(value, TimestampUnit(unit)) == moment
    finer = parse_timestamp(Decimal(number) - Decimal("0.000001"), TimestampUnit(unit))
    assert moment - timedelta(microseconds=1) <= finer < moment


@pytest.mark.parametrize(
    "raw",
    [
        99,
        45306,  # a day as spreadsheets count them
        86400,
        86400000,
        20240230,
        "20240230",
        20241315123000,
        2024011512,  # the 15th of January 2024, or a second of 2034
        202401151230,
        253402300799,  # the last second of 9999, or a millisecond of 1978
        253402300799000,
    ],
)
def test_a_number_with_two_readings_is_refused_until_its_unit_is_set(tmp_path: Path, raw: Any):
    record = {"id": "a", "text": "x", "when": raw}
    found = refusal(jsonl(tmp_path, record, fields=FieldNames(timestamp="when")))
    assert found.reason is RefusalReason.no_timestamp
    assert "`fields.timestamp_unit`" in found.detail
    fields = FieldNames(timestamp="when", timestamp_unit=TimestampUnit.milliseconds)
    assert document(jsonl(tmp_path, record, fields=fields)).timestamp is not None


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
