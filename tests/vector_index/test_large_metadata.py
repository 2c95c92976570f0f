"""Metadata and titles of any size cost what they are, once a document and not once a chunk."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding_assets.artifacts.keys import documents_key
from resources.vector_stores.lancedb import LanceDBVectorStore
from tests.support.pipeline import Pipeline, checks, write_jsonl

TEXT = "\n\n".join(f"Section {i}. " + f"word{i} " * 100 for i in range(400))


@pytest.mark.parametrize(
    "large",
    [
        {"metadata": {"history": [f"statement {i} of the court" for i in range(40_000)]}},
        {"title": "A long title. " * 20_000},
    ],
    ids=["metadata", "title"],
)
def test_what_is_large_is_stored_once_a_document_and_found_with_every_chunk(
    tmp_path: Path, large: dict[str, Any]
) -> None:
    records = [{"id": "law", "text": TEXT, **large}, {"id": "note", "text": "short", "tag": "x"}]
    pipeline = Pipeline(
        tmp_path,
        str(write_jsonl(tmp_path / "a.jsonl", records)),
        settings={"partitions": {"by": "bucket", "count": 1}, "chunking": {"context": "none"}},
    )
    result = pipeline.run()
    assert result.success
    assert all(checks(result).values())
    rows = [row for row in pipeline.rows() if row["document_id"] == "law"]
    assert len(rows) > 300
    stored = sum(len(row["title"] or "") + len(row["metadata"] or "") for row in rows)
    [document] = [row for row in pipeline.documents() if row["id"] == "law"]
    assert stored == len(document["title"]) + len(document["metadata"]) > 250_000
    last = max(rows, key=lambda row: row["chunk_number"])
    hit = pipeline.opened.search(last["text"], k=1)[0]
    assert hit.chunk_id == last["chunk_id"]
    assert hit.title == document["title"]
    assert dict(hit.metadata) == ({"metadata": large["metadata"]} if "metadata" in large else {})
    [note] = [row for row in pipeline.rows() if row["document_id"] == "note"]
    assert (note["title"], note["metadata"]) == ("", '{"tag":"x"}')


def test_batches_of_large_documents_have_few_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"id": str(i), "text": f"text {i}", "h": f"{i} " * 100_000} for i in range(120)]
    pipeline = Pipeline(
        tmp_path,
        str(write_jsonl(tmp_path / "a.jsonl", records)),
        settings={"partitions": {"by": "bucket", "count": 1}},
    )
    sizes: list[int] = []
    replace = LanceDBVectorStore.replace

    def watched(
        self: LanceDBVectorStore, name: str, space: Any, rows: pa.RecordBatchReader, **options: Any
    ) -> None:
        batches = list(rows)
        sizes.extend(batch.nbytes for batch in batches)
        rows = pa.RecordBatchReader.from_batches(rows.schema, batches)
        replace(self, name, space, rows, **options)

    monkeypatch.setattr(LanceDBVectorStore, "replace", watched)
    assert pipeline.run().success
    assert sum(sizes) > 30_000_000
    assert max(sizes) < 20_000_000
    with pipeline.artifacts.reading(documents_key("corpus", "bucket_0")) as path:
        groups = pq.read_metadata(path)
        sizes = [groups.row_group(i).total_byte_size for i in range(groups.num_row_groups)]
    assert max(sizes) < 20_000_000
    assert len(pipeline.rows()) == len(records)
