"""Parquet: every type of column, broken files and unreadable cells."""

import base64
import json
import os
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resources.document_sources import Document, FieldNames, FileDocumentSource, Refusal
from tests.support.data import HOSTILE
from tests.support.documents import UTC, document, outcomes, read, write_parquet


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


def test_ids_of_every_exact_scalar_type_are_read(tmp_path: Path):
    uuid = UUID("cc48f830-dc51-4138-9f1c-c3c045f21e03")
    integers = [
        pa.int8(), pa.int16(), pa.int32(), pa.int64(),
        pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(),
    ]  # fmt: skip
    ids = [
        (pa.array([uuid.bytes], pa.uuid()), str(uuid)),
        (pa.array([Decimal("9" * 38)], pa.decimal128(38)), "9" * 38),
        (pa.array([Decimal("100.00")], pa.decimal128(10, 2)), "100"),
        (pa.array([Decimal("4.160")], pa.decimal256(10, 3)), "4.16"),
        *((pa.array([100], kind), "100") for kind in integers),
        (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
        (pa.array([b"ab"], pa.binary(2)), "ab"),
        (pa.array([b"ab\0\0"], pa.binary(4)), "ab"),
        (pa.array([b"ab"], pa.large_binary()), "ab"),
        (pa.array(["ab"], pa.large_string()), "ab"),
        (pa.array(["ab"]).dictionary_encode(), "ab"),
        (pa.array([date(2020, 1, 2)]), "2020-01-02"),
        (pa.array([0], pa.timestamp("ns", "UTC")), "1970-01-01T00:00:00+00:00"),
        (pa.array([1.0], pa.float32()), "1"),
    ]
    for number, (column, _) in enumerate(ids):
        write_parquet(tmp_path / f"{number:02}.parquet", {"id": column, "text": ["x"]})
    assert outcomes(read(tmp_path)) == [expected for _, expected in ids]


@pytest.mark.parametrize("stored_schema", [True, False])
def test_int96_times_are_exact_from_the_year_1_to_9999(tmp_path: Path, stored_schema: bool):
    moments = [
        datetime(2019, 5, 4, 3, 2, 1, 5),
        datetime(1502, 3, 4),
        datetime(9999, 12, 31, 23, 59, 59, 999999),
        datetime(1, 1, 1),
        datetime(1969, 12, 31, 23, 59, 59, 999999),
    ]
    table = pa.table(
        {"id": list("abcde"), "text": ["x"] * 5, "when": pa.array(moments, pa.timestamp("us"))}
    )
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, use_deprecated_int96_timestamps=True, store_schema=stored_schema)
    assert pq.ParquetFile(path).schema.column(2).physical_type == "INT96"
    found = read(path, fields=FieldNames(timestamp="when"))
    assert [d.timestamp for d in found if isinstance(d, Document)] == [
        moment.replace(tzinfo=UTC) for moment in moments
    ]


def test_nanoseconds_are_cut_to_the_microsecond_they_belong_to_wherever_they_are(tmp_path: Path):
    nanoseconds = [-1, -500, -1000, 999, 1_999]
    when = pa.array(nanoseconds, pa.timestamp("ns", "America/New_York"))
    one = pa.array(nanoseconds, pa.timestamp("ns"))
    columns = {
        "id": list("abcde"),
        "text": ["x"] * 5,
        "when": when,
        "fixed": pa.FixedSizeListArray.from_arrays(one, 1),
        "list": pa.ListArray.from_arrays(range(6), when),
        "map": pa.MapArray.from_arrays(range(6), ["k"] * 5, one),
        "struct": pa.StructArray.from_arrays([pa.ListArray.from_arrays(range(6), one)], ["in"]),
        "took": pa.array(nanoseconds, pa.duration("ns")),
        "clock": pa.array([0, 1, 1_000, 999, 1_999], pa.time64("ns")),
    }
    found = read(
        write_parquet(tmp_path / "a.parquet", columns), fields=FieldNames(timestamp="when")
    )
    assert outcomes(found) == list("abcde")
    late, early = "1969-12-31T23:59:59.999999", "1970-01-01T00:00:00"
    expected = [late, late, late, early, "1970-01-01T00:00:00.000001"]
    for item, moment, cut in zip(found, expected, [-1, -1, -1, 0, 1], strict=True):
        assert isinstance(item, Document)
        assert item.timestamp == datetime.fromisoformat(moment).replace(tzinfo=UTC)
        metadata = json.loads(item.metadata)
        assert metadata["fixed"] == metadata["struct"]["in"] == [moment]
        assert metadata["list"] == [f"{moment}+00:00"]
        assert metadata["map"] == [["k", moment]]
        assert metadata["took"] == cut / 1_000_000


def test_fields_inside_structs_and_maps_are_reached_by_their_path(tmp_path: Path):
    columns = {
        "meta": pa.array([{"id": 7, "at": 1}], pa.struct([("id", "int8"), ("at", "date32")])),
        "texts": pa.array([[("en", "x"), ("fr", "y")]], pa.map_("string", "string")),
    }
    path = write_parquet(tmp_path / "a.parquet", columns)
    found = document(read(path, fields=FieldNames(id="meta.id", text="texts.en")))
    assert (found.id, found.text) == ("7", "x")
    assert json.loads(found.metadata) == {"meta": {"at": "1970-01-02"}, "texts": [["fr", "y"]]}


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
