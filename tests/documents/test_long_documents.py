"""Texts never have to fit into the memory that sorts and joins may take."""

from pathlib import Path

import pytest

from embedding_assets.documents import spool
from tests.support.pipeline import Pipeline, checks, numbers, write_jsonl


def test_long_documents_of_several_times_the_memory_limit_are_ingested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDING_MEMORY", "96MB")  # of which sorts and joins get a quarter
    monkeypatch.setattr(spool, "_CHARACTERS_PER_BATCH", 500_000)
    size, count = 500_000, 120
    records = [{"id": f"d{i:03}", "text": f"{i:03} ".ljust(size, "x")} for i in range(count)]
    source = write_jsonl(tmp_path / "source.jsonl", records)
    settings = {"partitions": {"by": "bucket", "count": 2}}
    pipeline = Pipeline(tmp_path, str(source), settings=settings)
    result = pipeline.run(assets=["documents"])
    assert all(checks(result).values())
    assert numbers(result, "documents")["documents"] == count
    assert [len(document["text"]) for document in pipeline.documents()] == [size] * count
