"""Rows of chunks for the tests of vector stores."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from resources.identity.content_hash import HASH_BYTES
from resources.identity.embedding_space import EmbeddingSpace
from resources.vector_stores.base import VectorStore, row_schema
from tests.support.fakes import fake_vector

SPACE = EmbeddingSpace("fake", "a", "", 16, 256, True)
OTHER = dataclasses.replace(SPACE, model="b")
LONG = dataclasses.replace(SPACE, dimension=4096)
SCHEMA = row_schema(SPACE)
NAME = "corpus"


def batch(ids: Sequence[str], partition: str = "p", text: str = "text") -> pa.RecordBatch:
    values = [
        {
            "chunk_id": chunk,
            "document_id": f"d-{chunk}",
            "document_version": bytes(HASH_BYTES),
            "content_hash": bytes(HASH_BYTES),
            "chunk_number": 0,
            "span_start": 0,
            "span_end": len(text),
            "partition": partition,
            "title": "",
            "context": "",
            "text": text,
            "timestamp": None,
            "metadata": "{}",
            "vector": fake_vector(chunk, 16),
        }
        for chunk in ids
    ]
    return pa.RecordBatch.from_pylist(values, schema=SCHEMA)


def reader(*batches: pa.RecordBatch) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(SCHEMA, iter(batches))


def with_long_vectors(chunks: Sequence[str]) -> pa.RecordBatchReader:
    schema, found = row_schema(LONG), batch(chunks)
    values = np.random.default_rng(0).standard_normal(len(chunks) * 4096, dtype=np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values), 4096)
    long = found.set_column(schema.get_field_index("vector"), schema.field("vector"), column)
    return pa.RecordBatchReader.from_batches(schema, iter([long]))


def ids(*numbers: int) -> list[str]:
    return [f"c{number:05}" for number in numbers]


def rows(store: VectorStore, space: EmbeddingSpace = SPACE, **which: Any) -> dict[str, Any]:
    """Column `text` by chunk id; fails if an id is there twice."""
    batches = store.scan(NAME, space, ["chunk_id", "text"], **which)
    found = [(row["chunk_id"], row["text"]) for b in batches for row in b.to_pylist()]
    assert len(dict(found)) == len(found)
    return dict(found)


def everything(store: VectorStore) -> list[dict[str, Any]]:
    """All columns of all rows, by chunk id."""
    batches = store.scan(NAME, SPACE, SCHEMA.names)
    return sorted((row for b in batches for row in b.to_pylist()), key=lambda r: r["chunk_id"])
