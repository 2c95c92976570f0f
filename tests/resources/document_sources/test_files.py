import base64
import csv
import errno
import gzip
import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import dagster as dg
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resources.document_sources import (
    Document,
    DocumentSource,
    FieldNames,
    FileDocumentSource,
    FileFormat,
    Refusal,
    RefusalReason,
)
from resources.document_sources.builder import parse_timestamp
from resources.document_sources.formats.csv import csv_records, csv_row
from resources.document_sources.listing import UnlistableFolderError
from resources.identity.content_hash import canonical_text
from tests.support.data import HOSTILE, PEPS

GOOD = b'{"id": "good", "text": "fine"}'
UTC = timezone.utc


def read(path: Path | str, periods: Any = None, **settings: Any) -> list[Document | Refusal]:
    found = list(FileDocumentSource(path=str(path), **settings).read(periods))
    for item in found:
        if isinstance(item, Refusal):
            assert len(item.detail) <= 200
            assert item.detail
            item.detail.encode()
        else:
            assert item.text
            assert item.text == canonical_text(item.text)
            (item.id + item.title + item.text + item.metadata + item.file).encode()
        item.file.encode()
    return found


def write(path: Path, *lines: bytes, end: bytes = b"\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join(line + end for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def outcomes(found: Sequence[Document | Refusal]) -> list[str]:
    """Ids of documents and reasons of refusals, in order."""
    return [item.id if isinstance(item, Document) else item.reason.value for item in found]


def document(found: Sequence[Document | Refusal]) -> Document:
    assert len(found) == 1
    assert isinstance(found[0], Document), found[0]
    return found[0]


def refusal(found: Sequence[Document | Refusal]) -> Refusal:
    assert len(found) == 1
    assert isinstance(found[0], Refusal), found[0]
    return found[0]


def jsonl(tmp_path: Path, *records: Any, **settings: Any) -> list[Document | Refusal]:
    return read(write(tmp_path / "docs.jsonl", *map(orjson.dumps, records)), **settings)


# --- JSON Lines ---------------------------------------------------------------------------------


def test_a_jsonl_record_becomes_a_canonical_document_with_its_position(tmp_path: Path):
    record = {
        "id": " a ",
        "title": "T\r\n",
        "text": "cafe\u0301\r\n",
        "z": 1,
        "b": {"d": 1, "c": 2},
    }
    assert document(jsonl(tmp_path, record)) == Document(
        "a", "T", "café", None, '{"b":{"c":2,"d":1},"z":1}', "docs.jsonl", 1
    )


def test_a_record_without_other_fields_has_empty_metadata_and_no_title(tmp_path: Path):
    found = document(jsonl(tmp_path, {"id": 7, "text": "x"}))
    assert (found.id, found.title, found.metadata) == ("7", "", "{}")


def test_field_names_can_be_chosen(tmp_path: Path):
    record = {"_id": "a", "head": "T", "body": "x", "id": "other"}
    found = document(
        jsonl(tmp_path, record, fields=FieldNames(id="_id", title="head", text="body"))
    )
    assert (found.id, found.title, found.text, found.metadata) == ("a", "T", "x", '{"id":"other"}')


@pytest.mark.parametrize("name", ["docs.jsonl", "docs.ndjson", "docs.jsonl.gz"])
def test_one_bad_line_never_stops_the_rest_and_keeps_the_line_numbers(tmp_path: Path, name: str):
    path = write(
        tmp_path / name,
        b"\xef\xbb\xbf" + GOOD,
        b"{oops",
        b"",
        b'{"id": "u", "text": "\xff"}',
        b'{"id": "s", "text": "\\ud800"}',
        b'{"id": "t", "text": "\\uDC00 \\ud83d\\ude00"}',
        b"[1, 2]",
        b"\t \r",
        b'{"id": "e", "text": " \\n\\u00a0"}',
        b'{"text": "no id"}',
        b"[" * 100_000,
        b'{"id": "d", "text": "deep", "m": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"id": "n", "text": "nan", "m": NaN}',
        b'{"id": "w", "text": "wrong", "text": "last wins"}',
        b'{"id": "h", "text": "huge", "n": ' + b"9" * 5000 + b"}",
        GOOD + b"\r",
    )
    found = read(path)
    assert [(item.line, outcome) for item, outcome in zip(found, outcomes(found), strict=True)] == [
        (1, "good"),
        (2, "malformed_line"),
        (4, "invalid_utf8"),
        (5, "lone_surrogate"),
        (6, "lone_surrogate"),
        (7, "malformed_line"),
        (9, "empty_text"),
        (10, "no_id"),
        (11, "malformed_line"),
        (12, "bad_metadata"),
        (13, "malformed_line"),
        (14, "w"),
        (15, "malformed_line"),
        (16, "good"),
    ]


def test_a_refusal_names_the_document_where_its_id_is_known(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", b'{"id": "s", "text": "\\ud800"}', b'{"id": "e"}')
    assert [item.document_id for item in read(path) if isinstance(item, Refusal)] == ["s", "e"]


def test_the_last_line_needs_no_line_feed_and_line_separators_inside_text_are_not_line_ends(
    tmp_path: Path,
):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "a", "text": "x\u2028y\x85z"}\n{"id": "b", "text": "x"}', "utf-8")
    assert outcomes(read(path)) == ["a", "b"]


def test_empty_files_hold_no_records(tmp_path: Path):
    write(tmp_path / "a.jsonl")
    write(tmp_path / "b.csv")
    write(tmp_path / "c.jsonl.gz")
    assert read(tmp_path) == []


@pytest.mark.parametrize("ended", [True, False])
def test_a_line_beyond_the_limit_is_refused_with_its_number_and_the_rest_goes_on(
    tmp_path: Path, ended: bool
):
    long = b'{"id": "long", "text": "' + b"x" * 1_000_000 + b'"}'
    path = write(tmp_path / "a.jsonl", GOOD, long, long, GOOD, long)
    if not ended:
        path.write_bytes(path.read_bytes()[:-1])
    found = read(path, max_document_bytes=100)
    assert outcomes(found) == ["good", "too_large", "too_large", "good", "too_large"]
    assert [item.line for item in found] == [1, 2, 3, 4, 5]
    assert '{"id": "long"' in refusal(found[1:2]).detail


def test_memory_does_not_grow_with_the_length_of_a_line(tmp_path: Path):
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b"x" * 1_000_000)
        file.write(b"\n" + GOOD)
    tracemalloc.start()
    try:
        assert outcomes(read(path, max_document_bytes=1_000)) == ["too_large", "good"]
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_lines_of_every_length_around_the_reading_block_come_out_whole(tmp_path: Path):
    block = 256 * 1024
    texts = ["x" * (block + delta) for delta in range(-40, 41, 7)] + ["y" * (3 * block)]
    path = write(
        tmp_path / "a.jsonl",
        *(orjson.dumps({"id": i, "text": text}) for i, text in enumerate(texts)),
    )
    found = read(path)
    assert [item.text for item in found if isinstance(item, Document)] == texts
    assert [item.line for item in found] == list(range(1, len(texts) + 1))


