"""Rows that Python made, as Arrow."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa


def to_arrow(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.RecordBatch:
    """One batch of rows, each with a value for every column of the schema."""
    columns = zip(*rows, strict=True) if rows else [[] for _ in schema]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)
