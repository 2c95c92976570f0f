"""What every format of documents promises; a new format is one row of `FORMATS`."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resources.document_sources import (
    Document,
    FileDocumentSource,
    FileFormat,
    Refusal,
    RefusalReason,
)
from resources.document_sources.formats.registry import BY_ENDING, format_of
from resources.identity.content_hash import canonical_text
from tests.support.checkout import PROJECT
from tests.support.data import HOSTILE
from tests.support.documents import GOOD, document, outcomes, read, write


def jsonl(texts: Sequence[str]) -> bytes:
    return b"".join(orjson.dumps({"id": i, "text": t}) + b"\n" for i, t in enumerate(texts))


def separated(texts: Sequence[str], by: str) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=by).writerows([("id", "text"), *enumerate(texts)])
    return file.getvalue().encode()


def parquet(texts: Sequence[str]) -> bytes:
    file = io.BytesIO()
    table = pa.table({"id": list(range(len(texts))), "text": list(texts)})
    pq.write_table(table, file, row_group_size=4, write_page_checksum=True)
    return file.getvalue()


FORMATS: dict[str, Callable[[Sequence[str]], bytes] | None] = {
    "jsonl": jsonl,
    "jsonl.gz": jsonl,
    "csv": lambda texts: separated(texts, ","),
    "csv.gz": lambda texts: separated(texts, ","),
    "tsv": lambda texts: separated(texts, "\t"),
    "parquet": parquet,
    "txt": None,
    "txt.gz": None,
    "md": None,
}
"""What many texts become in one file; None: each text is a file of its own."""


@pytest.fixture(params=FORMATS)
def ending(request: pytest.FixtureRequest) -> str:
    return request.param


def write_texts(folder: Path, texts: Sequence[str], ending: str) -> list[Path]:
    same_format = (each for each in FORMATS if format_of(f"a.{each}") is format_of(f"a.{ending}"))
    whole = FORMATS[ending if ending in FORMATS else next(same_format)]
    contents = [text.encode() for text in texts] if whole is None else [whole(texts)]
    return [
        write(folder / f"{i:03}.{ending}", content, end=b"") for i, content in enumerate(contents)
    ]


@pytest.mark.parametrize("any_ending", BY_ENDING)
def test_a_file_is_read_by_its_ending_in_any_case(tmp_path: Path, any_ending: str):
    [path] = write_texts(tmp_path, ["Hello."], any_ending.removeprefix("."))
    path.rename(path.with_suffix(any_ending.upper()))
    assert document(read(tmp_path)).text == "Hello."


@pytest.mark.parametrize("file_format", FileFormat)
def test_a_format_can_be_named_where_the_ending_tells_none(tmp_path: Path, file_format: FileFormat):
    [path] = write_texts(tmp_path, ["Hello."], file_format.endings[0].removeprefix("."))
    path.rename(path.with_suffix(".data"))
    assert outcomes(read(tmp_path)) == ["unknown_format"]
    assert document(read(tmp_path, format=file_format.value)).text == "Hello."


@pytest.mark.parametrize("file_format", FileFormat)
def test_gzip_is_read_where_the_format_allows_it(tmp_path: Path, file_format: FileFormat):
    [path] = write_texts(tmp_path, ["Hello."], file_format.endings[0].removeprefix("."))
    name = f"{path.name}.gz"
    (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
    assert (format_of(name) is file_format) == file_format.may_be_gzipped
    [found] = read(tmp_path / name)
    if file_format.may_be_gzipped:
        assert isinstance(found, Document)
        assert found.text == "Hello."
    else:
        assert outcomes([found]) == ["unknown_format"]


@pytest.mark.parametrize("file_format", FileFormat)
def test_bytes_of_no_format_are_refused_with_the_file_and_stop_nothing(
    tmp_path: Path, file_format: FileFormat
):
    [good] = write_texts(tmp_path, ["Hello."], file_format.endings[0].removeprefix("."))
    bad = write(tmp_path / f"{good.stem}.a{good.suffix}", b"\xff\xfe\x00 of no format \xff")
    found = {item.file: item for item in read(tmp_path)}
    assert isinstance(found[bad.name], Refusal)
    assert isinstance(found[good.name], Document)


def test_the_page_on_a_first_corpus_names_every_format():
    page = (PROJECT / "docs/first_corpus.md").read_text(encoding="utf-8")
    assert [each for each in FileFormat if f"`{each.endings[0]}`" not in page] == []


def test_every_naughty_string_is_read_unaltered_or_refused_as_empty(tmp_path: Path, ending: str):
    strings = json.loads((HOSTILE / "blns.json").read_text("utf-8"))
    write_texts(tmp_path, strings, ending)
    found = read(tmp_path)
    assert len(found) == len(strings)
    for item, text in zip(found, strings, strict=True):
        if isinstance(item, Document):
            assert item.text == canonical_text(text)
        else:
            assert item.reason is RefusalReason.empty_text
    assert sum(isinstance(item, Refusal) for item in found) < 10
    assert read(tmp_path) == found


def test_what_is_refused_has_its_own_position_and_the_rest_goes_on(tmp_path: Path, ending: str):
    texts = ["first", "", "x" * 200_000, "line\nbreak", " \n\t", "y" * 5_000, "last"]
    write_texts(tmp_path, texts, ending)
    found = read(tmp_path, max_document_bytes=1_000)
    assert [item.text for item in found if isinstance(item, Document)] == [
        "first", "line\nbreak", "last",
    ]  # fmt: skip
    refused = [item.reason.value for item in found if isinstance(item, Refusal)]
    assert refused == ["empty_text", "too_large", "empty_text", "too_large"]
    assert [type(item) for item in found] == [
        Document, Refusal, Refusal, Document, Refusal, Refusal, Document,
    ]  # fmt: skip
    positions = [(item.file, item.line or 0) for item in found]
    assert positions == sorted(positions)
    assert FORMATS[ending] is None or len({*positions}) == len(texts)


def test_a_file_cut_anywhere_loses_nothing_before_the_cut_and_the_next_file_is_read(
    tmp_path: Path, ending: str
):
    texts = [f"text {i} " + "abcdefghij" * 20 for i in range(40)]
    path = write_texts(tmp_path, texts, ending)[0]
    whole = path.read_bytes()
    write(tmp_path / "z.jsonl", GOOD)
    for end in sorted({0, 1, len(whole) - 1, *range(0, len(whole), len(whole) // 7)}):
        path.write_bytes(whole[:end])
        *found, last = [item for item in read(tmp_path) if item.file in (path.name, "z.jsonl")]
        assert isinstance(last, Document)
        assert last.id == "good"
        documents = [item for item in found if isinstance(item, Document)]
        assert len(found) - len(documents) <= 1
        assert [d.text for d in documents[:-1]] == texts[: len(documents[:-1])]
        assert all(text.startswith(d.text) for d, text in zip(documents, texts, strict=False))


@pytest.mark.parametrize("seed", range(3))
def test_random_bytes_are_read_to_their_end_and_the_next_file_is_read(
    tmp_path: Path, ending: str, seed: int
):
    (tmp_path / f"a.{ending}").write_bytes(np.random.default_rng(seed).bytes(20_000))
    write(tmp_path / "z.jsonl", GOOD)
    *found, last = outcomes(read(tmp_path))
    assert last == "good"
    assert found
    assert {*found} <= {reason.value for reason in RefusalReason}


def test_a_file_that_vanishes_after_listing_is_a_broken_file(tmp_path: Path, ending: str):
    gone = write_texts(tmp_path, ["text"], ending)[0]
    write(tmp_path / "z.jsonl", GOOD)
    stream = FileDocumentSource(path=str(tmp_path)).read()
    gone.unlink()
    assert outcomes(list(stream)) == ["broken_file", "good"]


def test_a_reader_can_be_left_early_and_its_file_is_closed(tmp_path: Path, ending: str):
    write_texts(tmp_path, ["text"] * 10, ending)
    stream = FileDocumentSource(path=str(tmp_path)).read()
    assert isinstance(next(stream), Document)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert next(stream, None) is None
