from pathlib import Path

import pytest

from resources.embedders.local import LocalEmbedder
from tests.support.pipeline import SHARED_DATA, Pipeline, checks, numbers

XQUAD = SHARED_DATA / "xquad-en"
PUBLISHED_NDCG_AT_10 = 0.94357
"""all-MiniLM-L6-v2 on XQuAD-en, by the MTEB leaderboard."""


@pytest.mark.skipif(not XQUAD.exists(), reason="the XQuAD data is not beside this project")
def test_xquad_scores_as_published_through_the_whole_pipeline(
    tmp_path: Path, model_cache: Path
) -> None:
    queries, qrels = XQUAD / "queries.jsonl", XQUAD / "qrels" / "test.tsv"
    pipeline = Pipeline(
        tmp_path,
        str(XQUAD / "corpus.jsonl"),
        name="xquad",
        embedder=LocalEmbedder(model_cache=str(model_cache)),
        settings={
            "source": {"fields": {"id": "_id"}},
            "partitions": {"by": "bucket", "count": 2},
            "chunking": {"strategy": "whole"},
            "evaluation": {"queries": str(queries), "qrels": str(qrels), "min_ndcg_at_10": 0.9426},
        },
    )
    result = pipeline.run()
    assert numbers(result, "embeddings")["embedded"] == len(pipeline.rows()) == 240
    assert all(checks(result).values())
    evaluation = pipeline.opened.evaluate(queries, qrels)
    assert evaluation.ndcg_at_10 == pytest.approx(PUBLISHED_NDCG_AT_10, abs=0.001)
