"""The chunks of documents, with their context and content hash; unchanged documents keep theirs."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from embedding_assets.artifacts.keys import chunks_key, documents_key
from embedding_assets.artifacts.parquet import read_batches, write_parquet
from embedding_assets.artifacts.rows import to_arrow
from embedding_assets.artifacts.schemas import CHUNKS
from embedding_assets.artifacts.scratch import Scratch
from embedding_assets.collection.settings import ChunkingSettings
from embedding_assets.deduplicated_chunks.boundaries import Offsets
from embedding_assets.deduplicated_chunks.splitter import ALGORITHM_VERSION, split
from embedding_assets.deduplicated_chunks.token_offsets import DocumentTokenizer
from embedding_assets.runs.progress import Progress
from resources.artifact_stores.base import ArtifactStore
from resources.embedders.base import Embedder
from resources.identity.content_hash import chunk_id, content_hash

_DOCUMENTS_PER_BATCH = 256
_TO_SPLIT = ["id", "title", "text", "version"]
_CONTEXT_SHARE = 4
"""The context of a chunk takes at most a quarter of its tokens."""


@dataclass(frozen=True)
class _Context:
    """What stands before the text of a chunk, and how many tokens it has."""

    text: str
    tokens: int


class Splitter:
    """Turns documents into rows of chunks; each document is tokenised once."""

    def __init__(self, collection: str, settings: ChunkingSettings, embedder: Embedder) -> None:
        self._collection = collection
        self._embedder = embedder
        self._special_tokens = embedder.special_tokens
        self._model_limit = embedder.max_text_tokens
        self._limit = min(settings.max_tokens - self._special_tokens, self._model_limit)
        # Half of what the model takes, as of `max_tokens`: a long title would leave no room.
        overlap = min(settings.overlap, (self._limit + self._special_tokens) // 2)
        self._settings = settings = settings.model_copy(update={"overlap": overlap})
        self.fingerprint = json.dumps(
            {
                "algorithm": ALGORITHM_VERSION,
                "space": embedder.space.id,
                **settings.model_dump(),
            },
            sort_keys=True,
        )

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        """Not made before there is a document to split."""
        return self._embedder.new_tokenizer()

    @cached_property
    def _documents(self) -> DocumentTokenizer:
        return DocumentTokenizer(self._tokenizer)

    def made(self, chunks: Path) -> bool:
        """Whether a chunks file was made with equal settings, so that its rows may be kept."""
        metadata = pq.read_schema(chunks).metadata or {}
        return metadata.get(b"chunking") == self.fingerprint.encode()

    @property
    def collection(self) -> str:
        return self._collection

    def chunks(self, documents: pa.RecordBatch) -> pa.RecordBatch:
        """Splits documents.

        Args:
            documents: columns id, title, text and version, as in `artifacts.DOCUMENTS`.

        Returns:
            Columns as in `artifacts.CHUNKS`, in the order of the documents.
        """
        return to_arrow(list(self._rows(documents)), CHUNKS)

    def _rows(self, documents: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
        texts = documents["text"].to_pylist()
        titles = documents["title"].to_pylist()
        splits = self._whole if self._settings.strategy == "whole" else self._structured
        for document_id, version, spans in zip(
            documents["id"].to_pylist(),
            documents["version"].to_pylist(),
            splits(titles, texts),
            strict=True,
        ):
            for number, (start, end, context, text, tokens, truncated) in enumerate(spans):
                yield (
                    chunk_id(self._collection, document_id, number),
                    document_id,
                    version,
                    number,
                    start,
                    end,
                    context,
                    text,
                    content_hash(context + text),
                    tokens,
                    truncated,
                )

    def _whole(self, titles: list[str], texts: list[str]) -> Iterator[list[tuple[Any, ...]]]:
        contexts = [f"{title} " if title else "" for title in titles]
        embedded = [context + text for context, text in zip(contexts, texts, strict=True)]
        counts = [len(e) for e in self._tokenizer.encode_batch_fast(embedded)]
        for context, text, tokens in zip(contexts, texts, counts, strict=True):
            fed = min(tokens, self._model_limit + self._special_tokens)
            yield [(0, len(text), context, text, fed, tokens - fed)]

    def _structured(self, titles: list[str], texts: list[str]) -> Iterator[list[tuple[Any, ...]]]:
        contexts = self._title_contexts(titles)
        offsets_of_texts = self._documents.offsets(texts)
        for title, text, offsets in zip(contexts, texts, offsets_of_texts, strict=True):
            # The headings above a chunk are known only when it is cut, so their room is reserved.
            with_headings = self._settings.context == "headings"
            room = self._limit - (self._limit // _CONTEXT_SHARE if with_headings else title.tokens)
            rows = self._cut(title, text, offsets, room)
            # Not less: one strange word must not make crumbs of its whole document.
            least = max(self._settings.overlap + 1, room * 3 // 4)
            while (excess := self._excess(text, rows)) > 0 and room > least:
                room = max(room - excess, least)
                rows = self._cut(title, text, offsets, room)
            yield rows

    def _cut(
        self, title: _Context, text: str, offsets: Offsets, room: int
    ) -> list[tuple[Any, ...]]:
        rows = []
        for span in split(text, offsets, max_tokens=room, overlap=self._settings.overlap):
            context = title
            if self._settings.context == "headings" and span.headings:
                context = self._cut_context(f"{title.text}{' > '.join(span.headings)}\n\n")
            tokens = span.tokens + context.tokens + self._special_tokens
            body = text[span.start : span.end]
            rows.append((span.start, span.end, context.text, body, tokens, 0))
        return rows

    def _excess(self, text: str, rows: list[tuple[Any, ...]]) -> int:
        """How many tokens over the limit the longest row is.

        Counted again only where a row may have other tokens than its part of the document: where
        a word was cut, or where tokens depend on the white space before them.
        """
        independent = self._documents.words_are_independent
        uncertain = [
            context + body
            for start, end, context, body, _, _ in rows
            if not independent
            or (start > 0 and not text[start - 1].isspace())
            or (end < len(text) and not text[end].isspace())
        ]
        encodings = self._tokenizer.encode_batch_fast(uncertain, add_special_tokens=False)
        return max(map(len, encodings), default=0) - self._limit

    def _title_contexts(self, titles: list[str]) -> list[_Context]:
        if self._settings.context == "none":
            return [_Context("", 0)] * len(titles)
        return [self._cut_context(f"{title}\n\n" if title else "") for title in titles]

    def _cut_context(self, text: str) -> _Context:
        if not text:
            return _Context("", 0)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        room = self._limit // _CONTEXT_SHARE
        if len(encoding) <= room:
            return _Context(text, len(encoding))
        for last in range(room - 1, 0, -1):
            cut = f"{text[: encoding.offsets[last][1]]}\n\n"
            # Half a word may have more tokens than it had within the word.
            if len(self._tokenizer.encode(cut, add_special_tokens=False)) <= room:
                return _Context(cut, room)
        return _Context("", 0)


def split_partition(
    splitter: Splitter,
    artifacts: ArtifactStore,
    database: Scratch,
    partition: str,
    progress: Progress,
) -> dict[str, int]:
    """Replaces the chunks of a partition; documents of a known version are not split again."""
    key = chunks_key(splitter.collection, partition)
    schema = CHUNKS.with_metadata({"chunking": splitter.fingerprint})
    reusable = False
    if artifacts.exists(key):
        with artifacts.reading(key) as previous:
            reusable = splitter.made(previous)
    with artifacts.reading(documents_key(splitter.collection, partition)) as documents:
        total = pq.read_metadata(documents).num_rows
        progress.begin(total)
        if not reusable:
            return _split_all(splitter, artifacts, schema, key, documents, progress)
        with artifacts.reading(key) as previous:
            chunks, unchanged = database.row(
                f"SELECT count(*), count(DISTINCT document_id) {_UP_TO_DATE}",
                previous=str(previous),
                documents=str(documents),
            )
            up_to_date = chunks == pq.read_metadata(previous).num_rows
            progress.advance(unchanged, unchanged=unchanged)
            if up_to_date and unchanged == total:
                return {"chunks": chunks, "documents_split": 0, "documents_unchanged": unchanged}
            database.create("kept", CHUNKS)
            database.create("fresh", CHUNKS)
            database.execute(
                f"INSERT INTO kept SELECT c.* {_UP_TO_DATE}",
                previous=str(previous),
                documents=str(documents),
            )
        split_now = 0
        if unchanged < total:
            for batch in _not_kept(database, documents):
                database.insert("fresh", splitter.chunks(batch))
                split_now += len(batch)
                progress.advance(len(batch), split=len(batch))
    if split_now or not up_to_date:
        with artifacts.writing(key) as path:
            # Not sorted: over texts, DuckDB's sort runs out of memory.
            rows = database.stream("FROM kept UNION ALL FROM fresh")
            chunks = write_parquet(path, schema, rows)
    return {"chunks": chunks, "documents_split": split_now, "documents_unchanged": unchanged}


def _split_all(
    splitter: Splitter,
    artifacts: ArtifactStore,
    schema: pa.Schema,
    key: str,
    documents: Path,
    progress: Progress,
) -> dict[str, int]:
    """Writes the chunks of all documents of a partition."""

    def chunks() -> Iterator[pa.RecordBatch]:
        for batch in read_batches(documents, _DOCUMENTS_PER_BATCH, _TO_SPLIT):
            yield splitter.chunks(batch)
            progress.advance(len(batch), split=len(batch))

    with artifacts.writing(key) as path:
        rows = write_parquet(path, schema, chunks())
    split_now = pq.read_metadata(documents).num_rows
    return {"chunks": rows, "documents_split": split_now, "documents_unchanged": 0}


_UP_TO_DATE = """
    FROM read_parquet($previous) c SEMI JOIN read_parquet($documents) d
    ON d.id = c.document_id AND d.version = c.document_version
"""
"""SQL: the chunks `c` of documents whose version is as it was."""


def _not_kept(database: Scratch, documents: Path) -> Iterator[pa.RecordBatch]:
    """The documents whose chunks are not in the table `kept`, some at a time."""
    # Texts are read past DuckDB, which would hold 2,048 of them at once.
    flags = (
        flag
        for batch in database.stream(
            "SELECT id NOT IN (SELECT document_id FROM kept) AS fresh "
            "FROM read_parquet($documents, file_row_number = true) ORDER BY file_row_number",
            documents=str(documents),
        )
        for flag in batch["fresh"].to_pylist()
    )
    for batch in read_batches(documents, _DOCUMENTS_PER_BATCH, _TO_SPLIT):
        fresh = batch.filter(pa.array(list(islice(flags, len(batch))), pa.bool_()))
        if len(fresh):
            yield fresh
