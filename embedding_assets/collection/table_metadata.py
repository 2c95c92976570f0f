"""What Dagster itself knows of tables: its own keys for their columns, place, name and rows."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
import pyarrow as pa

ROW_COUNT = "dagster/row_count"
"""Of the whole table: only where a store knows it, for no run looks at all partitions for that."""
PARTITION_ROW_COUNT = "dagster/partition_row_count"
TABLE_NAME = "dagster/table_name"


def table_metadata(columns: pa.Schema, meanings: Mapping[str, str], uri: str) -> dict[str, Any]:
    """The metadata of an asset's definition.

    Args:
        columns: of the table.
        meanings: what each of them is, for people.
        uri: where the table is.
    """
    return {
        "dagster/uri": uri,
        "dagster/column_schema": dg.TableSchema(
            [
                dg.TableColumn(
                    column.name,
                    _type(column.type),
                    meanings[column.name],
                    dg.TableColumnConstraints(nullable=column.nullable),
                )
                for column in columns
            ]
        ),
    }


def _type(type_: pa.DataType) -> str:
    if pa.types.is_list(type_):
        return f"list of {_type(type_.value_type)}"
    if pa.types.is_float32(type_):
        return "float32"  # which Arrow calls float
    if pa.types.is_timestamp(type_):
        return f"timestamp ({type_.tz})"
    return f"{type_.byte_width} bytes" if pa.types.is_fixed_size_binary(type_) else str(type_)