def test_a_text_beyond_the_limit_in_bytes_is_too_large(tmp_path: Path):
    records = [
        {"id": "fits", "text": "é" * 50},
        {"id": "over", "text": "é" * 51},
        {"id": "ascii", "text": "e" * 101},
        {"id": "title", "title": "e" * 101, "text": "x"},
        {"id": "meta", "text": "x", "m": "e" * 101},
    ]
    found = jsonl(tmp_path, *records, max_document_bytes=100)
    assert outcomes(found) == ["fits"] + ["too_large"] * 4
    assert [item.document_id for item in found[1:] if isinstance(item, Refusal)] == [
        "over",
        "ascii",
        "title",
        "meta",
    ]


@pytest.mark.parametrize("marks", ["\u0315\u0300", "\u0f73"])
def test_endless_combining_marks_which_normalise_in_quadratic_time_are_refused(
    tmp_path: Path, marks: str
):
    bomb = {"id": "bomb", "text": "a" + marks * 1_000_000}
    hindi = {"id": "fine", "text": "हिन्दी " * 10_000}
    assert outcomes(jsonl(tmp_path, bomb, hindi)) == ["unsafe_text", "fine"]


# --- Ids, titles, timestamps, metadata ----------------------------------------------------------


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


# --- Broken files -------------------------------------------------------------------------------


def _numbered(count: int) -> bytes:
    return b"".join(b'{"id": %d, "text": "text %d"}\n' % (i, i * i * 7919) for i in range(count))


@pytest.mark.parametrize("damage", ["truncated", "checksum", "trailing garbage", "second member"])
def test_records_before_gzip_damage_are_yielded_then_one_refusal_and_the_next_file(
    tmp_path: Path, damage: str
):
    whole = gzip.compress(_numbered(1000))
    broken = {
        "truncated": whole[: len(whole) // 2],
        "checksum": whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:],
        "trailing garbage": whole + b"garbage",
        "second member": whole + whole[:40],
    }[damage]
    (tmp_path / "a.jsonl.gz").write_bytes(broken)
    write(tmp_path / "b.jsonl", GOOD)
    found = read(tmp_path)
    documents = found[:-2]
    if damage == "truncated":
        assert 200 < len(documents) < 900
    else:
        assert len(documents) >= 1000
    assert outcomes(documents) == [str(i) for i in range(len(documents))]
    assert outcomes(found[-2:]) == ["broken_file", "good"]
    assert (found[-2].file, found[-2].line) == ("a.jsonl.gz", None)


@pytest.mark.parametrize(
    "content", [b"", b"not gzip at all", b"\x1f\x8b", b"\x1f\x8b\x08" + b"\xff" * 50]
)
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.txt.gz"])
def test_what_is_not_gzip_is_a_broken_file(tmp_path: Path, content: bytes, name: str):
    (tmp_path / name).write_bytes(content)
    write(tmp_path / "b.jsonl", GOOD)
    assert outcomes(read(tmp_path)) == ["broken_file", "good"]


def test_gzip_of_several_members_is_read_whole(tmp_path: Path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(_numbered(2)) + gzip.compress(GOOD))
    assert outcomes(read(tmp_path)) == ["0", "1", "good"]


