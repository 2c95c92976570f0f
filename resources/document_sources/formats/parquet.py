"""Parquet: one row a document."""

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from resources.document_sources.base import Document, Refusal, RefusalReason, SourceFile, bounded
from resources.document_sources.builder import DocumentBuilder
from resources.document_sources.formats.lines import check_unique
from resources.document_sources.timestamps import NANOSECONDS, TimestampUnit

_BATCH_BYTES = 32 * 1024 * 1024
_MAX_BATCH_ROWS = 1_024
_EPOCH = datetime(1970, 1, 1)
_UTC_EPOCH = _EPOCH.replace(tzinfo=timezone.utc)


class _Unreadable:
    """Stands for a cell that has no Python value."""

    def __init__(self, error: Exception):
        self.error = error


def read_parquet(
    file: SourceFile, stream: BinaryIO, builder: DocumentBuilder
) -> Iterator[Document | Refusal]:
    # INT96 times, as Spark and Impala wrote them, reach beyond what 64 bits hold of nanoseconds.
    parquet = pq.ParquetFile(
        stream, page_checksum_verification=True, coerce_int96_timestamp_unit="us"
    )
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
    try:
        if _has_python_form(column.type):
            return column.to_pylist(), True
        if pa.types.is_timestamp(column.type):
            values = column.cast(pa.int64()).to_pylist()
            moments = [None if each is None else _moment(each, column.type) for each in values]
            return moments, True
        return [_python_value(scalar) for scalar in column], True
    except Exception:  # one bad cell, such as invalid UTF-8 or the year 10000: find it
        return [_python_value_or_error(scalar) for scalar in column], False


def _python_value_or_error(scalar: pa.Scalar) -> Any:
    try:
        return _python_value(scalar)
    except Exception as error:
        return _Unreadable(error)


def _has_python_form(kind: pa.DataType) -> bool:
    """Whether pyarrow makes Python values of it without pandas and without a time zone database."""
    types = pa.types
    if types.is_timestamp(kind):
        return kind.unit != "ns" and kind.tz is None
    if types.is_time64(kind) or types.is_duration(kind):
        return kind.unit != "ns"
    if types.is_dictionary(kind):
        return _has_python_form(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _has_python_form(kind.storage_type)
    return all(_has_python_form(kind.field(i).type) for i in range(kind.num_fields))


def _moment(value: int, kind: pa.TimestampType) -> datetime:
    """A time as Python has it: in UTC or naive, cut to the microsecond that it belongs to."""
    microseconds = value * NANOSECONDS[TimestampUnit(kind.unit)] // 1_000  # down, also before 1970
    return (_EPOCH if kind.tz is None else _UTC_EPOCH) + timedelta(microseconds=microseconds)


def _python_value(scalar: pa.Scalar) -> Any:
    """As `as_py`, with times as `_moment` has them, however deep they are."""
    kind, types = scalar.type, pa.types
    if not scalar.is_valid or _has_python_form(kind):
        return scalar.as_py()
    if types.is_timestamp(kind):
        return _moment(scalar.value, kind)
    if types.is_duration(kind):
        return timedelta(microseconds=scalar.value // 1_000)
    if types.is_time64(kind):
        return (_EPOCH + timedelta(microseconds=scalar.value // 1_000)).time()
    if types.is_struct(kind):
        return {field.name: _python_value(scalar[i]) for i, field in enumerate(kind)}
    if types.is_map(kind):
        return [(_python_value(pair[0]), _python_value(pair[1])) for pair in scalar.values]
    if types.is_dictionary(kind) or isinstance(kind, pa.BaseExtensionType):
        return _python_value(scalar.value)
    return [_python_value(value) for value in scalar.values]


def _refuse_unreadable(
    record: dict[str, Any], builder: DocumentBuilder, path: str, row: int
) -> Refusal | None:
    for name, value in record.items():
        if isinstance(value, _Unreadable):
            if isinstance(value.error, UnicodeDecodeError):
                reason = RefusalReason.invalid_utf8
            elif f"{builder.timestamp_field}.".startswith(f"{name}."):
                reason = RefusalReason.no_timestamp
            else:
                reason = RefusalReason.malformed_line
            document_id = builder.id_or_none(record)
            detail = f"field {name!r}: {type(value.error).__name__}: {value.error}"
            return Refusal(reason, document_id, path, row, bounded(detail))
    return None
