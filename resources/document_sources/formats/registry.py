"""Which format a file has, and what happens when the file itself is broken."""

import gzip
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from resources.document_sources.base import Document, Refusal, RefusalReason, SourceFile, bounded
from resources.document_sources.builder import DocumentBuilder
from resources.document_sources.formats.csv import read_csv
from resources.document_sources.formats.jsonl import read_jsonl
from resources.document_sources.formats.markdown import read_markdown
from resources.document_sources.formats.parquet import read_parquet
from resources.document_sources.formats.text import read_text


class FileFormat(str, Enum):
    """How a file holds documents."""

    jsonl = "jsonl"
    """One JSON object a line."""
    csv = "csv"
    """RFC 4180 with a header row; separated by tabs if the file's name ends in .tsv."""
    parquet = "parquet"
    """One row a document."""
    text = "text"
    """One document a file."""
    markdown = "markdown"
    """One document a file, with headings and perhaps YAML front matter; reStructuredText too."""


_ENDINGS = {
    ".jsonl": FileFormat.jsonl,
    ".ndjson": FileFormat.jsonl,
    ".csv": FileFormat.csv,
    ".tsv": FileFormat.csv,
    ".parquet": FileFormat.parquet,
    ".pq": FileFormat.parquet,
    ".txt": FileFormat.text,
    ".md": FileFormat.markdown,
    ".markdown": FileFormat.markdown,
    ".rst": FileFormat.markdown,
}
_GZIP = ".gz"


def format_of(path: str) -> FileFormat | None:
    """The format that a file's ending tells, with or without `.gz`; None if it tells none."""
    ending = _ending(path)
    if ending in (".parquet", ".pq") and path.lower().endswith(_GZIP):
        return None  # Parquet needs random access, and compresses itself
    return _ENDINGS.get(ending)


def read_file(
    file: SourceFile,
    file_format: FileFormat,
    open_file: Callable[[str], BinaryIO],
    builder: DocumentBuilder,
) -> Iterator[Document | Refusal]:
    """Streams one file's documents and refusals; a broken file ends in a refusal that names it.

    Args:
        file: what to read.
        file_format: how to read it.
        open_file: opens a location for reading, in binary.
        builder: turns raw records into documents.
    """
    try:
        if file.problem is not None:
            raise OSError(file.problem)
        with open_file(file.location) as stored:
            if file_format is not FileFormat.parquet and file.location.lower().endswith(_GZIP):
                with _gunzip(stored) as stream:
                    yield from _READERS[file_format](file, stream, builder)
            else:
                yield from _READERS[file_format](file, stored, builder)
    # Whatever a storage, a codec or Parquet raises, the next file can still be read.
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        yield Refusal(RefusalReason.broken_file, None, file.path, None, bounded(detail))


def _ending(path: str) -> str:
    name = PurePosixPath(path.lower())
    return name.with_suffix("").suffix if name.suffix == _GZIP else name.suffix


def _gunzip(stored: BinaryIO) -> BinaryIO:
    if not stored.read(1):
        raise EOFError("an empty file is not gzip: its writer was probably interrupted")
    stored.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=stored, mode="rb"))


_Reader = Callable[[SourceFile, BinaryIO, DocumentBuilder], Iterator[Document | Refusal]]
_READERS: dict[FileFormat, _Reader] = {
    FileFormat.jsonl: read_jsonl,
    FileFormat.csv: read_csv,
    FileFormat.parquet: read_parquet,
    FileFormat.text: read_text,
    FileFormat.markdown: read_markdown,
}
