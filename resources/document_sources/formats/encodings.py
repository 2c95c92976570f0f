"""Characters of any encoding become UTF-8 before a format reads them."""

import codecs
from collections.abc import Callable
from typing import Any, BinaryIO, cast

_UTF_8 = "utf-8"
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with that of UTF-16, so it goes before
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UNMARKED = (("utf-32-le", 4, 3), ("utf-32-be", 4, 0), ("utf-16-le", 2, 1), ("utf-16-be", 2, 0))
"""Encodings, their bytes for a character, and which of these is mostly NUL in European text."""
_SNIFFED_BYTES = 4_096
_ASCII = frozenset(range(0x20, 0x7F))
_LONGEST_MARK = 4

# What cannot be decoded becomes bytes that are no UTF-8 either: only its record is refused.
_UNDECODABLE = "embedding_assets.undecodable"
codecs.register_error(_UNDECODABLE, lambda error: ("\udcff", cast(Any, error).end))


def check_encoding(name: str) -> str:
    """The name of a text encoding that Python knows, as it is usually written.

    Raises:
        ValueError: it knows none of that name.
    """
    try:
        encoding = codecs.lookup(name)
        "".encode(name)  # also known are hex and zip, which are no encodings of text
        return encoding.name
    except LookupError:
        raise ValueError(
            f"an encoding is named as utf-8, cp1252 or utf-16-le; got {name!r}"
        ) from None


def in_utf8(stream: BinaryIO, encoding: str | None) -> BinaryIO:
    """The same characters in UTF-8; reading may hand over less than was asked for.

    Args:
        stream: bytes.
        encoding: of these bytes. None: UTF-16 or UTF-32 if they begin like it, with or without a
            byte-order mark, else UTF-8.
    """
    if encoding == _UTF_8:
        return _stream(_Resumed(stream, b""))
    if encoding is not None:
        return _stream(_Transcoder(stream, encoding, b""))
    read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
    begun = b""
    while len(begun) < _LONGEST_MARK and (more := read(_SNIFFED_BYTES)):
        begun += more
    encoding = _sniff(begun[:_SNIFFED_BYTES])
    if encoding is not None:
        return _stream(_Transcoder(stream, encoding, begun))
    return _stream(_Resumed(stream, begun))


def _sniff(begun: bytes) -> str | None:
    """The encoding, if it is not UTF-8."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if begun.startswith(mark):
            # Chinese in UTF-16 has bytes of ASCII too, but not nearly so many.
            ascii_bytes = sum(byte in _ASCII for byte in begun[len(mark) :])
            return encoding if ascii_bytes < 0.9 * (len(begun) - len(mark)) else None
    if b"\0" not in begun:
        return None
    for encoding, width, place in _UNMARKED:
        mostly_nul = begun[place::width]
        if mostly_nul.count(0) * 2 > len(mostly_nul) and len(begun) % width == 0:
            try:
                text = codecs.getincrementaldecoder(encoding)().decode(begun)
            except UnicodeDecodeError:
                continue
            if all(character.isprintable() or character.isspace() for character in text):
                return encoding
    return None


class _Resumed:
    """A stream of which the beginning has been read already."""

    def __init__(self, stream: BinaryIO, begun: bytes) -> None:
        self._begun = begun
        # read1 hands over what was decompressed before gzip finds damage; read would lose it.
        self._read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)

    def read(self, size: int) -> bytes:
        if self._begun:
            begun, self._begun = self._begun, b""
            return begun
        return self._read(size)


class _Transcoder:
    """A stream in another encoding as one in UTF-8."""

    def __init__(self, stream: BinaryIO, encoding: str, begun: bytes) -> None:
        self._source = _Resumed(stream, begun)
        self._decoder = codecs.getincrementaldecoder(encoding)(_UNDECODABLE)
        self._ended = False

    def read(self, size: int) -> bytes:
        text = ""
        while not text and not self._ended:
            data = self._source.read(size)
            self._ended = not data
            text = self._decoder.decode(data, final=self._ended)
        return text.encode(_UTF_8, "surrogatepass")


def _stream(reader: _Resumed | _Transcoder) -> BinaryIO:
    return cast(BinaryIO, reader)
