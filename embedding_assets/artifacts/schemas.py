"""The columns of the files that the stages hand each other."""

import pyarrow as pa

from resources.identity.content_hash import HASH_BYTES

_HASH = pa.binary(HASH_BYTES)
_Described = tuple[pa.Schema, dict[str, str]]


def _described(*columns: tuple[str, pa.DataType, str]) -> _Described:
    """A schema, and what its columns mean, for people."""
    schema = pa.schema([(name, type_) for name, type_, _ in columns])
    return schema, {name: meaning for name, _, meaning in columns}


DOCUMENTS, DOCUMENT_COLUMNS = _described(
    ("id", pa.string(), "The document's id, as in the source."),
    ("title", pa.string(), "The document's title; empty if it has none."),
    ("text", pa.string(), "All of the text, in canonical form."),
    ("timestamp", pa.timestamp("us", "UTC"), "The document's own time; null if it carries none."),
    ("metadata", pa.string(), "Every other field of the record, as JSON."),
    ("version", _HASH, "Hash of all that a change of the document changes."),
    ("file", pa.string(), "The file of the source that it stands in."),
    ("line", pa.int64(), "Where it begins there: its line, or its row in Parquet."),
    ("read_at", pa.timestamp("us", "UTC"), "When the record was last seen in the source."),
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

CHUNKS, CHUNK_COLUMNS = _described(
    ("chunk_id", pa.string(), "Hash of collection, document and chunk number."),
    ("document_id", pa.string(), "The document that it is a piece of."),
    ("document_version", _HASH, "The version of that document."),
    ("chunk_number", pa.int32(), "Its place among the document's chunks, from 0."),
    ("span_start", pa.int64(), "Where it begins in the document's text, in characters."),
    ("span_end", pa.int64(), "Where it ends there, exclusive."),
    ("context", pa.string(), "What is embedded before it, such as title and headings."),
    ("text", pa.string(), "Its own text."),
    ("content_hash", _HASH, "Hash of context and text: equal ones are embedded once."),
    ("tokens", pa.int32(), "Tokens of the model for context and text."),
    ("tokens_truncated", pa.int32(), "Tokens beyond the model's limit, which are cut."),
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

VECTORS, VECTOR_COLUMNS = _described(
    ("content_hash", _HASH, "Hash of the text that the vector is of."),
    ("vector", pa.binary(), "The vector, as raw little-endian float32."),
)
"""One row a distinct content hash; raw little-endian float32. Schema metadata `space`."""

ROW_COLUMNS = {
    **CHUNK_COLUMNS,
    **{name: DOCUMENT_COLUMNS[name] for name in ("title", "timestamp")},
    "metadata": "Every other field of the document, as JSON.",
    "partition": "The partition of the document.",
    "vector": "The vector of context and text, of the length of the embedding space.",
}
"""What the columns of the index mean (`vector_stores.base.row_schema`)."""
