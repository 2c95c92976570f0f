"""Markdown and reStructuredText: one document a file, with front matter and headings."""

import re
from collections.abc import Iterator
from typing import Any, BinaryIO, ClassVar

import yaml

from resources.document_sources.base import (
    Document,
    Refusal,
    RefusedRecord,
    SourceFile,
)
from resources.document_sources.builder import DocumentBuilder, metadata_json
from resources.document_sources.exact_numbers import exact_float
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
    front, body = _split_front_matter(text, builder.title_field)
    front = builder.lift_nested(front)
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
    """YAML as in version 1.2, where 12:30, 007, yes and no are strings, and without aliases.

    Nine lines of aliases expand to gigabytes.
    """

    # Not the parent's own, which are of version 1.1.
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleVariableOverride]

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    # As JSON writes them: with a zero before it, a number is a code.
    "int": (r"-?(0|[1-9][0-9]*)", list("-0123456789")),
    "float": (r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?", list("-0123456789")),
    "timestamp": (
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
        r"([Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?\s*(Z|[-+][0-9]{2}(:[0-9]{2})?)?)?",
        list("0123456789"),
    ),
}
for _kind, (_pattern, _begins) in _SCALARS.items():
    _FrontMatterLoader.add_implicit_resolver(_TAG + _kind, re.compile(rf"({_pattern})\Z"), _begins)
_FrontMatterLoader.add_constructor(_TAG + "float", lambda _, node: exact_float(node.value))


def _load(front_matter: str, as_written: str) -> Any:
    """The values of a mapping; that at the path `as_written` stays the string that it is."""
    loader = _FrontMatterLoader(front_matter)
    try:
        node = found = loader.get_single_node()
        for name in (as_written, *as_written.split(".")):
            inner = _child(found, name)
            if inner is None:
                continue
            found = inner
            if isinstance(found, yaml.ScalarNode) and found.tag != _TAG + "null":
                found.tag = _TAG + "str"
                break
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _child(node: yaml.Node | None, name: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for key, value in node.value if key.value == name), None)


_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.M)


def _split_front_matter(text: str, title_field: str) -> tuple[dict[Any, Any], str]:
    """Front matter and body; what is not a YAML mapping remains text."""
    match = _FRONT_MATTER.match(text)
    if match is None or len(match[1]) > _MAX_FRONT_MATTER:
        return {}, text
    try:
        front = _load(match[1], title_field)
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
