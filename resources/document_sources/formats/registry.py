"""Which format a file has, and what happens when the file itself is broken."""

import gzip
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from resources.document_sources.base import (
    LINKED_FOLDER,
    Document,
    Refusal,
    RefusalReason,
    SourceFile,
    bounded,
)
from resources.document_sources.builder import DocumentBuilder
from resources.document_sources.formats.csv import read_csv
from resources.document_sources.formats.encodings import in_utf8
from resources.document_sources.formats.jsonl import read_jsonl
from resources.document_sources.formats.markdown import read_markdown
from resources.document_sources.formats.parquet import read_parquet
from resources.document_sources.formats.text import read_text

Reader = Callable[[SourceFile, BinaryIO, DocumentBuilder], Iterator[Document | Refusal]]
_GZIP = ".gz"


class FileFormat(str, Enum):
    """How a file holds documents: a row each, with the reader and the endings that tell it."""

    reader: Reader
    endings: tuple[str, ...]
    is_text: bool

    def __new__(
        cls, name: str, reader: Reader, endings: tuple[str, ...], is_text: bool = True
    ) -> "FileFormat":
        member = str.__new__(cls, name)
        member._value_ = name
        member.reader, member.endings, member.is_text = reader, endings, is_text
        return member

    @property
    def may_be_gzipped(self) -> bool:
        return self.is_text

    jsonl = "jsonl", read_jsonl, (".jsonl", ".ndjson")
    """One JSON object a line."""
    csv = "csv", read_csv, (".csv", ".tsv")
    """RFC 4180 with a header row; the separator is the comma (of .tsv the tab), or what the header
    row has between its names: semicolon, tab, vertical bar."""
    parquet = "parquet", read_parquet, (".parquet", ".pq"), False
    """One row a document. Not with gzip: it needs random access, and compresses itself."""
    text = "text", read_text, (".txt",)
    """One document a file."""
    markdown = "markdown", read_markdown, (".md", ".markdown", ".rst")
    """One document a file, with headings and perhaps YAML front matter; reStructuredText too."""


BY_ENDING = {ending: each for each in FileFormat for ending in each.endings}


def format_of(path: str) -> FileFormat | None:
    """The format that a file's ending tells, with or without `.gz`; None if it tells none."""
    name = PurePosixPath(path.lower())
    gzipped = name.suffix == _GZIP
    found = BY_ENDING.get(name.with_suffix("").suffix if gzipped else name.suffix)
    return None if found is not None and gzipped and not found.may_be_gzipped else found


def is_marker(path: str, given: FileFormat | None) -> bool:
    """Whether Spark, Hive and DuckDB pass over a file: `_SUCCESS`, `_metadata`, `_temporary/…`.

    Such names begin with an underscore and hold no `=`. With the ending of another format than
    Parquet they are documents as well as any, such as `_index.md`.
    """
    parts = path.split("/")
    if not any(part.startswith("_") and "=" not in part for part in parts):
        return False
    known = given if given is not None and "." in parts[-1] else format_of(path)
    return known in (None, FileFormat.parquet)


def read_file(
    file: SourceFile,
    file_format: FileFormat | None,
    open_file: Callable[[str], BinaryIO],
    builder: DocumentBuilder,
    encoding: str | None = None,
) -> Iterator[Document | Refusal]:
    """Streams one file's documents and refusals; a broken file ends in a refusal that names it.

    Args:
        file: what to read.
        file_format: how to read it; None only of a file that has a problem.
        open_file: opens a location for reading, in binary.
        builder: turns raw records into documents.
        encoding: of text formats, as `in_utf8` takes it.
    """
    if file.problem is not None or file_format is None:
        linked = file.problem == LINKED_FOLDER
        reason = RefusalReason.linked_folder if linked else RefusalReason.broken_file
        yield Refusal(reason, None, file.path, None, bounded(file.problem or "no known format"))
        return
    try:
        with open_file(file.location) as stored:
            if file_format.may_be_gzipped and file.location.lower().endswith(_GZIP):
                with _gunzip(stored) as stream:
                    yield from file_format.reader(file, in_utf8(stream, encoding), builder)
            elif file_format.is_text:
                yield from file_format.reader(file, in_utf8(stored, encoding), builder)
            else:
                yield from file_format.reader(file, stored, builder)
    # Whatever a storage, a codec or Parquet raises, the next file can still be read.
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        yield Refusal(RefusalReason.broken_file, None, file.path, None, bounded(detail))


def _gunzip(stored: BinaryIO) -> BinaryIO:
    if not stored.read(1):
        raise EOFError("an empty file is not gzip: its writer was probably interrupted")
    stored.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=stored, mode="rb"))
