"""The beginning of a source: its records as they are, before any field has a meaning.

How many files are listed and opened, and how many bytes and records are read, is bounded. The
readers are those of the pipeline.
"""

import gzip
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from resources.document_sources.base import Document, FieldNames, Refusal, SourceFile
from resources.document_sources.builder import DocumentBuilder
from resources.document_sources.files import FileDocumentSource
from resources.document_sources.formats.registry import FileFormat, format_of, read_file
from resources.urls import open_storage

MOST_FILES_LISTED = 10_000
MOST_FILES_READ = 50
MOST_RECORDS = 1_000
_MOST_BYTES = 32 * 1024 * 1024
_HEAD_BYTES = 64 * 1024
_GZIP_MAGIC = b"\x1f\x8b"
ONE_A_FILE = (FileFormat.text, FileFormat.markdown)
"""Formats of which a file is a document."""


@dataclass
class Sample:
    """What was seen of some files.

    Attributes:
        records: the fields of each record by name, as its format has them, by file.
        found: what became of each: a document, or a refusal.
        documents: how many there are in all files; an estimate unless all was read.
        is_whole: whether these are all records of all files.
    """

    records: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    found: list[Document | Refusal] = field(default_factory=list)
    documents: int = 0
    is_whole: bool = True

    @property
    def refusals(self) -> list[Refusal]:
        return [one for one in self.found if isinstance(one, Refusal)]


def list_some(path: str) -> tuple[list[SourceFile], bool]:
    """The files of a source; of a large local folder those that the system names first.

    Returns:
        At most `MOST_FILES_LISTED` files, sorted by path, and whether these are all.

    Raises:
        SourceNotFoundError: there is none.
    """
    filesystem, folder = open_storage(path, "source.path")
    if isinstance(filesystem, LocalFileSystem) and Path(folder).is_dir():
        entries = [*islice(_entries(folder), MOST_FILES_LISTED + 1)]
        if len(entries) > MOST_FILES_LISTED:
            entries.pop()
            found = [
                SourceFile(
                    path=os.path.relpath(each, folder),
                    location=each.path,
                    size=each.stat().st_size,
                    modified=None,
                    etag=None,
                )
                for each in entries
            ]
            return sorted(found, key=lambda file: file.path), False
    files = FileDocumentSource(path=path).files()
    return files[:MOST_FILES_LISTED], len(files) <= MOST_FILES_LISTED


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """The files below a local folder, each as soon as the system names it."""
    folders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.is_file():
                yield entry
    for each in folders:
        yield from _entries(each)


def head(path: str, file: SourceFile) -> bytes:
    """The first bytes of a file, of one with gzip as unpacked."""
    filesystem, _ = open_storage(path, "source.path")
    with filesystem.open(file.location, "rb") as stored:
        begun = cast(BinaryIO, stored).read(_HEAD_BYTES)
    if not begun.startswith(_GZIP_MAGIC):
        return begun
    unpacked = b""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(begun)) as stream:
            while len(unpacked) < _HEAD_BYTES and (more := stream.read1()):
                unpacked += more
    except (EOFError, OSError):  # cut, or damaged
        pass
    return unpacked[:_HEAD_BYTES]


def read_records(source: FileDocumentSource, files: Sequence[SourceFile]) -> Sample:
    """The raw records at the beginnings of some of the files, spread over all of them.

    Args:
        source: of the files; the names of its fields play no part.
        files: all of which the sample is to speak.
    """
    return _read(source, files, _Recorder)


def read_documents(source: FileDocumentSource, files: Sequence[SourceFile]) -> Sample:
    """The same records as the documents and refusals that the source makes of them."""
    limit = min(source.max_document_bytes, _MOST_BYTES)
    return _read(source, files, lambda: DocumentBuilder(source.fields, limit))


