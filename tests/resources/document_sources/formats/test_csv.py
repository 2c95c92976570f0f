"""CSV: records end where the csv module ends them, and a bad one is refused with its line."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from resources.document_sources import Document
from resources.document_sources.formats.csv import csv_records, csv_row
from resources.document_sources.formats.encodings import in_utf8
from resources.document_sources.formats.lines import lines
from tests.support.documents import document, outcomes, read, refusal, write


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


@pytest.mark.parametrize("header", [b"Id,Title,body", b"Id;Title;body"])
def test_a_header_with_other_names_is_told_name_by_name(tmp_path: Path, header: bytes):
    found = refusal(read(write(tmp_path / "a.csv", header, header.lower())))
    assert (
        "(did you mean 'Id'? set source.fields.id); the record has: 'Id', 'Title', 'body'"
        in found.detail
    )


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
        (16, "broken_file"),
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


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_rows_end_as_the_header_does(tmp_path: Path, end: bytes):
    path = write(tmp_path / "a.csv", b"id,text", b'1,"a', b'b"', b"2,x", b"3", b"4,y", end=end)
    found = read(path)
    assert outcomes(found) == ["1", "2", "malformed_line", "4"]
    assert [item.line for item in found] == [2, 4, 5, 6]
    assert document(found[:1]).text == "a\nb"


def test_a_carriage_return_at_the_end_of_a_read_is_one_line_end_with_its_line_feed():
    for end in ("\n", "\r\n", "\r"):
        text = end.join(["ab", "", "cdef", "g", "hi", "jklm", ""])
        for lone_cr in (None, True):
            dribbled = lines(in_utf8(_Dribble(text.encode()), "utf-8"), 100, lone_cr=lone_cr)
            found = [(number, line.rstrip(b"\r")) for number, line, _ in dribbled]
            assert found == [
                (1, b"ab"), (2, b""), (3, b"cdef"), (4, b"g"), (5, b"hi"), (6, b"jklm"),
            ]  # fmt: skip


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_the_separator_is_the_one_between_the_fields_names(
    tmp_path: Path, name: str, separator: str
):
    rows = [["id", "text", "n"], ["1", '"a, b; c|d"', "0"], ["2", "x", "1"]]
    path = write(tmp_path / name, *(separator.join(row).encode() for row in rows))
    found = [item for item in read(path) if isinstance(item, Document)]
    assert [(item.text, item.metadata) for item in found] == [
        ("a, b; c|d", '{"n":"0"}'),
        ("x", '{"n":"1"}'),
    ]


def test_csv_fields_may_be_longer_than_the_csv_module_allows_by_default(tmp_path: Path):
    text = "x" * 1_000_000
    path = write(tmp_path / "a.csv", b"id,text", b"1," + text.encode())
    assert document(read(path)).text == text


class _Dribble(io.BytesIO):
    """A stream that hands over a few bytes at a time, as a network may."""

    def read1(self, size: int | None = -1) -> bytes:
        return self.read(3 if size else 0)


def _rows(text: str, limit: int) -> Iterator[tuple[int, bytes, bool]]:
    return lines(in_utf8(_Dribble(text.encode()), "utf-8"), limit)


def test_csv_records_end_where_the_csv_module_ends_them_also_when_they_are_too_large():
    random = Random(5)
    for _ in range(5_000):
        text = "".join(random.choice('ab,,""""\n\n') for _ in range(random.randrange(1, 40)))
        records = list(csv_records(_rows(text, 1_000), 1_000, b","))
        tiny = list(csv_records(_rows(text, 2), 2, b","))
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
