"""Documents in files, on any storage."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import BinaryIO, cast

import fsspec
from pydantic import PrivateAttr

from resources.document_sources.base import (
    Document,
    DocumentSource,
    Period,
    Refusal,
    RefusalReason,
    SourceFile,
)
from resources.document_sources.builder import DocumentBuilder
from resources.document_sources.dated_paths import fixed_folder, generalise, period_of
from resources.document_sources.formats.registry import (
    FileFormat,
    format_of,
    is_marker,
    read_file,
)
from resources.document_sources.listing import find_files
from resources.document_sources.settings import FileSourceSettings
from resources.urls import as_uri, open_storage

_KINDS = {FileFormat.jsonl: "json"}
_STORAGES = {
    "s3": "s3",
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "azure"),
}


class FileDocumentSource(FileSourceSettings, DocumentSource):
    """Documents in files of the formats of `FileFormat`, on any fsspec storage."""

    _opened: BinaryIO | None = PrivateAttr(default=None)

    @property
    def kinds(self) -> set[str]:
        told = self.format or format_of(self.path)
        storage = _STORAGES.get(self.path.partition("://")[0])
        kinds = {_KINDS.get(told, str(told.value)) if told else "file"}
        if storage:
            kinds.add(storage)
        return kinds

    @property
    def address(self) -> str:
        chained = "::" in self.path  # storages in each other, such as zip://*.csv::s3://…
        if chained or not any(sign in generalise(self.path) for sign in "*?["):
            return as_uri(self.path)
        return as_uri(fixed_folder(self.path) or "/")

    def files(self, periods: Sequence[Period] | None = None) -> list[SourceFile]:
        return self._find(periods)[1]

    def read(self, periods: Sequence[Period] | None = None) -> Iterator[Document | Refusal]:
        filesystem, files = self._find(periods)
        return self._read_files(filesystem, files)

    def read_file(self, file: SourceFile) -> Iterator[Document | Refusal]:
        return self._read_files(open_storage(self.path, "source.path")[0], [file])

    def bytes_read(self) -> int:
        try:
            return 0 if self._opened is None else self._opened.tell()
        except ValueError:  # it is closed
            return 0

    def period_of(self, file: str) -> Period | None:
        return period_of(self.path, file)

    def _find(
        self, periods: Sequence[Period] | None
    ) -> tuple[fsspec.AbstractFileSystem, list[SourceFile]]:
        return find_files(self.path, periods, partial(is_marker, given=self.format))

    def _read_files(
        self, filesystem: fsspec.AbstractFileSystem, files: list[SourceFile]
    ) -> Iterator[Document | Refusal]:
        builder = DocumentBuilder(self.fields, self.max_document_bytes)

        def open_file(location: str) -> BinaryIO:
            self._opened = cast(BinaryIO, filesystem.open(location, "rb"))
            return self._opened

        for file in files:
            file_format = self.format or format_of(file.path)
            if file_format is not None or file.problem is not None:
                yield from read_file(file, file_format, open_file, builder, self.encoding)
            else:
                yield Refusal(
                    RefusalReason.unknown_format,
                    None,
                    file.path,
                    None,
                    "the ending tells no known format: set the source's `format`, narrow its "
                    "`path` to a glob, or move the file away",
                )