def _read(
    source: FileDocumentSource, files: Sequence[SourceFile], made: Callable[[], DocumentBuilder]
) -> Sample:
    filesystem, _ = open_storage(source.path, "source.path")
    sample = Sample()
    chosen = _spread(source, files)
    for file in chosen:
        one = _read_one(
            filesystem, file, source, made(), -(-MOST_RECORDS // len(chosen)), len(chosen)
        )
        sample.records |= one.records
        sample.found += one.found
        sample.documents += one.documents
        sample.is_whole = sample.is_whole and one.is_whole
    if len(chosen) < len(files):
        sample.is_whole = False
        read, size = (sum(file.size or 0 for file in each) for each in (chosen, files))
        share = size / read if read else len(files) / len(chosen)
        one_a_file = all(_format(source, file) in ONE_A_FILE for file in chosen)
        sample.documents = len(files) if one_a_file else round(sample.documents * share)
    return sample


def _format(source: FileDocumentSource, file: SourceFile) -> FileFormat | None:
    return source.format or format_of(file.path)


def _spread(source: FileDocumentSource, files: Sequence[SourceFile]) -> list[SourceFile]:
    one_a_file = all(_format(source, file) in ONE_A_FILE for file in files)
    most = MOST_RECORDS if one_a_file else MOST_FILES_READ
    if len(files) <= most:
        return [*files]
    return [files[number * (len(files) - 1) // (most - 1)] for number in range(most)]


def _read_one(
    filesystem: AbstractFileSystem,
    file: SourceFile,
    source: FileDocumentSource,
    builder: DocumentBuilder,
    records: int,
    files: int,
) -> Sample:
    """The beginning of one of so many files; what is cut off at its end is no refusal."""
    file_format = _format(source, file)
    streams: list[_Beginning] = []

    def open_file(location: str) -> BinaryIO:
        # Parquet begins at its end, and reads by itself no more than it is asked for.
        most = None if file_format is FileFormat.parquet else _MOST_BYTES // files
        streams.append(_Beginning(filesystem.open(location, "rb"), most))
        return cast(BinaryIO, streams[-1])

    found = read_file(file, file_format, open_file, builder, source.encoding)
    sample = Sample(found=[*islice(found, records)])
    ended = len(sample.found) < records or next(found, None) is None
    cut = any(stream.is_cut for stream in streams)
    if ended and cut and sample.found and isinstance(sample.found[-1], Refusal):
        sample.found.pop()
    if isinstance(builder, _Recorder):
        sample.records[file.path] = builder.records[: len(sample.found)]
    sample.is_whole = ended and not cut
    sample.documents = len(sample.found)
    if not sample.is_whole and streams and file.size:
        if file_format is FileFormat.parquet:
            sample.documents = _rows(filesystem, file)
        elif file_format not in ONE_A_FILE:
            # Up to the end of the piece that was read last: it holds more than the records taken.
            piece = streams[-1].furthest
            while streams[-1].furthest == piece and next(found, None) is not None:
                sample.documents += 1
            sample.documents = round(sample.documents * max(1, file.size / max(1, piece)))
    for stream in streams:
        stream.close()
    return sample


def _rows(filesystem: AbstractFileSystem, file: SourceFile) -> int:
    import pyarrow.parquet as pq

    with filesystem.open(file.location, "rb") as stored:
        return pq.ParquetFile(stored).metadata.num_rows


class _Recorder(DocumentBuilder):
    """Keeps the records of a reader as they are, and makes a document of none."""

    def __init__(self) -> None:
        super().__init__(FieldNames(), max_document_bytes=_MOST_BYTES)
        self.records: list[dict[str, Any]] = []

    def from_record(self, record: dict[str, Any], file: str, line: int) -> Document | Refusal:
        self.records.append(record)
        return Document("", "", "", None, "{}", file, line)

    def build(
        self,
        raw_id: Any,
        raw_title: Any,
        raw_text: Any,
        raw_timestamp: Any,
        metadata: dict[str, Any],
        file: str,
        line: int,
        record: dict[str, Any] | None = None,
    ) -> Document | Refusal:
        """Of a format of which a file is a document: its parts, and its front matter."""
        del raw_id, raw_timestamp, record
        parts = {"title": raw_title, "text": raw_text}
        return self.from_record({**parts, **metadata}, file, line)


class _Beginning(io.RawIOBase):
    """A stream that ends after so many bytes, and knows how far it was read."""

    def __init__(self, stream: Any, most: int | None) -> None:
        self._stream, self._most = stream, most
        self.furthest = 0
        self.is_cut = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = len(buffer)
        if self._most is not None:
            wanted = min(wanted, self._most - self._stream.tell())
            if wanted <= 0:
                self.is_cut = self.is_cut or bool(self._stream.read(1))
                return 0
        data = self._stream.read(wanted)
        self.furthest = max(self.furthest, self._stream.tell())
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        self._stream.close()
        super().close()
