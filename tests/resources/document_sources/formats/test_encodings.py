"""Encodings: declared ones, UTF-16 and UTF-32 with and without a mark, and what is no text."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from resources.document_sources import Document, FileDocumentSource, RefusalReason
from tests.support.documents import document, outcomes, read, refusal, write

TEXT = "Größe “naïve” – the harbour office opens at nine.\nŽluťoučký kůň, Афины, Αθήνα."
ENDINGS = "txt", "md", "csv", "tsv", "jsonl", "jsonl.gz"


def content(ending: str, text: str) -> str:
    return {
        "csv": f'id,text\na,"{text}"\n',
        "tsv": f'id\ttext\na\t"{text}"\n',
        "jsonl": json.dumps({"id": "a", "text": text}, ensure_ascii=False) + "\n",
    }.get(ending.removesuffix(".gz"), text)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"],
)
def test_unicode_is_recognised_in_every_format(tmp_path: Path, ending: str, encoding: str):
    write(tmp_path / f"a.{ending}", content(ending, TEXT).encode(encoding), end=b"")
    assert document(read(tmp_path)).text == TEXT


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("cp1252", "Größe “naïve”"), ("latin-1", "Größe"), ("shift_jis", "日本語の文書"),
     ("utf-16-le", "日本語"), ("gb18030", "中文"), ("koi8-r", "Афины"), ("UTF8", "Größe")],
)  # fmt: skip
def test_a_declared_encoding_is_used_for_every_text_format(
    tmp_path: Path, encoding: str, text: str
):
    for ending in ENDINGS:
        write(tmp_path / f"a.{ending}", content(ending, text).encode(encoding), end=b"")
    found = [item for item in read(tmp_path, encoding=encoding) if isinstance(item, Document)]
    assert [item.text for item in found] == [text] * len(ENDINGS)


def test_an_encoding_that_nobody_knows_is_refused_with_examples():
    for name in ("utf-9", "hex", ""):
        with pytest.raises(ValidationError, match="named as utf-8, cp1252 or utf-16-le"):
            FileDocumentSource(path="x", encoding=name)


def test_what_is_invalid_in_a_declared_encoding_refuses_its_record_alone(tmp_path: Path):
    lines = '{"id": "a", "text": "ä"}\n', '{"id": "b", "text": "', '"}\n{"id": "c", "text": "ö"}\n'
    first, second, third = (line.encode("shift_jis", "xmlcharrefreplace") for line in lines)
    write(tmp_path / "a.jsonl", first + second + b"\x81\xff" + third, end=b"")
    found = read(tmp_path, encoding="shift_jis")
    assert outcomes(found) == ["a", "invalid_utf8", "c"]
    assert [item.line for item in found] == [1, 2, 3]


@pytest.mark.parametrize(
    "binary",
    [
        bytes(range(128)) * 20,
        b"text\0",
        b"\0text",
        b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\0>\0\x01\0\0\0",
        "abc".encode("utf-16-le") + b"\0\0\x01\0",
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.md"])
def test_binary_data_is_refused_not_stored_as_text(tmp_path: Path, name: str, binary: bytes):
    write(tmp_path / name, binary, end=b"")
    assert refusal(read(tmp_path)).reason is RefusalReason.nul_character


def test_a_character_across_two_reads_is_one(tmp_path: Path):
    text = "日" * 300_000
    write(tmp_path / "a.txt", text.encode("utf-16"), end=b"")
    assert document(read(tmp_path)).text == text
