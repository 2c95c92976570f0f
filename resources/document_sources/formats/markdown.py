"""Markdown and reStructuredText: one document a file, with front matter and headings."""

import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import yaml

from resources.document_sources.base import (
    Document,
    Refusal,
    RefusedRecord,
    SourceFile,
)
from resources.document_sources.builder import DocumentBuilder, metadata_json
from resources.document_sources.formats.text import MODIFIED, stem, whole_document, whole_text
from resources.document_sources.headings import find_headings

_MAX_FRONT_MATTER = 64 * 1024


def read_markdown(
    file: SourceFile, stream: BinaryIO, builder: DocumentBuilder
) -> Iterator[Document | Refusal]:
    text = whole_text(file, stream, builder)
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
        title = _heading(body) or stem(file.path)
    yield whole_document(file, builder, title, body, timestamp, front)


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
            metadata_json(front)
            return front, text[match.end() :]
    # Also a date such as 2020-13-45, a number too long for int, a depth beyond the parser.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, RefusedRecord):
        pass
    return {}, text


def _heading(text: str) -> str | None:
    """The first title of the outermost level; a line under it is at least as long as it."""
    beginning = "\n".join(text.split("\n", 1_000)[:1_000])
    for heading in find_headings(beginning):
        line = beginning[heading.start : heading.end].rstrip().rpartition("\n")[2]
        if heading.level == 1 and (line[0] == "#" or len(line) >= len(heading.title)):
            return heading.title
    return None
