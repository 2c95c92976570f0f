"""CSV as in RFC 4180: a header row, quoted line feeds; also with other separators."""

import csv
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import BinaryIO

from resources.document_sources.base import (
    Document,
    Refusal,
    RefusalReason,
    RefusedRecord,
    SourceFile,
    excerpt,
)
from resources.document_sources.builder import DocumentBuilder
from resources.document_sources.formats.lines import (
    RECORD_SLACK_BYTES,
    check_unique,
    lines,
    too_large,
)

_DELIMITERS = (",", ";", "\t", "|")


def read_csv(
    file: SourceFile, stream: BinaryIO, builder: DocumentBuilder
) -> Iterator[Document | Refusal]:
    limit = builder.max_document_bytes + RECORD_SLACK_BYTES
    # A setting of the whole process: only ever raised, and within a C long on every platform.
    if csv.field_size_limit() < limit:
        csv.field_size_limit(min(limit, 2**31 - 1))
    by_ending = "\t" if file.location.lower().endswith((".tsv", ".tsv.gz")) else ","
    rows = lines(stream, limit)
    begun = list(islice(rows, 1))
    delimiter = _delimiter(begun[0][1], by_ending, builder) if begun else by_ending
    path = file.path
    header: list[str] | None = None
    for number, data, problem in csv_records(chain(begun, rows), limit, delimiter.encode()):
        try:
            if problem is not None:
                raise problem
            row = csv_row(data, delimiter)
            if not row:
                continue  # a blank line
            if header is not None and len(row) != len(header):
                raise RefusedRecord(
                    RefusalReason.malformed_line,
                    f"expected {len(header)} fields as in the header, got {len(row)}: "
                    f"{excerpt(data)}",
                )
        except RefusedRecord as refused:
            if header is None:
                raise ValueError(f"no usable header row: {refused.detail}") from None
            yield refused.at(path, number)
            continue
        if header is None:
            header = row
            check_unique(header)
        else:
            yield builder.from_record(dict(zip(header, row, strict=True)), path, number)


def _delimiter(first_line: bytes, by_ending: str, builder: DocumentBuilder) -> str:
    """The one that finds the fields of a document in the header; else the ending's.

    Where no field has the name that it should, the one that finds several fields is at least able
    to say which there are.
    """
    headers: dict[str, list[str]] = {}
    for delimiter in (by_ending, *_DELIMITERS):
        try:
            headers[delimiter] = csv_row(first_line, delimiter)
        except RefusedRecord:
            continue
    for delimiter, header in headers.items():
        if builder.id_field in header and builder.text_field in header:
            return delimiter
    if len(headers.get(by_ending, ())) != 1:
        return by_ending
    return max(headers, key=lambda delimiter: len(headers[delimiter]))


def csv_records(
    rows: Iterable[tuple[int, bytes, bool]], limit: int, delimiter: bytes
) -> Iterator[tuple[int, bytes, RefusedRecord | None]]:
    """Yields (first line's number, bytes, problem) of each record, quoted line feeds included.

    The csv module alone cannot do this: after a field beyond its limit it goes on in the middle
    of that field, and it does not tell where a record began.
    """
    quotes = _QuoteTracker(delimiter)
    parts: list[bytes] = []
    size = 0
    first = number = 1
    begun = b""  # of a record that is too large to hold
    unfinished = False
    for number, data, ended in rows:
        if not unfinished:
            first, unfinished = number, True
        quotes.feed(data, ended)
        size += len(data) + 1
        if begun or size > limit + 1:
            begun = begun or b"\n".join([*parts, data])[:80]
            parts = []
        else:
            parts.append(data)
        if ended and not quotes.inside:
            yield first, b"\n".join(parts), too_large(begun, limit) if begun else None
            quotes, parts, size, begun, unfinished = _QuoteTracker(delimiter), [], 0, b"", False
    if unfinished:
        data = begun or b"\n".join(parts)
        yield (
            first,
            data,
            RefusedRecord(
                RefusalReason.broken_file,
                f"a quoted field is never closed; lines {first} to {number}: {excerpt(data)}",
            ),
        )


def csv_row(data: bytes, delimiter: str) -> list[str]:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise RefusedRecord(
            RefusalReason.invalid_utf8,
            f"{error.reason} at byte {error.start} of the record: {excerpt(data)}",
        ) from None
    try:
        # Strict: an unclosed quote would otherwise swallow the next row without a word.
        return next(csv.reader([text], delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        lines = data.count(b"\n") + 1
        span = f" (the record spans {lines} lines)" if lines > 1 else ""
        raise RefusedRecord(
            RefusalReason.malformed_line, f"{error}{span}: {excerpt(data)}"
        ) from None


class _QuoteTracker:
    """Knows whether a CSV record goes on after a line feed, by the csv module's own rules.

    A quote opens a field only as its first character; in an open field two quotes stand for one.
    """

    def __init__(self, delimiter: bytes):
        self.inside = False
        self._delimiter = delimiter
        self._opening = delimiter + b'"'
        self._at_start = True
        self._carry = b""

    def feed(self, data: bytes, ended: bool) -> None:
        """Takes the next piece of the record; `ended`: a line feed or the end follows."""
        data = self._carry + data
        self._carry = b""
        position = 0
        if self._at_start and data:
            self._at_start = False
            if data[:1] == b'"':
                self.inside = True
                position = 1
        while True:
            if self.inside:
                quote = data.find(b'"', position)
                if quote < 0:
                    return
                if quote + 1 == len(data) and not ended:
                    self._carry = data[quote:]  # its meaning depends on the next byte
                    return
                if data[quote + 1 : quote + 2] == b'"':
                    position = quote + 2
                else:
                    self.inside = False
                    position = quote + 1
            else:
                opening = data.find(self._opening, position)
                if opening < 0:
                    if not ended and data.endswith(self._delimiter):
                        self._carry = self._delimiter
                    return
                self.inside = True
                position = opening + 2