def test_a_file_that_vanishes_after_listing_is_a_broken_file(tmp_path: Path):
    write(tmp_path / "a.jsonl", GOOD)
    gone = write(tmp_path / "b.jsonl", GOOD)
    write(tmp_path / "c.jsonl", GOOD)
    stream = FileDocumentSource(path=str(tmp_path)).read()
    gone.unlink()
    assert outcomes(list(stream)) == ["good", "broken_file", "good"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all files")
def test_an_unreadable_file_is_a_broken_file(tmp_path: Path):
    write(tmp_path / "a.jsonl", GOOD).chmod(0)
    write(tmp_path / "b.jsonl", GOOD)
    assert outcomes(read(tmp_path)) == ["broken_file", "good"]


@pytest.mark.parametrize("path", ["", "**/*.jsonl", "%Y/*.jsonl"])
def test_a_folder_that_cannot_be_listed_is_an_error_not_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
):
    write(tmp_path / "2019" / "a.jsonl", GOOD)
    write(tmp_path / "2020" / "b.jsonl", GOOD)
    scandir = os.scandir

    def failing(folder: str) -> Any:
        if str(folder).endswith("2019"):
            raise OSError(errno.EIO, "Input/output error")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", failing)
    source = FileDocumentSource(path=str(tmp_path / path))
    with pytest.raises(UnlistableFolderError, match=r"2019.*Input/output error"):
        source.files()
    (tmp_path / "2019").rename(tmp_path / ".2019")
    assert [file.path for file in source.files()] == ["2020/b.jsonl"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_and_dead_links_are_refused_and_links_to_files_are_read(tmp_path: Path):
    os.mkfifo(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "c").symlink_to(tmp_path, target_is_directory=True)
    target = write(tmp_path / "d.jsonl", GOOD)
    (tmp_path / "e.jsonl").symlink_to(target)
    found = read(tmp_path, format=FileFormat.jsonl)
    assert outcomes(found) == ["broken_file", "broken_file", "broken_file", "good", "good"]
    assert [item.file for item in found] == ["a.jsonl", "b.jsonl", "c", "d.jsonl", "e.jsonl"]


# --- CSV ----------------------------------------------------------------------------------------


def test_csv_rows_become_documents_with_the_line_on_which_they_begin(tmp_path: Path):
    path = write(
        tmp_path / "a.csv",
        b"\xef\xbb\xbfid,title,text,tag",
        b'1,One,"a ""quoted""\nword, and\n\nmore",x',
        b"",
        b'2,,5" disk,"',
        b'"',
        b"3,Three,last,",
        end=b"\r\n",
    )
    found = [item for item in read(path) if isinstance(item, Document)]
    assert [(d.id, d.title, d.text, d.metadata, d.line) for d in found] == [
        ("1", "One", 'a "quoted"\nword, and\n\nmore', '{"tag":"x"}', 2),
        ("2", "", '5" disk', '{"tag":"\\r\\n"}', 7),
        ("3", "Three", "last", '{"tag":""}', 9),
    ]


def test_bad_csv_rows_are_refused_and_the_rest_goes_on(tmp_path: Path):
    path = write(
        tmp_path / "a.csv",
        b"id,text",
        b"1,x",
        b"2,x,y",
        b"3",
        b"4,\xff",
        b'5,"x" y',
        b'6,"a\n\xe9\nb"',
        b",x",
        b"8,",
        b'9,"open\n10,never closed"oops',
        b"a\rb,x",
        b"11,x",
        b'12,"never',
        b"13,x",
    )
    found = read(path)
    assert [(item.line, outcome) for item, outcome in zip(found, outcomes(found), strict=True)] == [
        (2, "1"),
        (3, "malformed_line"),
        (4, "malformed_line"),
        (5, "invalid_utf8"),
        (6, "malformed_line"),
        (7, "invalid_utf8"),
        (10, "no_id"),
        (11, "empty_text"),
        (12, "malformed_line"),
        (14, "malformed_line"),
        (15, "11"),
        (16, "malformed_line"),
    ]
    assert "never closed; lines 16 to 17" in refusal(found[-1:]).detail


@pytest.mark.parametrize(
    "huge",
    [
        b"x" * 900_000,
        b'"' + b"x" * 900_000 + b'"',
        b'"' + b"line\n" * 100_000 + b'"',
        b'"' + b'""' * 400_000 + b'"',
        b'"' + b'a "",""\n' * 100_000 + b'"',
        b"," * 900_000,
    ],
)
def test_a_csv_record_beyond_the_limit_is_refused_and_the_next_row_is_found(
    tmp_path: Path, huge: bytes
):
    path = write(tmp_path / "a.csv", b"id,text", b"1,x", b"2," + huge, b"3,y")
    found = read(path, max_document_bytes=1_000)
    assert outcomes(found) == ["1", "too_large", "3"]
    assert [item.line for item in found] == [2, 3, 4 + huge.count(b"\n")]


def test_csv_fields_may_be_longer_than_the_csv_module_allows_by_default(tmp_path: Path):
    text = "x" * 1_000_000
    path = write(tmp_path / "a.csv", b"id,text", b"1," + text.encode())
    assert document(read(path)).text == text


class _Dribble(io.BytesIO):
    """A stream that hands over a few bytes at a time, as a network may."""

    def read1(self, size: int | None = -1) -> bytes:
        return self.read(3 if size else 0)


def test_csv_records_end_where_the_csv_module_ends_them_also_when_they_are_too_large():
    random = Random(5)
    for _ in range(5_000):
        text = "".join(random.choice('ab,,""""\n\n') for _ in range(random.randrange(1, 40)))
        records = list(csv_records(_Dribble(text.encode()), 1_000, b","))
        tiny = list(csv_records(_Dribble(text.encode()), 2, b","))
        assert [first for first, _, _ in records] == [first for first, _, _ in tiny]
        if any(problem for _, _, problem in records):
            continue
        try:
            expected = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        except csv.Error:
            continue
        rows = [csv_row(data, ",") for _, data, _ in records]
        assert [row for row in rows if row] == [row for row in expected if row], text


@pytest.mark.parametrize("header", [b"id,text,id", b"id,te\xffxt", b'id,"text', b'"id"x,text'])
def test_a_csv_file_without_a_usable_header_is_broken(tmp_path: Path, header: bytes):
    write(tmp_path / "a.csv", header, b"1,x,y")
    write(tmp_path / "b.tsv", b"id\ttext", b'1\t"x\ty"')
    assert outcomes(read(tmp_path)) == ["broken_file", "1"]


# --- Parquet ------------------------------------------------------------------------------------


def test_parquet_rows_become_documents_with_their_row_numbers(tmp_path: Path):
    moment = datetime(2020, 1, 2, 3, 4, 5, 678901)
    path = write_parquet(
        tmp_path / "a.parquet",
        {
            "id": pa.array([1, 2, None, 4], pa.int64()),
            "title": ["A", None, "C", "D"],
            "text": pa.array(["x", "y", "z", None]).dictionary_encode(),
            "when": pa.array([moment] * 4, pa.timestamp("ns", "America/New_York")),
            "blob": [b"\xff", None, None, None],
            "price": [Decimal("1.50")] * 4,
            "nested": [[{"at": moment, "n": 1}]] * 4,
            "day": [date(2020, 1, 2)] * 4,
        },
        row_group_size=1,
    )
    found = read(path, fields=FieldNames(timestamp="when"))
    assert outcomes(found) == ["1", "2", "no_id", "empty_text"]
    assert [item.line for item in found] == [1, 2, 3, 4]
    first = document(found[:1])
    assert first.timestamp == moment.replace(tzinfo=UTC)
    assert json.loads(first.metadata) == {
        "blob": base64.b64encode(b"\xff").decode(),
        "day": "2020-01-02",
        "nested": [{"at": "2020-01-02T03:04:05.678901", "n": 1}],
        "price": "1.50",
    }


def test_one_unreadable_cell_refuses_one_parquet_row(tmp_path: Path):
    moments = pa.array([0, 2**62, 0, 0, 0], pa.timestamp("ms"))
    texts = pa.array([b"ok", b"ok", b"\xff", b"ok", b"ok"]).view(pa.string())
    others = pa.array([0, 0, 0, 2**62, 0], pa.timestamp("us"))
    path = write_parquet(
        tmp_path / "a.parquet",
        {"id": ["a", "b", "c", "d", "e"], "text": texts, "when": moments, "other": others},
    )
    found = read(path, fields=FieldNames(timestamp="when"))
    assert outcomes(found) == ["a", "no_timestamp", "invalid_utf8", "malformed_line", "e"]
    assert [item.document_id for item in found if isinstance(item, Refusal)] == ["b", "c", "d"]


def test_strings_that_parquet_stores_as_bytes_are_read(tmp_path: Path):
    columns = {"id": [b"a", b"b\xff", b"c"], "text": [b"x", b"x", b"\xff"], "title": [b"t"] * 3}
    found = read(write_parquet(tmp_path / "a.parquet", columns))
    assert outcomes(found) == ["a", "invalid_utf8", "invalid_utf8"]
    assert document(found[:1]).title == "t"


def test_integer_ids_that_pandas_turned_into_floats_and_bools(tmp_path: Path):
    floats = {"id": [1.0, 2.5, None, float("nan"), float("inf")], "text": ["x"] * 5}
    write_parquet(tmp_path / "a.parquet", floats)
    write_parquet(tmp_path / "b.parquet", {"id": [True], "text": ["x"]})
    assert outcomes(read(tmp_path)) == ["1"] + ["no_id"] * 5


def test_a_truncated_or_overwritten_parquet_file_is_broken_and_the_next_is_read(tmp_path: Path):
    columns = {"id": [str(i) for i in range(1000)], "text": [f"text {i}" for i in range(1000)]}
    good = write_parquet(
        tmp_path / "good.parquet", columns, row_group_size=100, write_page_checksum=True
    )
    whole = good.read_bytes()
    (tmp_path / "a.parquet").write_bytes(b"")
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.pq").write_bytes(b"PAR1" + bytes(1000) + b"PAR1")
    middle = len(whole) // 3
    (tmp_path / "d.parquet").write_bytes(whole[:middle] + bytes(200) + whole[middle + 200 :])
    found = read(tmp_path)
    by_file = {name: [i for i in found if i.file == name] for name in (i.file for i in found)}
    assert list(by_file) == ["a.parquet", "b.parquet", "c.pq", "d.parquet", "good.parquet"]
    for name in ("a.parquet", "b.parquet", "c.pq"):
        assert outcomes(by_file[name]) == ["broken_file"]
    assert outcomes(by_file["d.parquet"])[-1] == "broken_file"
    before = outcomes(by_file["d.parquet"])[:-1]
    assert before
    assert before == [str(i) for i in range(len(before))]
    assert len(by_file["good.parquet"]) == 1000


def test_parquet_is_streamed_in_small_batches_when_documents_are_large(tmp_path: Path):
    path = tmp_path / "a.parquet"
    rows = 64
    with pq.ParquetWriter(path, pa.schema([("id", "string"), ("text", "string")])) as writer:
        for i in range(rows):
            text = os.urandom(1_000_000).hex()
            writer.write_table(pa.table({"id": [str(i)], "text": [text]}))
    before = pa.total_allocated_bytes()
    most = 0
    count = 0
    for item in FileDocumentSource(path=str(path)).read():
        assert isinstance(item, Document)
        count += 1
        most = max(most, pa.total_allocated_bytes() - before)
    assert count == rows
    assert most < 100_000_000


# --- Text and Markdown --------------------------------------------------------------------------


def test_text_files_are_documents_named_by_their_path(tmp_path: Path):
    write(tmp_path / "b" / "note.txt", b"\xef\xbb\xbf# hello", b"world", end=b"\r\n")
    write(tmp_path / "a" / "z" / "note.txt.gz", b"zipped")
    found = [item for item in read(tmp_path) if isinstance(item, Document)]
    assert [(d.id, d.title, d.text, d.file, d.line) for d in found] == [
        ("a/z/note.txt.gz", "note", "zipped", "a/z/note.txt.gz", 1),
        ("b/note.txt", "note", "# hello\nworld", "b/note.txt", 1),
    ]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# The Title #\n\ntext", "The Title"),
        ("text first\n\n# Later\n", "Later"),
        ("```\n# not this\n```\n# This\n", "This"),
        ("#hashtag\n\n    # code\n", "file"),
        ("## Second level only\n", "file"),
        ("Setext\n======\n", "Setext"),
        ("======\n Over\n======\n\ntext\n", "Over"),
        (".. comment\n\nreST title\n**********\n", "reST title"),
        ("A long line of text\n---\n", "file"),
        ("no heading", "file"),
    ],
)
def test_a_markdown_title_is_the_first_heading_or_the_files_name(
    tmp_path: Path, text: str, title: str
):
    path = tmp_path / "file.md"
    path.write_text(text)
    found = document(read(path))
    assert (found.id, found.title, found.text) == ("file.md", title, text.strip())


