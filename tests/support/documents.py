"""Reading a source, and looking at what came out."""

import gzip
from collections.abc import Sequence
from datetime import timezone
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from resources.document_sources import Document, FileDocumentSource, Refusal
from resources.identity.content_hash import canonical_text

GOOD = b'{"id": "good", "text": "fine"}'
UTC = timezone.utc


def read(path: Path | str, periods: Any = None, **settings: Any) -> list[Document | Refusal]:
    found = list(FileDocumentSource(path=str(path), **settings).read(periods))
    for item in found:
        if isinstance(item, Refusal):
            assert len(item.detail) <= 200
            assert item.detail
            item.detail.encode()
        else:
            assert item.text
            assert item.text == canonical_text(item.text)
            (item.id + item.title + item.text + item.metadata + item.file).encode()
        item.file.encode()
    return found


def write(path: Path, *lines: bytes, end: bytes = b"\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join(line + end for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def outcomes(found: Sequence[Document | Refusal]) -> list[str]:
    """Ids of documents and reasons of refusals, in order."""
    return [item.id if isinstance(item, Document) else item.reason.value for item in found]


def document(found: Sequence[Document | Refusal]) -> Document:
    assert len(found) == 1
    assert isinstance(found[0], Document), found[0]
    return found[0]


def refusal(found: Sequence[Document | Refusal]) -> Refusal:
    assert len(found) == 1
    assert isinstance(found[0], Refusal), found[0]
    return found[0]


def jsonl(tmp_path: Path, *records: Any, **settings: Any) -> list[Document | Refusal]:
    return read(write(tmp_path / "docs.jsonl", *map(orjson.dumps, records)), **settings)
