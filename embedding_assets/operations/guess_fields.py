"""Which fields of records are a document's id, title, text and time: by name and by content."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from statistics import fmean
from typing import Any

from resources.document_sources.base import FieldNames
from resources.document_sources.builder import DocumentBuilder
from resources.document_sources.timestamps import TimestampUnit, parse_timestamp

_IDS = (
    "id", "_id", "uuid", "guid", "doc_id", "document_id", "docid", "key", "pk", "identifier",
    "slug", "doi", "isbn", "url", "uri", "link", "permalink", "path", "filename", "file", "number",
)  # fmt: skip
_TITLES = (
    "title", "headline", "subject", "name", "heading", "header", "label", "question", "caption",
    "titel", "titre", "título", "titulo", "titolo",
)  # fmt: skip
_TEXTS = (
    "text", "body", "content", "contents", "fulltext", "full_text", "article", "markdown",
    "message", "passage", "abstract", "description", "summary", "answer", "review", "comment",
)  # fmt: skip
_TIMES = (
    "created", "created_at", "published", "published_at", "date", "publication_date", "pub_date",
    "pubdate", "timestamp", "datetime", "time", "posted", "posted_at", "issued", "sent", "year",
    "updated", "updated_at", "modified", "last_modified", "last_change",
)  # fmt: skip
_LIKE_ID = re.compile(r"(?:^|_|-|\.)(?:id|uuid|guid|key)$|[a-z](?:Id|ID)$")
_LIKE_TIME = re.compile(r"date|time|created|publish|posted|issued|updated|modified|year|day", re.I)
_WRITTEN_AS_TIME = re.compile(r"\d{4}-\d{2}(-\d{2})?([T ].*)?")
_LIKE_A_VALUE = re.compile(r"[\d.,:/+-]+|.{64,}", re.DOTALL)
_LONGEST_NAME = 40
_NO_RANK = 100
_ALMOST_ALL = 0.98
_FEW_TWICE = 0.05
_DEEPEST = 4
_LONGEST_ID = 200
_LONGEST_TITLE = 300
_SURE_TEXTS = 10
_LONGER = (10, 3)
"""How many times longer another field must be than one that is called like a text for sure, or
perhaps."""


@dataclass(frozen=True)
class Column:
    """A field, or one inside another one by its path, such as `meta.uuid`.

    Attributes:
        path: as `source.fields` names it.
        values: those that are not null.
        filled: share of the records that have one.
    """

    path: str
    values: list[Any]
    filled: float

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def depth(self) -> int:
        return self.path.count(".")

    @property
    def is_text(self) -> bool:
        return all(isinstance(value, str) for value in self.values)

    @property
    def length(self) -> float:
        """Characters on average."""
        return fmean(len(str(value)) for value in self.values)

    @property
    def words(self) -> float:
        return fmean(len(str(value).split()) for value in self.values)

    @property
    def differing(self) -> float:
        """Share of the values that occur once."""
        return len({str(value) for value in self.values}) / len(self.values)


@dataclass
class GuessedFields:
    """What `source.fields` should say.

    Attributes:
        names: by part of a document: id, title, text, timestamp, timestamp_unit; without a part
            that no field can be.
        times: of the timestamp field, one a record.
        notes: what somebody should know who agrees to them.
    """

    names: dict[str, str] = field(default_factory=dict)
    times: list[datetime] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def guess_fields(
    records: Mapping[str, Sequence[Mapping[str, Any]]], *, one_a_file: bool
) -> GuessedFields:
    """Guesses the names of fields.

    Args:
        records: some of them, by file.
        one_a_file: a file is a document: its path is the id, and its text needs no name.
    """
    guessed = GuessedFields()
    columns = columns_of([record for those in records.values() for record in those])
    if values := [column.path for column in columns if _LIKE_A_VALUE.fullmatch(column.path)]:
        guessed.notes.append(
            f"A field is called {values[0][:_LONGEST_NAME]!r}, which looks like a value. CSV needs "
            "a first row with the names of its fields."
        )
    if one_a_file:
        columns = [column for column in columns if column.path not in ("text", "title")]
    else:
        text = _guess_text(columns, guessed)
        _guess_id(columns, records, text, guessed)
        _guess_title(columns, text, guessed)
    _guess_time(columns, guessed)
    parts = [part for part in FieldNames.model_fields if part in guessed.names]
    guessed.names = {part: guessed.names[part] for part in parts}
    return guessed


def columns_of(records: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The fields of some records, in the order in which they come."""
    values: dict[str, list[Any]] = {}
    for record in records:
        for path, value in _leaves(record):
            values.setdefault(path, [])
            if value is not None and value != "":
                values[path].append(value)
    return [Column(path, each, len(each) / len(records)) for path, each in values.items()]