def test_front_matter_gives_title_timestamp_and_metadata(tmp_path: Path):
    path = tmp_path / "a.md"
    path.write_text(
        "---\ntitle: T\ndate: 2020-01-02\nid: 5\ntext: t\ntags: [b, a]\n1: one\n"
        "at: 2020-01-01 10:00:00\n---\n# Heading\n\nbody\n"
    )
    found = document(read(path, fields=FieldNames(timestamp="date")))
    assert found == Document(
        "a.md",
        "T",
        "# Heading\n\nbody",
        datetime(2020, 1, 2, tzinfo=UTC),
        '{"1":"one","at":"2020-01-01T10:00:00","id":5,"tags":["b","a"],"text":"t"}',
        "a.md",
        1,
    )


@pytest.mark.parametrize(
    "front",
    [
        "- a\n- list",
        "just text",
        "a: [",
        "a: 2020-13-45",
        "? [a]\n: b",
        "a: !!python/object/apply:os.system [echo]",
        "a: &a [x, x]\nb: [*a, *a]",
        "a: " + "[" * 5000,
        "a: " + "9" * 5000,
        'a: "\\ud800"',
        "a: 99999999999999999999999",
        "",
    ],
)
def test_front_matter_that_is_no_plain_mapping_stays_text(tmp_path: Path, front: str):
    path = tmp_path / "a.md"
    path.write_text(f"---\n{front}\n---\nbody\n")
    found = document(read(path))
    assert found.metadata == "{}"
    assert found.text == path.read_text().strip()


