"""Text, Markdown and reStructuredText: one document a file."""

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import yaml

from resources.document_sources.builder import (
    Document,
    DocumentBuilder,
    Refusal,
    RefusalReason,
    RefusedRecord,
    bounded,
    canonical_json,
    excerpt,
)
from resources.document_sources.formats.lines import BOM, RECORD_SLACK_BYTES, too_large
from resources.document_sources.listing import SourceFile

MODIFIED = "modified"
"""The timestamp field of text and Markdown that stands for the file's modification time."""
_MAX_FRONT_MATTER = 64 * 1024


def read_text(
    file: SourceFile, stream: BinaryIO, builder: DocumentBuilder
) -> Iterator[Document | Refusal]:
    text = _whole_text(file, stream, builder)
    if isinstance(text, Refusal):
        yield text
        return
    timestamp = file.modified if builder.timestamp_field == MODIFIED else None
    yield _whole_document(file, builder, _stem(file.path), text, timestamp, {})


def read_markdown(
    file: SourceFile, stream: BinaryIO, builder: DocumentBuilder
) -> Iterator[Document | Refusal]:
    text = _whole_text(file, stream, builder)
    if isinstance(text, Refusal):
        yield text
        return
    front, body = _split_front_matter(text)
    title = front.pop(builder.title_field, None)
    timestamp = None
    if builder.timestamp_field == MODIFIED:
        timestamp = file.modified
    elif builder.timestamp_field is not None:
        timestamp = front.pop(builder.timestamp_field, None)
    if title is None or (isinstance(title, str) and not title.strip()):
        title = _heading(body) or _stem(file.path)
    yield _whole_document(file, builder, title, body, timestamp, front)


def _whole_text(file: SourceFile, stream: BinaryIO, builder: DocumentBuilder) -> str | Refusal:
    limit = builder.max_document_bytes + RECORD_SLACK_BYTES
    data = b""
    # A network stream may hand over less than was asked for, long before its end.
    while len(data) <= limit and (chunk := stream.read(limit + 1 - len(data))):
        data += chunk
    if len(data) > limit:
        return too_large(data, limit, file.path, 1)
    try:
        return data.removeprefix(BOM).decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        detail = f"{error.reason} at byte {error.start}: {excerpt(data[error.start :])}"
        return Refusal(RefusalReason.invalid_utf8, None, file.path, line, bounded(detail))


def _whole_document(
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


def _stem(path: str) -> str:
    name = PurePosixPath(path)
    return PurePosixPath(name.stem).stem if name.suffix.lower() == ".gz" else name.stem


class _FrontMatterLoader(yaml.SafeLoader):
    """Without aliases: nine lines of them expand to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.M)


def _split_front_matter(text: str) -> tuple[dict[Any, Any], str]:
    """Front matter and body; what is not a YAML mapping remains text."""
    match = _FRONT_MATTER.match(text)
    if match is None or len(match[1]) > _MAX_FRONT_MATTER:
        return {}, text
    try:
        front = yaml.load(match[1], Loader=_FrontMatterLoader)
        if isinstance(front, dict):
            canonical_json(front)
            return front, text[match.end() :]
    # Also a date such as 2020-13-45, a number too long for int, a depth beyond the parser.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, RefusedRecord):
        pass
    return {}, text


_FENCE = re.compile(r" {0,3}(```|~~~)")
_ATX_HEADING = re.compile(r" {0,3}# +(.*?)(?: +#+)? *$")
_UNDERLINE = re.compile(r"([=\-~^\"'`#*+:.<>_])\1{2,} *$")


def _heading(text: str) -> str | None:
    """The first title: Markdown's `# Title`, or a line underlined as in reStructuredText."""
    fenced = False
    previous = ""
    for line in text.split("\n", 1_000)[:1_000]:
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            if (match := _ATX_HEADING.match(line)) and match[1]:
                return match[1]
            words = previous.strip()
            if (
                words
                and _UNDERLINE.match(line)
                and len(line.strip()) >= len(words)
                and not _UNDERLINE.match(words)
            ):
                return words
        previous = line
    return None
