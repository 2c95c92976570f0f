"""A row counts for one partition, whatever partitions the collection had before."""

from pathlib import Path

from tests.support.pipeline import Pipeline, numbers, write_jsonl

CHUNKING = {"chunking": {"max_tokens": 64}}
TIMED = {"source": {"fields": {"timestamp": "created"}}}
YEARS = {"partitions": {"by": "year", "start": "2025-01-01"}}
BUCKETS = {"partitions": {"by": "bucket", "count": 1}}


def test_a_row_of_a_former_partition_counts_as_removed_once(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {i} speaks of the number {i} alone. " * 8 for i in range(9)]
    document = {"id": "a", "created": "2025-03-01", "text": "\n\n".join(paragraphs)}
    source = write_jsonl(tmp_path / "source" / "a.jsonl", [document])
    yearly = Pipeline(tmp_path, str(source), settings={**CHUNKING, **TIMED, **YEARS})
    yearly.run()
    before = len(yearly.rows())
    write_jsonl(source, [{**document, "text": paragraphs[0]}])
    bucketed = Pipeline(tmp_path, str(source), settings={**CHUNKING, **TIMED, **BUCKETS})
    result = bucketed.run()
    after = len(bucketed.rows())
    assert after < before - 1
    assert numbers(result, "vector_index")["rows_removed"] == before - after
