"""The columns of the files that the stages hand each other."""

import pyarrow as pa

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
read, see `unchanged.listing_marks`, if it may be relied on; `yields`: how many documents of all
partitions its larger files held, as JSON, "" for all files together.
"""
SOURCE_DIGEST = "source"
SOURCE_FILES = "files"
SOURCE_YIELDS = "yields"

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
"""One row a refused record, or a refused chunk of a document (then `detail` has its number)."""

QUARANTINED = pa.schema([("stage", pa.string()), ("partition", pa.string()), *QUARANTINE])
"""The quarantine of a whole collection: the asset that refused, and the partition, null if none."""

WITHHELD = pa.schema([("document_id", pa.string()), ("file", pa.string()), ("reason", pa.string())])
"""One row a document that stays though the source no longer has it, and why (see `deletions`).

Schema metadata `source` as in `DOCUMENTS`; `accepted` if the next run may remove it.
"""

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
