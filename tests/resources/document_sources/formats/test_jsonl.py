"""JSON Lines: a bad line is refused with its number, and the rest goes on."""

import gzip
import tracemalloc
from pathlib import Path

import orjson
import pytest

from resources.document_sources import Document, FieldNames, Refusal, RefusalReason
from tests.support.data import HOSTILE
from tests.support.documents import GOOD, document, jsonl, outcomes, read, refusal, write


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


@pytest.mark.parametrize(
    "number",
    [
        "-80241446968629135069",
        "123456789012345678901234567890",
        "18446744073709551615",
        "18446744073709551616",
        "-9223372036854775809",
        "0.1000000000000000055511151231257827",
        "123456789.123456789123",
        "1E+400",
        "-1.5E-400",
        "9007199254740993.0",
        "0.1",
        "-0.0",
        "1.7976931348623157e+308",
    ],
)
def test_numbers_stay_exact(tmp_path: Path, number: str):
    record = f'{{"id": "a", "text": "x", "n": {{"deep": [{number}]}}, "half": 0.50}}'
    found = document(read(write(tmp_path / "a.jsonl", record.encode())))
    assert found.metadata == f'{{"half":0.5,"n":{{"deep":[{number}]}}}}'
    front = f"---\nn: {{deep: [{number}]}}\n---\nx"
    if "." in number and "400" not in number:
        assert document(
            read(write(tmp_path / "b.md", front.encode()).parent / "b.md")
        ).metadata == (f'{{"n":{{"deep":[{number}]}}}}')


def test_integers_beyond_64_bits_are_ids_and_floats_are_none(tmp_path: Path):
    ids = "18446744073709551616", "-123456789012345678901234567890", "1.5", "1e400"
    lines = [b'{"id": %s, "text": "x", "m": 0.5}' % each.encode() for each in ids]
    found = read(write(tmp_path / "a.jsonl", *lines))
    assert outcomes(found) == [ids[0], ids[1], "no_id", "no_id"]


def test_a_refusal_names_the_document_where_its_id_is_known(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", b'{"id": "s", "text": "\\ud800"}', b'{"id": "e"}')
    assert [item.document_id for item in read(path) if isinstance(item, Refusal)] == ["s", "e"]


def test_the_last_line_needs_no_line_feed_and_line_separators_inside_text_are_not_line_ends(
    tmp_path: Path,
):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "a", "text": "x\u2028y\x85z"}\n{"id": "b", "text": "x"}', "utf-8")
    assert outcomes(read(path)) == ["a", "b"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_line_ends_with_any_line_end(tmp_path: Path, end: bytes):
    path = write(tmp_path / "a.jsonl", GOOD, b"{oops", b"", GOOD, end=end)
    found = read(path)
    assert outcomes(found) == ["good", "malformed_line", "good"]
    assert [item.line for item in found] == [1, 2, 4]


def test_lines_that_end_in_both_ways_are_all_read(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", GOOD, GOOD + b"\r" + GOOD, GOOD + b"\r\r\n" + GOOD)
    found = read(path)
    assert [(item.line, outcome) for item, outcome in zip(found, outcomes(found), strict=True)] == [
        (1, "good"), (2, "good"), (3, "good"), (4, "good"), (6, "good"),
    ]  # fmt: skip


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
