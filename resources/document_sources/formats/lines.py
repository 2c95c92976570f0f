"""Lines out of streams, with bounded memory: what JSON Lines and CSV have in common."""

import re
from collections.abc import Callable, Iterator
from typing import BinaryIO

from resources.document_sources.base import RefusalReason, RefusedRecord, excerpt

RECORD_SLACK_BYTES = 64 * 1024
"""How much longer than the largest document a line of JSONL or a row of CSV may be."""
BOM = b"\xef\xbb\xbf"
_READ_BYTES = 256 * 1024
_FIRST_LINE_END = re.compile(rb"\n|\r\n|\r(?!\Z)")
"""Without a carriage return at the very end, after which a line feed may come."""


def lines(
    stream: BinaryIO, limit: int, *, lone_cr: bool | None = None
) -> Iterator[tuple[int, bytes, bool]]:
    """Yields (number, bytes without line feed, whether the line ends here).

    A line comes whole if it has at most `limit` bytes, else perhaps in several non-empty pieces.

    Args:
        stream: UTF-8; it may hand over less than it is asked for.
        limit: in bytes.
        lone_cr: whether a carriage return without a line feed ends a line. None: if it ends the
            first line.
    """
    read = _unified(stream.read, lone_cr)
    number = 1
    parts: list[bytes] = []
    size = 0
    continued = False
    first = True
    while chunk := read(_READ_BYTES):
        if first:
            while len(chunk) < len(BOM) and (more := read(_READ_BYTES)):
                chunk += more
            chunk = chunk.removeprefix(BOM)
            first = False
        lines = chunk.split(b"\n")
        last = lines.pop()
        if lines:
            if parts:
                parts.append(lines[0])
                lines[0] = b"".join(parts)
                parts, size = [], 0
            for line in lines:
                yield number, line, True
                number += 1
            continued = False
        if last:
            parts.append(last)
            size += len(last)
            if size > limit:
                yield number, b"".join(parts), False
                parts, size, continued = [], 0, True
    if parts or continued:
        yield number, b"".join(parts), True


def _unified(read: Callable[[int], bytes], lone_cr: bool | None) -> Callable[[int], bytes]:
    """Turns every line end into a line feed, if a lone carriage return may be one."""
    held = b""  # a carriage return after which a line feed may come

    def unified(size: int) -> bytes:
        nonlocal held, lone_cr
        chunk = read(size)
        if lone_cr is None:
            first = _FIRST_LINE_END.search(chunk)
            while chunk and first is None and chunk.endswith(b"\r") and (more := read(size)):
                chunk += more
                first = _FIRST_LINE_END.search(chunk)
            if first is not None:
                lone_cr = first[0] == b"\r"
            elif chunk.endswith(b"\r"):
                lone_cr = True
        if not lone_cr:
            return chunk
        ended = not chunk
        chunk, held = held + chunk, b""
        if chunk.endswith(b"\r") and not ended:
            chunk, held = chunk[:-1], b"\r"
            if not chunk:
                return unified(size)
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in chunk else chunk

    return unified


def too_large(begun: bytes, limit: int) -> RefusedRecord:
    detail = f"the record has more than {limit:,} bytes and begins {excerpt(begun)}"
    return RefusedRecord(RefusalReason.too_large, detail)


def check_unique(names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"columns named more than once: {', '.join(map(repr, twice))}")
