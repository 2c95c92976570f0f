from pathlib import Path

from tests.pipeline import Pipeline, checks, numbers, write_jsonl


def _records(count: int) -> list[dict[str, str]]:
    return [
        {
            "id": f"d{i}",
            "title": f"Title {i}",
            "text": f"Paragraph number {i} of this text.\n\nIt says {i * 7}.",
        }
        for i in range(count)
    ]


def test_a_first_run_embeds_everything_and_a_second_nothing(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "source" / "a.jsonl", _records(50))
    pipeline = Pipeline(
        tmp_path, str(source), settings={"partitions": {"by": "bucket", "count": 4}}
    )
    first = pipeline.run()
    assert all(checks(first).values())
    assert numbers(first, "documents")["added"] == 50
    assert numbers(first, "embeddings")["embedded"] == len(pipeline.rows()) == 50
    second = pipeline.run()
    assert numbers(second, "documents")["unchanged"] == 50
    assert numbers(second, "embeddings")["embedded"] == 0
    assert numbers(second, "embeddings")["cache_hit_rate"] == 4
    assert numbers(second, "vector_index")["rows_written"] == 0
    assert all(checks(second).values())
