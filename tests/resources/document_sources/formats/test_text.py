"""Text and Markdown: a document a file."""

import json
import os
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from resources.document_sources import Document, FieldNames, RefusalReason
from tests.support.data import HOSTILE
from tests.support.documents import UTC, document, outcomes, read, refusal, write


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
        ("# C#\n\ntext", "C#"),
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


@pytest.mark.parametrize(
    "title",
    ["12:30", "007", "0x1F", "1_000", "1.10", "1e3", "yes", "No", "on", "2024-01-15",
     "2001-12-14T21:59:43Z", "190:20:30", "0o17", "true"],
)  # fmt: skip
def test_a_title_in_front_matter_is_the_text_that_is_written(tmp_path: Path, title: str):
    (tmp_path / "a.md").write_text(f"---\ntitle: {title}\n---\nbody\n")
    assert document(read(tmp_path)).title == title
    (tmp_path / "a.md").write_text(f"---\nmeta:\n  title: {title}\n  x: y\n---\nbody\n")
    found = document(read(tmp_path, fields=FieldNames(title="meta.title")))
    assert (found.title, found.metadata) == (title, '{"meta":{"x":"y"}}')


def test_front_matter_is_read_as_yaml_1_2_says(tmp_path: Path):
    front = (
        "time: 12:30\ncode: 007\nanswers: [yes, no, on, off, y, n]\nflag: true\nnone: ~\n"
        "n: -5\nx: 1.5\nbig: 1_000\nhex: 0x1F\n"
    )
    (tmp_path / "a.md").write_text(f"---\n{front}---\nbody\n")
    assert json.loads(document(read(tmp_path)).metadata) == {
        "time": "12:30",
        "code": "007",
        "answers": ["yes", "no", "on", "off", "y", "n"],
        "flag": True,
        "none": None,
        "n": -5,
        "x": 1.5,
        "big": "1_000",
        "hex": "0x1F",
    }


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_is_read_alike_in_markdown(tmp_path: Path, end: bytes):
    write(tmp_path / "a.md", b"---", b"date: 2020-01-02", b"---", b"# Rules", b"Wait.", end=end)
    write(tmp_path / "b.txt", b"fine", b"also", b"\xff", end=end)
    found = read(tmp_path, fields=FieldNames(timestamp="date"))
    first = document(found[:1])
    assert (first.title, first.text) == ("Rules", "# Rules\nWait.")
    assert first.timestamp == datetime(2020, 1, 2, tzinfo=UTC)
    assert refusal(found[1:]).line == 3


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


def test_the_declaration_of_human_rights_is_read_in_twenty_languages():
    found = read(HOSTILE / "udhr")
    assert Counter(outcomes(found))["empty_text"] == 1  # nku.txt has no content
    documents = [item for item in found if isinstance(item, Document)]
    assert len(documents) == 19
    assert all(document.id == document.file for document in documents)
    assert "Human Rights" in next(d.text for d in documents if d.id == "eng.txt")