def test_the_modification_time_can_be_the_timestamp_of_text_and_markdown(tmp_path: Path):
    for name in ("a.txt", "b.md"):
        path = write(tmp_path / name, b"x")
        os.utime(path, (1577836800, 1577836800))
    found = read(tmp_path, fields=FieldNames(timestamp="modified"))
    times = [d.timestamp for d in found if isinstance(d, Document)]
    assert times == [datetime(2020, 1, 1, tzinfo=UTC)] * 2


def test_text_that_cannot_be_used_is_refused(tmp_path: Path):
    write(tmp_path / "a.txt", b"fine", b"\xff")
    write(tmp_path / "b.md", b"---\ntitle: only front matter\n---")
    write(tmp_path / "c.txt", b"x" * 200_000)
    write(tmp_path / "d.txt", b"x" * 2_000)
    write(tmp_path / "e.txt", b"fine")
    found = read(tmp_path, max_document_bytes=1_000)
    assert outcomes(found) == ["invalid_utf8", "empty_text", "too_large", "too_large", "e.txt"]
    assert found[0].line == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_file_name_that_is_not_utf8_is_refused_not_fatal(tmp_path: Path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("x")
    found = refusal(read(tmp_path))
    assert found.reason is RefusalReason.lone_surrogate
    assert found.file == "\\udcff.txt"


# --- Which files --------------------------------------------------------------------------------


def test_a_folder_is_read_recursively_in_the_order_of_paths(tmp_path: Path):
    for name in ("b.jsonl", "a/z.jsonl", "a/b/c.jsonl.gz", "B.jsonl", ".hidden.jsonl", ".git/x.md"):
        write(tmp_path / name, GOOD)
    found = read(tmp_path)
    assert [item.file for item in found] == ["B.jsonl", "a/b/c.jsonl.gz", "a/z.jsonl", "b.jsonl"]
    assert read(f"{tmp_path}/") == found
    assert read(tmp_path.as_uri()) == found


def test_a_file_of_unknown_format_is_seen(tmp_path: Path):
    for name in ("a.docx", "b.jsonl", "c", "d.gz", "e.parquet.gz", "f.json"):
        write(tmp_path / name, GOOD)
    found = read(tmp_path)
    assert outcomes(found) == ["unknown_format", "good"] + ["unknown_format"] * 4
    assert [item.line for item in found if isinstance(item, Refusal)] == [None] * 5


def test_a_given_format_overrides_the_endings(tmp_path: Path):
    write(tmp_path / "a.log", GOOD)
    write(tmp_path / "b.txt.gz", GOOD)
    assert outcomes(read(tmp_path, format="jsonl")) == ["good", "good"]


def test_globs_and_memory_urls(tmp_path: Path):
    for name in ("a/1.jsonl", "a/b/2.jsonl", "a/3.txt", "c/4.jsonl"):
        write(tmp_path / name, GOOD)
    assert [i.file for i in read(tmp_path / "a" / "*.jsonl")] == ["1.jsonl"]
    assert [i.file for i in read(tmp_path / "a" / "**" / "*.jsonl")] == ["1.jsonl", "b/2.jsonl"]
    assert [i.file for i in read(tmp_path / "?" / "*.jsonl")] == ["a/1.jsonl", "c/4.jsonl"]

    import fsspec

    with fsspec.open("memory://archive/x/a.jsonl", "wb") as file:
        file.write(GOOD)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        assert [i.file for i in read("memory://archive")] == ["x/a.jsonl"]
    finally:
        fsspec.filesystem("memory").rm("/archive", recursive=True)


@pytest.mark.parametrize("path", ["nowhere", "nowhere/*.jsonl", "*.jsonl", "empty", "%Y.jsonl"])
def test_a_source_that_matches_nothing_is_an_error_not_an_empty_archive(tmp_path: Path, path: str):
    (tmp_path / "empty").mkdir()
    source = FileDocumentSource(path=str(tmp_path / path))
    with pytest.raises(FileNotFoundError, match=r"(?s)Expected documents at .*Check the source"):
        source.read()
    with pytest.raises(FileNotFoundError):
        source.files()


def _day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


PERIODS = [
    ("%Y.jsonl", [("2019-05-01", "2020-01-01")], ["2019.jsonl"]),
    ("%Y.jsonl", [("2019-12-31", "2020-01-02")], ["2019.jsonl", "2020.jsonl"]),
    ("%Y/%m/*.jsonl", [("2020-01-31", "2020-02-01")], ["2020/01/a.jsonl"]),
    (
        "%Y/%m/*.jsonl",
        [("2020-01-31", "2020-02-02"), ("2020-02-10", "2020-02-11")],
        ["2020/01/a.jsonl", "2020/02/a.jsonl"],
    ),
    ("%Y/%m", [("2020-02-01", "2020-03-01")], ["2020/02/a.jsonl", "2020/02/b/c.jsonl"]),
    ("%Y-%m-%d.jsonl", [("2020-02-28", "2020-03-02")], ["2020-02-29.jsonl", "2020-03-01.jsonl"]),
    ("%Y-%m-%d.jsonl", [("2031-01-01", "2031-02-01")], []),
    ("%Y%m%dT%H.jsonl", [("2020-01-01", "2020-01-02")], ["20200101T23.jsonl"]),
    ("%Y.jsonl", [("9999-01-01", "9999-12-31")], []),
    ("%Y.jsonl", [], []),
]


@pytest.mark.parametrize(("pattern", "periods", "expected"), PERIODS)
def test_periods_select_files_by_the_dates_in_their_names(
    tmp_path: Path, pattern: str, periods: list[tuple[str, str]], expected: list[str]
):
    for name in (
        "2019.jsonl",
        "2020.jsonl",
        "2020/01/a.jsonl",
        "2020/02/a.jsonl",
        "2020/02/b/c.jsonl",
        "2020-02-29.jsonl",
        "2020-03-01.jsonl",
        "20200101T23.jsonl",
        "20200102T00.jsonl",
    ):
        write(tmp_path / name, GOOD)
    wanted = [(_day(start), _day(end)) for start, end in periods]
    source = FileDocumentSource(path=str(tmp_path / pattern))
    assert [item.file for item in source.read(wanted)] == expected
    assert [file.path for file in source.files(wanted)] == expected


@pytest.mark.parametrize(
    ("pattern", "file", "period"),
    [
        ("%Y/%m/*.jsonl", "2020/12/a.jsonl", ("2020-12-01", "2021-01-01")),
        ("%Y.jsonl", "2020.jsonl", ("2020-01-01", "2021-01-01")),
        ("*.jsonl", "2020.jsonl", None),
        ("%m/*.jsonl", "03/a.jsonl", None),  # March of every year
        ("%Y/%d.jsonl", "2020/03.jsonl", None),
    ],
)
def test_the_period_of_a_file_is_known_where_its_name_tells_exactly_one(
    tmp_path: Path, pattern: str, file: str, period: tuple[str, str] | None
):
    write(tmp_path / file, GOOD)
    source = FileDocumentSource(path=str(tmp_path / pattern))
    assert source.period_of(file) == (period and tuple(map(_day, period)))


def test_without_periods_placeholders_match_every_date(tmp_path: Path):
    for name in ("2019/01.jsonl", "2020/02.jsonl", "latest/01.jsonl", "2020/2.jsonl"):
        write(tmp_path / name, GOOD)
    assert [i.file for i in read(tmp_path / "%Y" / "%m.jsonl")] == [
        "2019/01.jsonl",
        "2020/02.jsonl",
    ]


def test_without_periods_folders_named_by_dates_are_read_whole(tmp_path: Path):
    names = ["2019/01/a.jsonl", "2020/02/b.jsonl", "2020/02/x/c.jsonl"]
    for name in [*names, "2020/b.jsonl", "latest/02/d.jsonl"]:
        write(tmp_path / name, GOOD)
    assert [i.file for i in read(tmp_path / "%Y" / "%m")] == names


def test_a_period_without_files_is_legitimate_but_not_in_a_missing_or_empty_archive(tmp_path: Path):
    periods = [(_day("2020-01-01"), _day("2020-02-01"))]
    for folder in ("missing", "empty"):
        if folder == "empty":
            (tmp_path / folder).mkdir()
        with pytest.raises(FileNotFoundError, match="deleted"):
            read(tmp_path / folder / "%Y.jsonl", periods)
    write(tmp_path / "archive" / "2019.jsonl", GOOD)
    assert read(tmp_path / "archive" / "%Y.jsonl", periods) == []
    with pytest.raises(FileNotFoundError, match="nothing in it matches"):
        read(tmp_path / "archive" / "%Y.jsonl.gz", periods)


def test_periods_do_not_restrict_a_source_without_placeholders(tmp_path: Path):
    write(tmp_path / "a.jsonl", GOOD)
    assert outcomes(read(tmp_path, [(_day("2020-01-01"), _day("2020-02-01"))])) == ["good"]


def test_files_are_listed_with_size_and_time_without_being_opened(tmp_path: Path):
    path = write(tmp_path / "a.parquet", b"not parquet")
    os.utime(path, (1577836800, 1577836800))
    (file,) = FileDocumentSource(path=str(tmp_path)).files()
    assert (file.path, file.size, file.modified) == (
        "a.parquet",
        12,
        datetime(2020, 1, 1, tzinfo=UTC),
    )


# --- The whole ----------------------------------------------------------------------------------


def test_records_in_are_documents_and_refusals_out(tmp_path: Path):
    lines = []
    for i in range(500):
        lines.append(
            [
                orjson.dumps({"id": i, "text": f"text {i}"}),
                b"{",
                orjson.dumps({"id": i}),
                b'{"id": "s", "text": "\\ud800"}',
                orjson.dumps({"id": i, "text": "x" * 200_000 if i % 97 == 4 else "y"}),
            ][i % 5]
        )
    write(tmp_path / "a.jsonl", *lines)
    write(tmp_path / "b.jsonl.gz", *lines)
    write(
        tmp_path / "c.csv", b"id,text", *(b"%d,text%s" % (i, b",x" * (i % 3)) for i in range(300))
    )
    write_parquet(
        tmp_path / "d.parquet",
        {"id": [i if i % 3 else None for i in range(2500)], "text": ["x"] * 2500},
    )
    write(tmp_path / "e.md", b"# x")
    found = read(tmp_path, max_document_bytes=1_000)
    count = Counter(item.file for item in found)
    assert count == {
        "a.jsonl": 500,
        "b.jsonl.gz": 500,
        "c.csv": 300,
        "d.parquet": 2500,
        "e.md": 1,
    }
    assert found == read(tmp_path, max_document_bytes=1_000)


def test_a_reader_can_be_left_early_and_its_file_is_closed(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", *[GOOD] * 10)
    stream = FileDocumentSource(path=str(path)).read()
    assert isinstance(next(stream), Document)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert next(stream, None) is None


def test_a_link_has_the_time_of_the_file_that_is_read(tmp_path: Path):
    target = write(tmp_path / "elsewhere" / "a.jsonl", GOOD)
    link = tmp_path / "archive" / "a.jsonl"
    link.parent.mkdir()
    link.symlink_to(target)
    for seconds in (1_000, 2_000):
        os.utime(target, (seconds, seconds))
        for path in (link.parent, link):
            [file] = FileDocumentSource(path=str(path)).files()
            assert file.modified == datetime.fromtimestamp(seconds, UTC)
            assert file.size == len(GOOD) + 1


def test_dagster_configures_the_source(tmp_path: Path):
    write(tmp_path / "a.log", b'{"_id": "a", "text": "x", "when": "2020-01-01"}')
    seen = []

    @dg.asset
    def documents(source: FileDocumentSource) -> None:
        assert isinstance(source, DocumentSource)
        seen.extend(source.read())

    fields = {"id": "_id", "timestamp": "when"}
    config = {"path": str(tmp_path), "format": "jsonl", "fields": fields}
    assert dg.materialize(
        [documents],
        resources={"source": FileDocumentSource.configure_at_launch()},
        run_config={"resources": {"source": {"config": config}}},
    ).success
    assert dg.materialize([documents], resources={"source": FileDocumentSource(**config)}).success
    assert outcomes(seen) == ["a", "a"]


def test_every_setting_is_described():
    for model in (FileDocumentSource, FieldNames):
        for name, field in model.model_fields.items():
            assert field.description, name


def test_reading_every_format_does_not_import_pandas(tmp_path: Path):
    moment = pa.array([1577836800123456789], pa.timestamp("ns"))
    write_parquet(tmp_path / "a.parquet", {"id": ["a"], "text": ["x"], "t": moment, "u": moment})
    write(tmp_path / "b.csv", b"id,text,t", b"b,x,2020-01-01")
    write(tmp_path / "c.jsonl", b'{"id": "c", "text": "x", "t": 0}')
    script = (
        "import sys\n"
        "from resources.document_sources import Document, FieldNames, FileDocumentSource\n"
        "source = FileDocumentSource(path=sys.argv[1], fields=FieldNames(timestamp='t'))\n"
        "assert all(isinstance(item, Document) for item in source.read())\n"
        "assert not {'pandas', 'torch', 'lancedb', 'openvino'} & set(sys.modules)\n"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=root, check=True)


# --- Data that nobody here wrote ----------------------------------------------------------------


def _json_tests(prefix: str) -> list[Path]:
    return sorted((HOSTILE / "json_test_suite").glob(f"{prefix}_*.json"))


def test_json_test_suite_what_must_parse_becomes_a_document_when_it_is_a_value(tmp_path: Path):
    paths = _json_tests("y")
    assert paths
    for path in paths:
        # JSONL has one line a record, so line feeds between tokens become spaces.
        value = path.read_bytes().replace(b"\n", b" ")
        found = read(
            write(tmp_path / "a.jsonl", b'{"id": 1, "text": "x", "v": ' + value + b"}", GOOD)
        )
        assert outcomes(found) == ["1", "good"], path.name
        alone = read(write(tmp_path / "a.jsonl", value, GOOD))
        assert isinstance(alone[0], Refusal), path.name
        if not value.strip().startswith(b"{"):
            assert alone[0].reason is RefusalReason.malformed_line, path.name
        assert outcomes(alone[1:]) == ["good"]


def test_json_test_suite_what_must_fail_never_becomes_a_document(tmp_path: Path):
    paths = _json_tests("n")
    assert paths
    for path in paths:
        value = path.read_bytes().replace(b"\n", b" ")
        wrapped = b'{"id": 1, "text": "x", "v": ' + value + b"}"
        found = read(write(tmp_path / "a.jsonl", wrapped, value, GOOD))
        assert outcomes(found)[-1] == "good", path.name
        assert all(isinstance(item, Refusal) for item in found[:-1]), path.name
        assert len(found) == (3 if value.strip() else 2), path.name


def test_json_test_suite_either_way_is_a_document_or_a_refusal(tmp_path: Path):
    for path in _json_tests("i"):
        value = path.read_bytes().replace(b"\n", b" ")
        found = read(
            write(tmp_path / "a.jsonl", b'{"id": 1, "text": "x", "v": ' + value + b"}", GOOD)
        )
        assert len(found) == 2, path.name
        assert outcomes(found)[1] == "good"


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", "txt"])
def test_every_naughty_string_becomes_a_document_or_a_refusal(tmp_path: Path, suffix: str):
    strings = json.loads((HOSTILE / "blns.json").read_text("utf-8"))
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        write(path, *(orjson.dumps({"id": s or "-", "title": s, "text": s, s: s}) for s in strings))
    elif suffix == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text"])
            writer.writerows((i, s) for i, s in enumerate(strings))
    elif suffix == "parquet":
        write_parquet(path, {"id": list(range(len(strings))), "text": strings})
    else:
        for i, s in enumerate(strings):
            (tmp_path / f"{i:03}.md").write_bytes(s.encode())
        path = tmp_path
    found = read(path)
    assert len(found) == len(strings)
    for item, text in zip(found, strings, strict=True):
        if isinstance(item, Document):
            assert item.text == canonical_text(text)
        elif suffix == "jsonl" and text:
            assert item.reason in (RefusalReason.no_id, RefusalReason.empty_text)
        else:
            assert item.reason is RefusalReason.empty_text
    assert sum(isinstance(item, Refusal) for item in found) < 10


def test_broken_parquet_files_are_named_and_the_rest_goes_on():
    found = read(HOSTILE / "parquet")
    broken = {i.file for i in found if isinstance(i, Refusal) and i.reason == "broken_file"}
    assert broken == {
        "ARROW-GH-41317.parquet",
        "ARROW-GH-41321.parquet",
        "ARROW-GH-45185.parquet",
        "ARROW-GH-47662.parquet",
        "ARROW-RS-GH-6229-DICTHEADER.parquet",
        "ARROW-RS-GH-6229-LEVELS.parquet",
        "PARQUET-1481.parquet",
    }
    # This one is read: a column of numbers, none of which is a document.
    others = [item for item in found if item.file == "ARROW-GH-43605.parquet"]
    assert set(outcomes(others)) == {"no_id"}
    assert len(others) == 21_186
    assert [item.file for item in found if isinstance(item, Document)] == ["README.md"]


def test_the_declaration_of_human_rights_is_read_in_twenty_languages():
    found = read(HOSTILE / "udhr")
    assert Counter(outcomes(found))["empty_text"] == 1  # nku.txt has no content
    documents = [item for item in found if isinstance(item, Document)]
    assert len(documents) == 19
    assert all(document.id == document.file for document in documents)
    assert "Human Rights" in next(d.text for d in documents if d.id == "eng.txt")


def test_the_peps_of_three_days_are_read_and_the_undated_refused():
    found = read(PEPS, fields=FieldNames(timestamp="created"))
    count = Counter(i.file for i in found if isinstance(i, Document))
    assert sum(count.values()) + sum(isinstance(i, Refusal) for i in found) == 30 + 40 + 48
    assert {i.reason for i in found if isinstance(i, Refusal)} == {RefusalReason.no_timestamp}
    assert count["2026-08-22.jsonl.gz"] == 48
