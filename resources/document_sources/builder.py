"""Raw records become documents or refusals."""

import base64
import unicodedata
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson

from resources.document_sources.base import (
    MAX_ID_LENGTH,
    Document,
    FieldNames,
    Refusal,
    RefusalReason,
    RefusedRecord,
    bounded,
)
from resources.document_sources.exact_numbers import ExactNumber
from resources.document_sources.missing_fields import missing_field
from resources.document_sources.timestamps import in_utc, parse_timestamp
from resources.identity.content_hash import canonical_text

# NFC sorts a run of combining marks in quadratic time: 40,000 of them take 1 s, 5 million 5 hours.
# Unicode's stream-safe format (UAX 15) allows 30; no script comes near this bound.
_MAX_COMBINING_MARKS = 128
_MARKS_OF_CLASS_ZERO = "\u0f73\u0f75\u0f81"  # by themselves no marks, but they decompose into two

_MISSING = object()


def _whole_float(raw: float) -> str | None:
    """A column of integers with gaps, as pandas writes it."""
    return str(int(raw)) if raw.is_integer() and abs(raw) < 2**53 else None


def _plain_decimal(raw: Decimal) -> str | None:
    """Without an exponent and zeros after the point, which follow from the column's type."""
    if not raw.is_finite():
        return None
    digits = format(raw, "f")
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


_ID_FORMS: dict[type, Callable[[Any], str | None]] = {
    str: lambda raw: raw,
    int: str,
    float: _whole_float,
    Decimal: _plain_decimal,
    ExactNumber: lambda raw: str(raw) if raw.as_tuple().exponent == 0 else None,
    UUID: str,
    datetime: lambda raw: in_utc(raw).isoformat(),
    date: date.isoformat,
    time: time.isoformat,
}
"""The types of scalars that can be an id, and its form as a string; None: it is none."""


class _MissingFieldError(RefusedRecord):
    """A field is not there, or null."""

    def __init__(self, reason: RefusalReason, part: str, field: str):
        super().__init__(reason, f"no field {field!r}")
        self.part, self.field = part, field


