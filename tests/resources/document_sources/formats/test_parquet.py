"""Parquet: every type of column, broken files and unreadable cells."""

import base64
import json
import os
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

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
