"""What every format of files promises; a format is one row of `SAMPLES`."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resources.document_sources import Document, FileDocumentSource, FileFormat, RefusalReason
from resources.document_sources.formats.registry import BY_ENDING, format_of


def _parquet(**columns: Any) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue().to_pybytes()


SAMPLES = {
    FileFormat.jsonl: b'{"id": "a", "title": "Greeting", "text": "Hello."}\n',
    FileFormat.csv: b"id,title,text\na,Greeting,Hello.\n",
    FileFormat.parquet: _parquet(id=["a"], title=["Greeting"], text=["Hello."]),
    FileFormat.text: b"Hello.\n",
    FileFormat.markdown: b"---\ntitle: Greeting\n---\nHello.\n",
}
"""Files that hold one document, whose text is "Hello."."""


def _read(path: Path, **settings: Any) -> list[Any]:
    return list(FileDocumentSource(path=str(path), **settings).read())


@pytest.mark.parametrize(("ending", "file_format"), BY_ENDING.items())
def test_a_file_is_read_by_its_ending(tmp_path: Path, ending: str, file_format: FileFormat) -> None:
    content = SAMPLES[file_format]
    if ending == ".tsv":
        content = content.replace(b",", b"\t")
    (tmp_path / f"greeting{ending.upper()}").write_bytes(content)
    [document] = _read(tmp_path)
    assert isinstance(document, Document)
    assert document.text == "Hello."
    assert document.title == ("greeting" if file_format is FileFormat.text else "Greeting")
    assert document.file == f"greeting{ending.upper()}"


@pytest.mark.parametrize("file_format", FileFormat)
def test_a_format_can_be_named_where_the_ending_tells_none(
    tmp_path: Path, file_format: FileFormat
) -> None:
    (tmp_path / "greeting.data").write_bytes(SAMPLES[file_format])
    [refusal] = _read(tmp_path)
    assert refusal.reason is RefusalReason.unknown_format
    [document] = _read(tmp_path, format=file_format.value)
    assert document.text == "Hello."


@pytest.mark.parametrize("file_format", FileFormat)
def test_gzip_is_read_where_the_format_allows_it(tmp_path: Path, file_format: FileFormat) -> None:
    name = f"greeting{file_format.endings[0]}.gz"
    (tmp_path / name).write_bytes(gzip.compress(SAMPLES[file_format]))
    assert (format_of(name) is file_format) == file_format.may_be_gzipped
    [found] = _read(tmp_path)
    if file_format.may_be_gzipped:
        assert found.text == "Hello."
    else:
        assert found.reason is RefusalReason.unknown_format


@pytest.mark.parametrize("file_format", FileFormat)
def test_bytes_of_no_format_are_refused_with_the_file_and_stop_nothing(
    tmp_path: Path, file_format: FileFormat
) -> None:
    ending = file_format.endings[0]
    (tmp_path / f"a{ending}").write_bytes(b"\xff\xfe\x00 nothing that any format knows \xff\n")
    (tmp_path / f"b{ending}").write_bytes(SAMPLES[file_format])
    refusal, document = _read(tmp_path)
    assert (refusal.file, document.text) == (f"a{ending}", "Hello.")


def test_the_readme_names_every_format() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    [row] = [line for line in readme.splitlines() if line.startswith("| `source.format` |")]
    assert [each for each in FileFormat if f"`{each.value}`" not in row] == []
