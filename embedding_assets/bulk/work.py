"""What is done for a bulk job: its file is cut into parts, each is embedded, and all are joined.

Each step leaves a file that says that it is done, and may be done again at no harm: vectors are in
the cache as soon as they are made.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any, BinaryIO, cast

import fsspec
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embedding_assets.api import Collection
from embedding_assets.bulk.jobs import Ending, Job, Jobs
from embedding_assets.embeddings.stream import Pace, embed_stream, model_calls, texts_of
from resources.artifact_stores.base import ArtifactNotFoundError
from resources.caches.vectors import CONTENT_HASH_TYPE, hash_array
from resources.document_sources.base import Document, FieldNames, Refusal, SourceFile
from resources.document_sources.builder import DocumentBuilder
from resources.document_sources.formats.registry import format_of, is_marker, read_file
from resources.document_sources.listing import find_files
from resources.errors import InvalidInputError
from resources.identity.content_hash import content_hash, query_hash

_RECORDS_OF_PART = 2_048
_CHARACTERS_OF_PART = 1_000_000
"""Of a part at most: so it is done in a minute or two on a slow machine. A worker that is killed
falls back to its beginning; what it had embedded is in the cache."""
_MAX_TEXT_BYTES = 1_000_000
_TEXTS_PER_CALL = 512

_RECORDS = pa.schema(
    [("record", pa.int64()), *((name, pa.string()) for name in ("id", "text", "code", "error"))]
)


def read_input(jobs: Jobs, job: Job) -> None:
    """Cuts a job's file into parts.

    A record that cannot be read is one of them, with the reason.

    Raises:
        EmbeddingAssetsError: there is no such file, or its storage cannot be used.
    """
    sizes: list[int] = []
    rows: list[tuple[int, str | None, str | None, str | None, str | None]] = []
    characters = 0

    def write() -> None:
        columns = list(zip(*rows, strict=True)) if rows else [[] for _ in _RECORDS]
        table = pa.table([pa.array(column) for column in columns], schema=_RECORDS)
        with jobs.store.writing(f"{job.id}/texts/{len(sizes):05}.parquet") as path:
            pq.write_table(table, path, compression="zstd")
        sizes.append(len(rows))
        rows.clear()

    for number, record in enumerate(_records(jobs, job)):
        if isinstance(record, Document):
            rows.append((number, record.id, record.text, None, None))
            characters += len(record.text)
        else:
            where = record.file if record.line is None else f"line {record.line}"
            rows.append(
                (number, record.document_id, None, record.reason.value, f"{where}: {record.detail}")
            )
        if len(rows) >= _RECORDS_OF_PART or characters >= _CHARACTERS_OF_PART:
            write()
            characters = 0
    if rows or not sizes:  # a file without records has a result, too
        write()
    jobs.note_read(job.id, sizes)


def embed_part(jobs: Jobs, job: Job, part: int, collection: Collection) -> None:
    """Embeds the records of a part, through the collection's cache.

    Raises:
        EmbeddingError: the model cannot be used.
    """
    with jobs.store.reading(f"{job.id}/texts/{part:05}.parquet") as path:
        records = pq.read_table(path)
    vectors, cached, errors = _embedded(job, records["text"].to_pylist(), collection)
    codes, reasons = records["code"].to_pylist(), records["error"].to_pylist()
    for row, (code, reason) in errors.items():
        codes[row], reasons[row] = code, reason
    failed = np.array([code is not None for code in codes], dtype=bool)
    schema = _result_schema(job, collection)
    flat = pa.array(vectors.ravel(), pa.float32())
    embeddings = pa.FixedSizeListArray.from_arrays(
        flat, type=schema.field("embedding").type, mask=pa.array(failed)
    )
    columns = [
        records["record"],
        records["id"],
        embeddings,
        pa.array(cached),
        pa.array(codes, pa.string()),
        pa.array(reasons, pa.string()),
    ]
    with jobs.store.writing(f"{job.id}/vectors/{part:05}.parquet") as path:
        pq.write_table(pa.table(columns, schema=schema), path)


def _embedded(
    job: Job, texts: list[str | None], collection: Collection
) -> tuple[np.ndarray, np.ndarray, dict[int, tuple[str, str]]]:
    """Vectors of shape (n, dimension), which of them were cached, and why others have none."""
    embedder, cache = collection.resources.embedder, collection.resources.cache
    space = embedder.space
    vectors = np.zeros((len(texts), space.dimension), dtype=np.float32)
    cached = np.zeros(len(texts), dtype=bool)
    errors: dict[int, tuple[str, str]] = {}
    hash_of = query_hash if job.role == "query" else content_hash
    rows_of: dict[bytes, list[int]] = {}
    for row, text in enumerate(texts):
        if text is not None:
            rows_of.setdefault(hash_of(text), []).append(row)
    keys = list(rows_of)
    answer = cache.get(space, hash_array(keys))
    cache.count_lookup(space, answer.found)
    for key, vector, found in zip(keys, answer.vectors, answer.found, strict=True):
        if found:
            vectors[rows_of[key]], cached[rows_of[key]] = vector, True
    missing = [key for key, found in zip(keys, answer.found, strict=True) if not found]
    if not missing:
        return vectors, cached, errors
    batch = pa.record_batch(
        [hash_array(missing), pa.array([texts[rows_of[key][0]] for key in missing])],
        names=["content_hash", "text"],
    )
    most = max(1, _TEXTS_PER_CALL // embedder.concurrency)
    pace = Pace(embedder.seconds_per_call)
    calls = model_calls(embedder, [batch], most, pace)
    for embedded in embed_stream(embedder, calls, texts_of, job.role):
        pace.learn(embedded)
        good = np.array([error is None for error in embedded.errors])
        hashes = embedded.item["content_hash"].cast(CONTENT_HASH_TYPE)
        cache.put(space, hashes.filter(pa.array(good)), embedded.batch.vectors[good])
        for key, vector, error in zip(
            hashes.to_pylist(), embedded.batch.vectors, embedded.errors, strict=True
        ):
            if error is None:
                vectors[rows_of[key]] = vector
            else:
                errors |= dict.fromkeys(rows_of[key], error)
    return vectors, cached, errors


def write_result(jobs: Jobs, job: Job) -> None:
    """Joins the parts, in the order of the records, and ends the job."""
    ending = Ending()
    try:
        with jobs.store.writing(f"{job.id}/result") as path:
            with path.open("wb") as stream:
                write = _write_parquet if job.result == "parquet" else _write_jsonl
                write(_counted(_parts(jobs, job), ending), stream)
            ending.bytes = path.stat().st_size
    except ArtifactNotFoundError:  # another worker has ended the job meanwhile, or it was removed
        if not jobs.has_ended(job.id):
            raise
        return
    jobs.end(job.id, "done", ending)


def _records(jobs: Jobs, job: Job) -> Iterator[Document | Refusal]:
    builder = _Builder(FieldNames(id=job.id_field, text=job.text_field), _MAX_TEXT_BYTES)
    if job.url is not None:
        marker = partial(is_marker, given=job.format)
        filesystem, files = find_files(job.url, None, marker)
        size = sum(file.size or 0 for file in files)
        if size > job.max_bytes:
            raise InvalidInputError(
                f"The URL names {size:,} bytes, and a job may read {job.max_bytes:,}: name less."
            )
        for file in files:
            kind = job.format or format_of(file.path)
            yield from read_file(file, kind, _opener(filesystem), builder)
        return
    with jobs.store.reading(f"{job.id}/input") as path:
        file = SourceFile("the file that was sent", str(path), None, None, None)
        yield from read_file(file, job.format, partial(open, mode="rb"), builder)


def _opener(filesystem: fsspec.AbstractFileSystem) -> Callable[[str], BinaryIO]:
    return lambda location: cast(BinaryIO, filesystem.open(location, "rb"))


class _Builder(DocumentBuilder):
    """Gives a record without an id the number of its line."""

    def from_record(self, record: dict[str, Any], file: str, line: int) -> Document | Refusal:
        if self._paths:
            record = self.lift_nested(record)
        given = record.get(self.id_field)
        named = line if given is None or given == "" else given
        return self.build(named, None, record.get(self.text_field), None, {}, file, line, record)


def _result_schema(job: Job, collection: Collection) -> pa.Schema:
    space = collection.resources.embedder.space
    return pa.schema(
        [
            ("record", pa.int64()),
            ("id", pa.string()),
            ("embedding", pa.list_(pa.float32(), space.dimension)),
            ("cached", pa.bool_()),
            ("code", pa.string()),
            ("error", pa.string()),
        ],
        {"model": space.model, "space": space.id, "role": job.role},
    )


def _parts(jobs: Jobs, job: Job) -> Iterator[pa.Table]:
    for part in jobs.parts(job.id):
        with jobs.store.reading(f"{job.id}/vectors/{part:05}.parquet") as path:
            yield pq.read_table(path)


def _counted(parts: Iterable[pa.Table], ending: Ending) -> Iterator[pa.Table]:
    for table in parts:
        ending.cached += pc.call_function("sum", [table["cached"]]).as_py() or 0
        ending.failed += len(table) - table["code"].null_count
        yield table


def _write_parquet(parts: Iterator[pa.Table], stream: Any) -> None:
    first = next(parts)
    with pq.ParquetWriter(stream, first.schema) as writer:
        for table in chain([first], parts):
            writer.write_table(table)


def _write_jsonl(parts: Iterator[pa.Table], stream: Any) -> None:
    for table in parts:
        dimension = table.schema.field("embedding").type.list_size
        embeddings = table["embedding"].combine_chunks()
        vectors = embeddings.values.to_numpy(zero_copy_only=False).reshape(-1, dimension)
        rows = table.drop_columns(["record", "embedding"]).to_pylist()
        for row, vector in zip(rows, vectors, strict=True):
            code, error = row.pop("code"), row.pop("error")
            row["embedding"] = vector if code is None else None
            row["error"] = code and {"code": code, "message": error}
            stream.write(
                orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
            )