def _leaves(record: Any, above: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    pairs = record.items() if isinstance(record, Mapping) else record
    for key, value in pairs:
        is_map = isinstance(value, list) and value and all(isinstance(v, tuple) for v in value)
        if (isinstance(value, Mapping) or is_map) and depth < _DEEPEST:
            yield from _leaves(value, f"{above}{key}.", depth + 1)
        else:
            yield f"{above}{key}", value


def _rank(column: Column, names: Sequence[str]) -> int:
    name = column.name.lower()
    return names.index(name) if name in names else _NO_RANK


def _guess_text(columns: Sequence[Column], guessed: GuessedFields) -> Column | None:
    """The longest; one that is called like a text may be shorter."""
    texts = [c for c in columns if c.values and c.is_text and not _times(c, None)]

    def weight(column: Column) -> float:
        rank = _rank(column, _TEXTS)
        times = 1 if rank == _NO_RANK else _LONGER[rank >= _SURE_TEXTS]
        return column.length * column.filled * times

    if not texts:
        return None
    text = max(texts, key=weight)
    guessed.names["text"] = text.path
    others = [
        c.path for c in texts if c is not text and c.words > 20 and c.length > text.length / 4
    ]
    if others:
        named = " and ".join(others)
        guessed.notes.append(
            f"{named} {'is' if len(others) == 1 else 'are'} long text too, but only {text.path} is "
            "embedded: the others are kept as metadata. To embed them as well, write them into one "
            "field with it."
        )
    return text


def _guess_id(
    columns: Sequence[Column],
    records: Mapping[str, Sequence[Mapping[str, Any]]],
    text: Column | None,
    guessed: GuessedFields,
) -> None:
    """What differs in each record of a file, best if it is called like an id."""
    found = []
    for column in columns:
        rank = _rank(column, _IDS)
        if rank == _NO_RANK and _LIKE_ID.search(column.path):
            rank -= 1
        builder = DocumentBuilder(FieldNames(id=column.path), 2**31)
        ids = [[builder.id_or_none(dict(one)) for one in those] for those in records.values()]
        valid = [[one for one in those if one is not None] for those in ids]
        number = sum(map(len, valid))
        share = number / max(1, sum(map(len, ids)))
        twice = 1 - sum(len(set(those)) for those in valid) / max(1, number)
        by_content = (
            share == 1
            and not twice
            and column is not text
            and column.length <= _LONGEST_ID
            and not any(isinstance(value, float) for value in column.values)
            and not _times(column, None)
        )
        if (rank < _NO_RANK and share > 0.5) or by_content:
            found.append((share < _ALMOST_ALL, twice > _FEW_TWICE, rank, column.depth, column))
    if not found:
        return
    *_, rank, _, column = min(found, key=lambda one: one[:-1])
    guessed.names["id"] = column.path
    if rank == _NO_RANK:
        guessed.notes.append(
            f"No field is called like an id. {column.path} differs in each record seen, so it can "
            "be one: a record in which it changes is a new document."
        )


def _guess_title(columns: Sequence[Column], text: Column | None, guessed: GuessedFields) -> None:
    found = [
        column
        for column in columns
        if column.values and column.is_text and column is not text
        and column.length <= _LONGEST_TITLE
    ]  # fmt: skip
    named = [column for column in found if _rank(column, _TITLES) < _NO_RANK]
    like = [
        column
        for column in found
        if column.filled >= _ALMOST_ALL
        and column.words >= 3
        and column.differing > 0.9
        and text is not None
        and column.length < text.length / 2
    ]
    best = min(named or like, key=lambda c: (_rank(c, _TITLES), c.depth), default=None)
    if best is not None:
        guessed.names["title"] = best.path


def _guess_time(columns: Sequence[Column], guessed: GuessedFields) -> None:
    """A field with a time in each record: by its name, or because its strings are ISO 8601."""
    taken = guessed.names.values()
    found = []
    for column in columns:
        if column.path in taken or not column.values:
            continue
        for unit in (None, *TimestampUnit):
            if times := _times(column, unit):
                rank = _rank(column, _TIMES)
                found.append((rank, column.depth, len(found), column, unit, times))
                break
    whole = [one for one in found if one[3].filled >= _ALMOST_ALL]
    if whole:
        *_, column, unit, guessed.times = min(whole, key=lambda one: one[:3])
        guessed.names["timestamp"] = column.path
        if unit is not None:
            guessed.names["timestamp_unit"] = unit.value
    elif found:
        column = min(found, key=lambda one: one[:3])[3]
        guessed.notes.append(
            f"{column.path} is a time, but {1 - column.filled:.0%} of the records have none: "
            "partitions by it would refuse them. Buckets take all."
        )


def _times(column: Column, unit: TimestampUnit | None) -> list[datetime]:
    """The times that a field's values are; none unless nearly all of them are."""
    is_named = bool(_LIKE_TIME.search(column.name)) or _rank(column, _TIMES) < _NO_RANK
    now = datetime.now(timezone.utc)
    times = []
    for value in column.values:
        written = isinstance(value, str) and _WRITTEN_AS_TIME.fullmatch(value.strip())
        if not (is_named or written or isinstance(value, date)):
            return []
        try:
            time = parse_timestamp(value, unit)
        except (ValueError, OverflowError):
            continue
        if unit is None or 1971 <= time.year <= now.year + 1:
            times.append(time)
    return times if len(times) >= _ALMOST_ALL * len(column.values) else []
