"""Text: one document a file."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from resources.document_sources.base import (
    Document,
    Refusal,
    RefusalReason,
    SourceFile,
    bounded,
    excerpt,
)
from resources.document_sources.builder import DocumentBuilder
from resources.document_sources.formats.lines import BOM, RECORD_SLACK_BYTES, too_large

MODIFIED = "modified"
"""The timestamp field of text and Markdown that stands for the file's modification time."""


def read_text(
    file: SourceFile, stream: BinaryIO, builder: DocumentBuilder
) -> Iterator[Document | Refusal]:
    text = whole_text(file, stream, builder)
    if isinstance(text, Refusal):
        yield text
        return
    timestamp = file.modified if builder.timestamp_field == MODIFIED else None
    yield whole_document(file, builder, stem(file.path), text, timestamp, {})


def whole_text(file: SourceFile, stream: BinaryIO, builder: DocumentBuilder) -> str | Refusal:
    limit = builder.max_document_bytes + RECORD_SLACK_BYTES
    data = b""
    # A network stream may hand over less than was asked for, long before its end.
    while len(data) <= limit and (chunk := stream.read(limit + 1 - len(data))):
        data += chunk
    if len(data) > limit:
        return too_large(data, limit).at(file.path, 1)
    try:
        return data.removeprefix(BOM).decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = len((data[: error.start] + b"x").splitlines())
        detail = f"{error.reason} at byte {error.start}: {excerpt(data[error.start :])}"
        return Refusal(RefusalReason.invalid_utf8, None, file.path, line, bounded(detail))


def whole_document(
    file: SourceFile,
    builder: DocumentBuilder,
    title: Any,
    text: str,
    timestamp: datetime | None,
    metadata: dict[str, Any],
) -> Document | Refusal:
    try:
        file.location.encode()
    except UnicodeEncodeError:
        # `path` is escaped and would be another file's id.
        detail = "the file's name is not valid UTF-8"
        return Refusal(RefusalReason.lone_surrogate, None, file.path, 1, detail)
    return builder.build(file.path, title, text, timestamp, metadata, file.path, 1)


def stem(path: str) -> str:
    name = PurePosixPath(path)
    return PurePosixPath(name.stem).stem if name.suffix.lower() == ".gz" else name.stem
