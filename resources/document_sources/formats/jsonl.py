"""JSON Lines: one object a line."""

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson

from resources.document_sources.base import (
    Document,
    Refusal,
    RefusalReason,
    SourceFile,
    bounded,
    excerpt,
)
from resources.document_sources.builder import DocumentBuilder
from resources.document_sources.exact_numbers import exact_float, exact_int
from resources.document_sources.formats.lines import RECORD_SLACK_BYTES, lines, too_large


def read_jsonl(
    file: SourceFile, stream: BinaryIO, builder: DocumentBuilder
) -> Iterator[Document | Refusal]:
    limit = builder.max_document_bytes + RECORD_SLACK_BYTES
    path = file.path
    begun = b""  # of a line that is too large to hold
    for number, line, ended in lines(stream, limit, lone_cr=True):
        if begun or not ended or len(line) > limit:
            begun = begun or line[:80]
            if ended:
                yield too_large(begun, limit).at(path, number)
                begun = b""
            continue
        try:
            record = _parse(line)
        except (orjson.JSONDecodeError, RecursionError) as error:
            if line.strip():
                yield _classify_line(line, str(error), builder, path, number)
            continue
        if type(record) is dict:
            yield builder.from_record(record, path, number)
        else:
            detail = f"expected a JSON object, got {type(record).__name__}: {excerpt(line)}"
            yield Refusal(RefusalReason.malformed_line, None, path, number, bounded(detail))


# Numbers that a double may not hold: orjson rounds them, or calls them infinite.
_LONG_NUMBER = re.compile(rb"[0-9][0-9.]{16}|[0-9][eE][+-]?[0-9]{3}")


def _parse(line: bytes) -> Any:
    """As `orjson.loads`, with every number exact."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if "infinity" not in str(error):
            raise
        try:
            return _parse_exactly(line)
        except ValueError:
            raise error from None
    if type(record) is dict and _holds_float(record) and _LONG_NUMBER.search(line):
        return _parse_exactly(line)
    return record


def _parse_exactly(line: bytes) -> Any:
    return json.loads(line, parse_int=exact_int, parse_float=exact_float, parse_constant=float)


def _holds_float(record: dict[str, Any]) -> bool:
    waiting: list[Any] = [record]  # no recursion: it may be nested a thousand levels deep
    while waiting:
        value = waiting.pop()
        for inner in value.values() if type(value) is dict else value:
            if type(inner) is float:
                return True
            if type(inner) in (dict, list):
                waiting.append(inner)
    return False


def _classify_line(
    line: bytes, error: str, builder: DocumentBuilder, path: str, number: int
) -> Refusal:
    """Says why orjson refused a line."""
    reason, document_id, detail = RefusalReason.malformed_line, None, error
    record: Any = None
    try:
        text = line.decode()
        # orjson takes a lone surrogate for a syntax error; the standard library reads it.
        if "\\ud" in text.lower():
            record = json.loads(text)
            if isinstance(record, dict):
                json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeDecodeError as problem:
        reason, detail = RefusalReason.invalid_utf8, f"{problem.reason} at byte {problem.start}"
    except UnicodeEncodeError:
        reason = RefusalReason.lone_surrogate
        document_id = builder.id_or_none(record)
    except (ValueError, RecursionError):
        pass
    detail = f"{bounded(detail, 110)}: {excerpt(line)}"
    return Refusal(reason, document_id, path, number, bounded(detail))
