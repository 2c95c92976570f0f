from pathlib import Path

import pytest

from resources.embedders.local import LocalEmbedder
from tests.support.data import XQUAD
from tests.support.pipeline import Pipeline, checks, numbers

PUBLISHED_NDCG_AT_10 = 0.94357
"""all-MiniLM-L6-v2 on XQuAD-en, by the MTEB leaderboard."""


@pytest.mark.slow
def test_xquad_scores_as_published_through_the_whole_pipeline(
    tmp_path: Path, model_cache: Path
) -> None:
    queries, qrels = XQUAD / "queries.jsonl.gz", XQUAD / "qrels.tsv.gz"
    pipeline = Pipeline(
        tmp_path,
        str(XQUAD / "corpus.jsonl.gz"),
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
    (ndcg,) = [
        check.metadata["ndcg_at_10"].value
        for check in result.get_asset_check_evaluations()
        if "ndcg_at_10" in check.metadata
    ]
    assert ndcg == pytest.approx(PUBLISHED_NDCG_AT_10, abs=0.001)