class DocumentBuilder:
    """Turns raw records into documents or refusals.

    Holds plain attributes: reading a setting from a Dagster resource for each record is slow.

    Args:
        fields: names of the record's fields.
        max_document_bytes: limit of title, text and metadata each, in bytes of UTF-8.
    """

    def __init__(self, fields: FieldNames, max_document_bytes: int):
        self.id_field = fields.id
        self.title_field = fields.title
        self.text_field = fields.text
        self.timestamp_field = fields.timestamp
        self._timestamp_unit = fields.timestamp_unit
        self.max_document_bytes = max_document_bytes
        self._named = frozenset({fields.id, fields.title, fields.text, fields.timestamp} - {None})
        self._paths = sorted(name for name in self._named if name and "." in name)

    def lift_nested(self, record: dict[Any, Any]) -> dict[Any, Any]:
        """Moves values that the names reach by a path, such as `meta.uuid`, to the outermost level.

        A field that is really called `meta.uuid` goes before.
        """
        for name in self._paths:
            if name not in record:
                value, rest = _take(record, name.split("."))
                if value is not _MISSING:
                    record = {**rest, name: value}
        return record

    def from_record(self, record: dict[str, Any], file: str, line: int) -> Document | Refusal:
        """A document from one record of a JSONL, CSV or Parquet file."""
        if self._paths:
            record = self.lift_nested(record)
        named = self._named
        timestamp_field = self.timestamp_field
        return self.build(
            record.get(self.id_field),
            record.get(self.title_field),
            record.get(self.text_field),
            record.get(timestamp_field) if timestamp_field is not None else None,
            {name: value for name, value in record.items() if name not in named},
            file,
            line,
            record,
        )

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
        """A document from its raw parts; None stands for a part that is missing.

        A refusal names the fields of `record`, by default those of `metadata`.
        """
        document_id = None
        try:
            document_id = self._read_id(raw_id)
            text = self._read_text(raw_text)
            title = ""
            if raw_title is not None:
                title = self._read_title(raw_title, metadata)
            timestamp = None
            if self.timestamp_field is not None:
                timestamp = self._read_timestamp(self.timestamp_field, raw_timestamp)
            json = "{}"
            if metadata:
                json = metadata_json(metadata)
                self._check_size("metadata", json)
        except _MissingFieldError as missing:
            fields = metadata if record is None else record
            detail = missing_field(missing.part, missing.field, fields)
            return RefusedRecord(missing.reason, detail).at(file, line, document_id)
        except RefusedRecord as refused:
            return refused.at(file, line, document_id)
        return Document(document_id, title, text, timestamp, json, file, line)

    def id_or_none(self, record: dict[str, Any]) -> str | None:
        """The record's id for a refusal that has another reason."""
        try:
            return self._read_id(self.lift_nested(record).get(self.id_field))
        except RefusedRecord:
            return None

    def _read_id(self, raw: Any) -> str:
        if raw is None:
            raise _MissingFieldError(RefusalReason.no_id, "id", self.id_field)
        if isinstance(raw, bytes):
            # Columns of a fixed size are filled up with NUL.
            raw = self._decode(self.id_field, raw.rstrip(b"\0"))
        form = _ID_FORMS.get(type(raw))
        text = form(raw) if form is not None else None
        if text is None:
            raise RefusedRecord(
                RefusalReason.no_id,
                "expected a string, an integer or another exact scalar "
                f"{self._got(self.id_field, raw)}",
            )
        raw = text
        if len(raw) <= MAX_ID_LENGTH:  # checked before and after: NFC may lengthen
            self._check_characters(self.id_field, raw)
            document_id = canonical_text(raw)
            if 0 < len(document_id) <= MAX_ID_LENGTH:
                return document_id
        raise RefusedRecord(
            RefusalReason.no_id,
            f"expected 1 to {MAX_ID_LENGTH} characters in field {self.id_field!r}, "
            f"got {len(raw)}: {bounded(raw, 60)!r}",
        )

    def _read_text(self, raw: Any) -> str:
        if raw is None:
            raise _MissingFieldError(RefusalReason.empty_text, "text", self.text_field)
        if not isinstance(raw, str):
            if not isinstance(raw, bytes):
                raise RefusedRecord(
                    RefusalReason.empty_text,
                    f"expected a string {self._got(self.text_field, raw)}",
                )
            raw = self._decode(self.text_field, raw)
        text = self._canonical(self.text_field, raw)
        if not text:
            raise RefusedRecord(
                RefusalReason.empty_text, f"field {self.text_field!r} holds no text"
            )
        return text

    def _read_title(self, raw: Any, metadata: dict[str, Any]) -> str:
        if isinstance(raw, bytes):
            raw = self._decode(self.title_field, raw)
        elif isinstance(raw, (int, float, date, time, Decimal, UUID)) and not isinstance(raw, bool):
            raw = str(raw)
        if not isinstance(raw, str):
            # Not a title, yet not to be lost.
            metadata[self.title_field] = raw
            return ""
        return self._canonical(self.title_field, raw)

    def _read_timestamp(self, field: str, raw: Any) -> datetime:
        if raw is None:
            raise _MissingFieldError(RefusalReason.no_timestamp, "timestamp", field)
        try:
            return parse_timestamp(raw, self._timestamp_unit)
        except (ValueError, OverflowError) as error:
            raise RefusedRecord(
                RefusalReason.no_timestamp,
                f"field {field!r}: {error}; got {bounded(repr(raw), 80)}",
            ) from None

    def _canonical(self, field: str, raw: str) -> str:
        self._check_characters(field, raw)
        if raw.isascii():
            text = canonical_text(raw)
            if len(text) > self.max_document_bytes:
                self._check_size(field, text)
            return text
        if len(raw) > 10 * _MAX_COMBINING_MARKS and _has_endless_marks(raw):
            raise RefusedRecord(
                RefusalReason.unsafe_text,
                f"field {field!r} has over {_MAX_COMBINING_MARKS} combining marks in a row",
            )
        text = canonical_text(raw)
        self._check_size(field, text)
        return text

    def _check_size(self, field: str, text: str) -> None:
        size = len(text) if text.isascii() else len(text.encode())
        if size > self.max_document_bytes:
            raise RefusedRecord(
                RefusalReason.too_large,
                f"{field} has {size:,} bytes, max_document_bytes is {self.max_document_bytes:,}",
            )

    @staticmethod
    def _check_characters(field: str, text: str) -> None:
        if "\0" in text:
            raise RefusedRecord(
                RefusalReason.nul_character,
                f"field {field!r} has a NUL character at {text.index(chr(0))}: it is binary, or in "
                f"an encoding that `source.encoding` should name; it begins {bounded(text, 40)!r}",
            )
        try:
            if not text.isascii():
                text.encode()
        except UnicodeEncodeError as error:
            raise RefusedRecord(
                RefusalReason.lone_surrogate,
                f"field {field!r} has a lone surrogate at character {error.start}",
            ) from None

    @staticmethod
    def _decode(field: str, raw: bytes) -> str:
        # Older Parquet writers leave strings unmarked, so that they come as bytes.
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise RefusedRecord(
                RefusalReason.invalid_utf8, f"field {field!r}: {error.reason} at {error.start}"
            ) from None

    @staticmethod
    def _got(field: str, raw: Any) -> str:
        return f"in field {field!r}, got {type(raw).__name__} {bounded(repr(raw), 60)}"


