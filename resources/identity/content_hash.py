"""Identity comes from content: the one place where text is canonicalised and hashed."""

import hashlib
import unicodedata
from collections.abc import Iterable

from resources.errors import InvalidInputError

HASH_BYTES = 20
"""160 bits: beyond collisions by accident, and by design at any affordable cost."""


def canonical_text(text: str) -> str:
    """Brings text to the one form that is stored, hashed, split and embedded.

    Line feeds for every line ending, no byte-order marks (deprecated inside text, Unicode 3.2),
    Unicode NFC, no white space around it.

    Args:
        text: any string without lone surrogates.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii():
        text = unicodedata.normalize("NFC", text.replace("\ufeff", ""))
    return text.strip()


def canonical_question(text: str) -> str:
    """A question in that form.

    Raises:
        InvalidInputError: nothing is left of it.
    """
    canonical = canonical_text(text)
    if not canonical:
        raise InvalidInputError("The text to search for is empty.")
    return canonical


def digest(*parts: str) -> bytes:
    """BLAKE2b (RFC 7693) over length-prefixed parts, so that ("ab", "c") and ("a", "bc") differ.

    Returns:
        `HASH_BYTES` bytes.

    Raises:
        UnicodeEncodeError: a part holds a lone surrogate.
    """
    return _state(parts).digest()


def _state(parts: Iterable[str]) -> "hashlib.blake2b":
    state = hashlib.blake2b(digest_size=HASH_BYTES)
    for part in parts:
        data = part.encode()
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state


def fingerprint(data: str | bytes, size: int = 16) -> bytes:
    """BLAKE2b of one piece of data: tells a change, where nothing is stored under it as its key.

    Args:
        data: text is encoded as UTF-8.
        size: of the result, in bytes.
    """
    data = data.encode() if isinstance(data, str) else data
    return hashlib.blake2b(data, digest_size=size).digest()


_EMBEDDED_TEXT = _state(["embedded text"])


def document_version(title: str, text: str, timestamp: str, metadata: str) -> bytes:
    """The version of a document: equal if and only if everything stored of it is equal."""
    return digest("document", title, text, timestamp, metadata)


def content_hash(embedded_text: str) -> bytes:
    """The key of an embedded text within its embedding space: a digest of both parts."""
    # As `digest` does it, but in half the time.
    state = _EMBEDDED_TEXT.copy()
    data = embedded_text.encode()
    state.update(len(data).to_bytes(8, "little") + data)
    return state.digest()


def query_hash(query: str) -> bytes:
    """The key of a search query within its space: a model may prompt queries differently."""
    return digest("embedded query", query)


def canary_hash(text: str) -> bytes:
    """The key of a fixed text by which a space is recognised."""
    return digest("canary", text)


def chunk_id(collection: str, document_id: str, chunk_number: int) -> str:
    """The key of a row in the vector store: stable while the document keeps its id."""
    return digest("chunk", collection, document_id, str(chunk_number)).hex()
