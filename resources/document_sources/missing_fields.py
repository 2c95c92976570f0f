"""What to say of a record that lacks a field: nearly always the field has another name there."""

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from typing import Any

_MOST_NAMES = 100
_MOST_CHARACTERS = 60
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_a-zA-Z]+")


def missing_field(part: str, field: str, record: Mapping[Any, Any]) -> str:
    """Says that a field is not there, or null, and which fields are there.

    The name that was probably meant comes first: a long list may be cut.

    Args:
        part: of a document, as in `FieldNames`.
        field: its name in the source.
        record: in which it ought to be.
    """
    names = tuple(islice(_paths_of(record), _MOST_NAMES))
    return _sentence(part, field, field in record, names)


# An export with a wrong name has it in each of its millions of records.
@lru_cache(maxsize=128)
def _sentence(part: str, field: str, there: bool, names: tuple[str, ...]) -> str:
    has = f"the record has: {', '.join(map(repr, names)) or 'none'}"
    if there:
        return f"field {field!r} is null; {has}"
    likely = _likely(field, names)
    meant = f"did you mean {likely!r}? " if likely else ""
    return f"no field {field!r} ({meant}set source.fields.{part}); {has}"


def _paths_of(fields: Mapping[Any, Any]) -> Iterator[str]:
    """The names by which the fields of a record, and those one level below, can be reached."""
    for name, value in fields.items():
        inner = value if isinstance(value, dict) and value else None
        for path in [str(name)] if inner is None else (f"{name}.{each}" for each in inner):
            yield path if len(path) <= _MOST_CHARACTERS else f"{path[: _MOST_CHARACTERS - 1]}…"


def _likely(field: str, names: tuple[str, ...]) -> str | None:
    """The name that somebody may have meant who wrote `field`."""
    others = [name for name in names if name != field]
    wanted = _words(_last(field))
    for words in (
        lambda name: _words(name),  # ID, _id
        lambda name: _words(_last(name)),  # meta.id
        lambda name: _words(name)[-len(wanted) :],  # doc_id, documentId
    ):
        if found := next((name for name in others if wanted and words(name) == wanted), None):
            return found
    return next(iter(get_close_matches(field, others, n=1)), None)


def _last(name: str) -> str:
    """The field at the end of a path."""
    return name.rpartition(".")[2]


def _words(name: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(name)]
