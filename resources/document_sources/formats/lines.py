"""Lines out of streams, with bounded memory: what JSON Lines and CSV have in common."""

from collections.abc import Callable, Iterator
from typing import BinaryIO

from resources.document_sources.base import RefusalReason, RefusedRecord, excerpt

RECORD_SLACK_BYTES = 64 * 1024
"""How much longer than the largest document a line of JSONL or a row of CSV may be."""
BOM = b"\xef\xbb\xbf"
_READ_BYTES = 256 * 1024


def lines(stream: BinaryIO, limit: int) -> Iterator[tuple[int, bytes, bool]]:
    """Yields (number, bytes without line feed, whether the line ends here).

    A line comes whole if it has at most `limit` bytes, else perhaps in several non-empty pieces.
    """
    # read1 hands over what was decompressed before gzip finds damage; read would lose it.
    read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
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


def too_large(begun: bytes, limit: int) -> RefusedRecord:
    detail = f"the record has more than {limit:,} bytes and begins {excerpt(begun)}"
    return RefusedRecord(RefusalReason.too_large, detail)


def check_unique(names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"columns named more than once: {', '.join(map(repr, twice))}")
