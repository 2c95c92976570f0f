"""Parquet: one row a document."""

from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from resources.document_sources.base import Document, Refusal, RefusalReason, SourceFile, bounded
from resources.document_sources.builder import DocumentBuilder
from resources.document_sources.formats.lines import check_unique

_BATCH_BYTES = 32 * 1024 * 1024
_MAX_BATCH_ROWS = 1_024


class _Unreadable:
    """Stands for a cell that has no Python value."""

    def __init__(self, error: Exception):
        self.error = error


def read_parquet(
    file: SourceFile, stream: BinaryIO, builder: DocumentBuilder
) -> Iterator[Document | Refusal]:
    parquet = pq.ParquetFile(stream, page_checksum_verification=True)
    names = parquet.schema_arrow.names
    check_unique(names)
    path = file.path
    row = 0
    for batch in _batches(parquet):
        columns, all_readable = [], True
        for column in batch.columns:
            values, readable = _python_values(column)
            columns.append(values)
            all_readable = all_readable and readable
        for cells in zip(*columns, strict=True):
            row += 1
            record = dict(zip(names, cells, strict=True))
            if not all_readable and (refusal := _refuse_unreadable(record, builder, path, row)):
                yield refusal
            else:
                yield builder.from_record(record, path, row)
    if row != parquet.metadata.num_rows:
        raise ValueError(f"the file's footer says {parquet.metadata.num_rows} rows, {row} came")


def _batches(parquet: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    # Group by group: a batch that reached into a damaged group would be lost with it.
    for index in range(parquet.num_row_groups):
        group = parquet.metadata.row_group(index)
        row_bytes = max(1, group.total_byte_size // max(1, group.num_rows))
        rows = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // row_bytes))
        yield from parquet.iter_batches(batch_size=rows, row_groups=[index])


def _python_values(column: pa.Array) -> tuple[list[Any], bool]:
    """A column's Python values, and whether there is one for every cell."""
    wanted = _python_type(column.type)
    try:
        if wanted != column.type:
            column = column.cast(wanted, safe=False)
        return column.to_pylist(), True
    except Exception:  # one bad cell, such as invalid UTF-8 or the year 10000: find it
        return [_python_value(scalar) for scalar in column], False


def _python_value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except Exception as error:
        return _Unreadable(error)


def _python_type(kind: pa.DataType) -> pa.DataType:
    """The type with times as Python has them: microseconds and UTC, without importing pandas."""
    types = pa.types
    if types.is_timestamp(kind):
        return pa.timestamp(
            "us" if kind.unit == "ns" else kind.unit, None if kind.tz is None else "UTC"
        )
    if types.is_time64(kind):
        return pa.time64("us")
    if types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if types.is_struct(kind):
        return pa.struct([_python_field(kind.field(i)) for i in range(kind.num_fields)])
    if types.is_list(kind):
        return pa.list_(_python_field(kind.value_field))
    if types.is_large_list(kind):
        return pa.large_list(_python_field(kind.value_field))
    return kind


def _python_field(field: pa.Field) -> pa.Field:
    return field.with_type(_python_type(field.type))


def _refuse_unreadable(
    record: dict[str, Any], builder: DocumentBuilder, path: str, row: int
) -> Refusal | None:
    for name, value in record.items():
        if isinstance(value, _Unreadable):
            if isinstance(value.error, UnicodeDecodeError):
                reason = RefusalReason.invalid_utf8
            elif name == builder.timestamp_field:
                reason = RefusalReason.no_timestamp
            else:
                reason = RefusalReason.malformed_line
            document_id = builder.id_or_none(record.get(builder.id_field))
            detail = f"field {name!r}: {type(value.error).__name__}: {value.error}"
            return Refusal(reason, document_id, path, row, bounded(detail))
    return None