def _take(holder: Any, path: list[str]) -> tuple[Any, Any]:
    """The value at a path of keys (`_MISSING` if there is none), and its holder without it."""
    pairs = holder.items() if isinstance(holder, dict) else holder  # a Parquet map: a list of pairs
    if not isinstance(holder, (dict, list)) or not all(isinstance(pair, tuple) for pair in pairs):
        return _MISSING, holder
    kept, value = [], _MISSING
    for key, inner in pairs:
        if key != path[0]:
            kept.append((key, inner))
            continue
        value, rest = (inner, None) if len(path) == 1 else _take(inner, path[1:])
        if rest:
            kept.append((key, rest))
    if value is _MISSING:
        return _MISSING, holder
    return value, dict(kept) if isinstance(holder, dict) else kept


def metadata_json(fields: dict[str, Any]) -> str:
    """JSON with sorted keys and no white space.

    Dates and times are written in ISO 8601, bytes in base64, decimals as strings, durations in
    seconds, sets as sorted lists; NaN and infinities become null, as JSON has neither.

    Raises:
        RefusedRecord: a string holds a lone surrogate, or JSON cannot express a value.
    """
    try:
        return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS, default=_to_json).decode()
    except TypeError:
        pass
    try:  # slower, for keys that are numbers or dates (YAML)
        options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
        return orjson.dumps(fields, option=options, default=_to_json).decode()
    except TypeError as error:
        surrogate = "surrogate" in str(error)
        reason = RefusalReason.lone_surrogate if surrogate else RefusalReason.bad_metadata
        raise RefusedRecord(
            reason, f"metadata: {error}; fields: {', '.join(map(repr, fields))}"
        ) from None


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, ExactNumber):
        return orjson.Fragment(str(value))
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    raise TypeError(f"no JSON form for {type(value).__name__}")


def _has_endless_marks(text: str) -> bool:
    # Every run of twice the bound holds one whole block, and few blocks begin with a mark.
    step = _MAX_COMBINING_MARKS
    return any(
        all(map(_is_mark, text[start : start + step])) for start in range(0, len(text), step)
    )


def _is_mark(character: str) -> bool:
    return unicodedata.combining(character) > 0 or character in _MARKS_OF_CLASS_ZERO
