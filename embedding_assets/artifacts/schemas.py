"""The files that the assets hand each other: their keys in the artifact store and their columns."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from resources.identity.content_hash import HASH_BYTES

_HASH = pa.binary(HASH_BYTES)

DOCUMENTS = pa.schema(
    [
        ("id", pa.string()),
        ("title", pa.string()),
        ("text", pa.string()),
        ("timestamp", pa.timestamp("us", "UTC")),
        ("metadata", pa.string()),  # JSON
        ("version", _HASH),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("read_at", pa.timestamp("us", "UTC")),  # when this record was last seen in the source
    ]
)
"""One row a document, sorted by id.

Schema metadata `source`: `SourceState`'s digest, as hex; `files`: the mark of the files that were
read, see `source_files.marks`, if it may be relied on.
"""
SOURCE_DIGEST = "source"
SOURCE_FILES = "files"
DUPLICATE_DETAIL = "another record has this id: "
"""Begins the detail of a refused duplicate; the winner's file, " line " and its line follow."""

QUARANTINE = pa.schema(
    [
        ("reason", pa.string()),
        ("document_id", pa.string()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("detail", pa.string()),
        ("attempts", pa.int64()),
    ]
)
"""One row a refused record, or a refused chunk's document (then `line` is its chunk number)."""

CHUNKS = pa.schema(
    [
        ("chunk_id", pa.string()),
        ("document_id", pa.string()),
        ("document_version", _HASH),
        ("chunk_number", pa.int32()),
        ("span_start", pa.int64()),
        ("span_end", pa.int64()),
        ("context", pa.string()),
        ("text", pa.string()),
        ("content_hash", _HASH),
        ("tokens", pa.int32()),
        ("tokens_truncated", pa.int32()),
    ]
)
"""One row a chunk; `context || text` is what is embedded. Schema metadata `chunking`."""

PLAN = pa.schema(
    [
        ("content_hash", _HASH),
        ("chunk_id", pa.string()),  # one chunk that has this content
        ("tokens", pa.int32()),
        ("tokens_truncated", pa.int32()),
        ("cached", pa.bool_()),
    ]
)
"""One row a distinct content hash, and whether the cache held it when the plan was made."""

VECTORS = pa.schema([("content_hash", _HASH), ("vector", pa.binary())])
"""One row a distinct content hash; raw little-endian float32. Schema metadata `space`."""


QUARANTINE_FILE = "quarantine.parquet"


def documents_key(collection: str, partition: str) -> str:
    return f"{collection}/documents/{partition}/documents.parquet"


def documents_quarantine_key(collection: str, partition: str | None) -> str:
    """The refused documents of one partition; None: those that belong to no partition."""
    folder = f"{partition}/" if partition is not None else ""
    return f"{collection}/documents/{folder}{QUARANTINE_FILE}"


def chunks_key(collection: str, partition: str) -> str:
    return f"{collection}/deduplicated_chunks/{partition}/chunks.parquet"


def plan_key(collection: str, partition: str) -> str:
    return f"{collection}/deduplicated_chunks/{partition}/plan.parquet"


def vectors_key(collection: str, partition: str) -> str:
    return f"{collection}/embeddings/{partition}/vectors.parquet"


def fallback_vectors_key(collection: str, partition: str) -> str:
    """The vectors of documents that only the fallback could embed, in its own space."""
    return f"{collection}/embeddings/{partition}/fallback_vectors.parquet"


def embeddings_quarantine_key(collection: str, partition: str) -> str:
    return f"{collection}/embeddings/{partition}/{QUARANTINE_FILE}"


def duplicate_winner(detail: str) -> str:
    """The file of the record for which a duplicate was refused."""
    return detail.removeprefix(DUPLICATE_DETAIL).rpartition(" line ")[0]


def write_parquet(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Writes batches, cast to the schema, as they come; returns the number of rows."""
    rows = 0
    with parquet_writer(path, schema) as write:
        for batch in batches:
            rows += len(batch)
            write(batch)
    return rows


@contextmanager
def parquet_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """Yields a function that appends a batch, cast to the schema."""
    # Vectors do not repeat, and zstd makes them 7 % smaller in three times the time.
    repeating = [name for name in schema.names if name != "vector"]
    options: dict[str, Any] = {
        "compression": {name: "zstd" if name in repeating else "none" for name in schema.names},
        "use_dictionary": repeating,
    }
    with pq.ParquetWriter(path, schema, **options) as writer:
        yield lambda batch: writer.write_table(pa.Table.from_batches([batch]).cast(schema))


def uncompressed_bytes(parquet: Path | str) -> int:
    """About what all rows of a file take in memory."""
    metadata = pq.read_metadata(parquet)
    return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))


def grouped_by_partition(
    batches: Iterable[pa.RecordBatch],
) -> Iterator[tuple[str, Iterator[pa.RecordBatch]]]:
    """Cuts batches that are sorted by their first column, `partition`, and drops that column."""

    def slices() -> Iterator[tuple[str, pa.RecordBatch]]:
        for batch in batches:
            runs = pc.call_function("run_end_encode", [batch.column(0)])
            start = 0
            for partition, end in zip(
                runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True
            ):
                yield partition, batch.slice(start, end - start).drop_columns(["partition"])
                start = end

    for partition, group in groupby(slices(), key=itemgetter(0)):
        yield partition, (piece for _, piece in group)
