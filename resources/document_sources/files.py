"""Documents in files, on any storage."""

from collections.abc import Iterator, Sequence
from typing import BinaryIO, cast

import fsspec
from fsspec.core import url_to_fs
from pydantic import Field

from resources.document_sources.base import (
    Document,
    DocumentSource,
    FieldNames,
    Period,
    Refusal,
    RefusalReason,
    SourceFile,
)
from resources.document_sources.builder import DocumentBuilder
from resources.document_sources.dated_paths import period_of
from resources.document_sources.formats.registry import BY_ENDING, FileFormat, format_of, read_file
from resources.document_sources.listing import find_files


class FileDocumentSource(DocumentSource):
    """Documents in files of the formats of `FileFormat`, on any fsspec storage."""

    path: str = Field(
        description=(
            "File, folder (with all its subfolders), glob such as `archive/**/*.jsonl.gz`, or any "
            "fsspec URL such as `s3://bucket/archive`. %Y, %m, %d and %H stand for the time of a "
            "file's documents, as in `archive/%Y/%m/*.parquet`: a run then reads only the files "
            "of its own partitions. Names that begin with a dot are ignored, as in a shell."
        ),
    )
    format: FileFormat | None = Field(
        default=None,
        description=(
            f"Format of all files: {', '.join(each.value for each in FileFormat)}. Empty: told by "
            f"each file's ending ({' '.join(BY_ENDING)}; all but Parquet also with .gz)."
        ),
    )
    fields: FieldNames = Field(
        default_factory=FieldNames,
        description="Names of the record fields that hold id, title, text and timestamp.",
    )
    max_document_bytes: int = Field(
        default=10_000_000,
        gt=0,
        description=(
            "Largest document, in bytes of UTF-8; a larger one is refused. A line of JSONL or a "
            "row of CSV may have 64 KiB more."
        ),
    )

    def files(self, periods: Sequence[Period] | None = None) -> list[SourceFile]:
        return find_files(self.path, periods)[1]

    def read(self, periods: Sequence[Period] | None = None) -> Iterator[Document | Refusal]:
        filesystem, files = find_files(self.path, periods)
        return self._read_files(filesystem, files)

    def read_file(self, file: SourceFile) -> Iterator[Document | Refusal]:
        return self._read_files(url_to_fs(self.path)[0], [file])

    def period_of(self, file: str) -> Period | None:
        return period_of(self.path, file)

    def _read_files(
        self, filesystem: fsspec.AbstractFileSystem, files: list[SourceFile]
    ) -> Iterator[Document | Refusal]:
        builder = DocumentBuilder(self.fields, self.max_document_bytes)

        def open_file(location: str) -> BinaryIO:
            return cast(BinaryIO, filesystem.open(location, "rb"))

        for file in files:
            file_format = self.format or format_of(file.path)
            if file_format is not None:
                yield from read_file(file, file_format, open_file, builder)
            else:
                yield Refusal(
                    RefusalReason.unknown_format,
                    None,
                    file.path,
                    None,
                    "the ending tells no known format: set the source's `format`, narrow its "
                    "`path` to a glob, or move the file away",
                )
