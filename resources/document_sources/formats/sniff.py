"""Which format a file has that its ending does not tell, and which encoding, from its first bytes.

Guesses: the pipeline never relies on them. A person sees what came of them, and says yes.
"""

import csv
import io
from itertools import islice
from typing import Any

import orjson

from resources.document_sources.formats.encodings import in_utf8
from resources.document_sources.formats.registry import FileFormat
from resources.errors import InvalidInputError

_MAGIC = {
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a zip archive, such as DOCX, XLSX and EPUB are",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"SQLite format 3": "an SQLite database",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
}
_READABLE = f"What can be read: {', '.join(FileFormat)}; all but Parquet also with .gz."
_ROWS = 20
_MOSTLY = 0.9


def sniff_format(head: bytes, name: str) -> FileFormat:
    """The format of a file.

    Args:
        head: its first bytes, unpacked; characters in any encoding.
        name: for the sentence, if it has none that can be read.

    Raises:
        InvalidInputError: it is none that can be read; the sentence says what to do.
    """
    if not head.strip():
        raise InvalidInputError(f"{name} is empty: there is nothing to look at.")
    if head.startswith(b"PAR1"):
        return FileFormat.parquet
    known = next((what for magic, what in _MAGIC.items() if head.startswith(magic)), None)
    text = None if known else in_utf8(io.BytesIO(head), None).read(len(head))
    if text is None or b"\0" in text:
        raise InvalidInputError(f"{name} is {known or 'binary'}. {_READABLE}")
    lines = text.decode("utf-8", "replace").strip().removeprefix("\ufeff").splitlines()
    if lines[0].startswith(("{", "[")):
        return _json(lines, name)
    return FileFormat.csv if _is_table(lines[:-1] or lines) else FileFormat.text


def _json(lines: list[str], name: str) -> FileFormat:
    try:
        if isinstance(orjson.loads(lines[0]), dict):
            return FileFormat.jsonl
    except orjson.JSONDecodeError:
        pass
    if lines[0].startswith("["):
        raise InvalidInputError(json_array(name))
    raise InvalidInputError(
        f"{name} is JSON, but one object over several lines. Write one object a line, each a "
        "document, into a file that ends with .jsonl."
    )


def json_array(name: str) -> str:
    """What to do with a file that is one JSON array."""
    return (
        f"{name} is one JSON array, which cannot be read part by part. Write one object a line:\n"
        f"  jq -c '.[]' {name} > documents.jsonl\n"
        "or, without jq,\n"
        '  python -c "import json, sys; [print(json.dumps(each)) for each in json.load(sys.stdin)]"'
        f" < {name} > documents.jsonl"
    )


def _is_table(lines: list[str]) -> bool:
    """Whether the lines have the same number of fields, two at least."""
    for delimiter in (",", ";", "\t", "|"):
        try:
            rows = [*islice(csv.reader(lines, delimiter=delimiter, strict=True), _ROWS)]
        except csv.Error:
            continue
        same = sum(len(row) == len(rows[0]) for row in rows)
        if len(rows) > 1 and len(rows[0]) > 1 and same >= _MOSTLY * len(rows):
            return True
    return False


def guess_encoding(head: bytes) -> str | None:
    """The likeliest encoding of text that is not UTF-8; None: nobody can tell.

    Of encodings that read the bytes alike it is the commonest one.
    """
    from charset_normalizer import from_bytes

    likely: list[Any] = [*from_bytes(head)]
    alike = [name for match in likely for name in (match.encoding, *match.could_be_from_charset)]
    return "cp1252" if "cp1252" in alike else next(iter(alike), None)
