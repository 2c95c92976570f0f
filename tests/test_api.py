"""The Python API, with the real model and real stores."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from dagster._core.test_utils import freeze_time

import embedding_assets as ea
from embedding_assets.retrieval.hits import Hits
from resources.embedders.local import LocalEmbedder
from resources.errors import InvalidInputError, NotFoundError
from resources.vector_stores.base import SearchHit
from tests.support.pipeline import Pipeline, write_jsonl

RECORDS = [
    {"id": "hours", "title": "Opening hours", "text": "We are open from nine to five.", "floor": 2},
    {"id": "lending", "title": "Lending", "text": "Books are lent for four weeks.", "floor": 1},
    {"id": "cats", "title": "Cats", "text": "A cat sleeps for most of the day.", "floor": 1},
]
BUCKETS = ("bucket_0", "bucket_1")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Pipeline:
    folder = tmp_path_factory.mktemp("library")
    queries = write_jsonl(folder / "q.jsonl", [{"_id": "1", "text": "How long may I keep a book?"}])
    (folder / "qrels.tsv").write_text("1\tlending\t1\n")
    pipeline = Pipeline(
        folder,
        str(write_jsonl(folder / "library.jsonl", RECORDS)),
        embedder=LocalEmbedder(model_cache=str(model_cache), device="cpu", precision="fp32"),
        settings={
            "partitions": {"by": "bucket", "count": 2},
            "evaluation": {"queries": str(queries), "qrels": str(folder / "qrels.tsv")},
        },
    )
    pipeline.run()
    return pipeline


@pytest.fixture
def library(pipeline: Pipeline) -> ea.Collection:
    return ea.Collection(pipeline.opened.settings, pipeline.opened.resources)


def test_a_search_gives_frozen_hits_best_first(library: ea.Collection) -> None:
    hits = library.search("When do you close?", k=2)
    assert isinstance(hits, Hits)
    assert [len(hits), len(hits[:1]), len(library.search("cat"))] == [2, 1, 3]
    assert hits[0].document_id == "hours"
    assert hits[0].score > hits[1].score
    assert hits[0].text == "We are open from nine to five."
    assert hits[0].metadata == {"floor": 2}
    assert hits.spaces == (library.resources.embedder.space,)
    assert "hours" in repr(hits)
    with pytest.raises(FrozenInstanceError):
        hits[0].score = 1.0  # pyright: ignore[reportAttributeAccessIssue]


def test_hits_become_an_arrow_table_with_a_column_for_each_field(library: ea.Collection) -> None:
    hits = library.search("cats", k=2)
    table = hits.to_arrow()
    assert table.column_names == list(SearchHit.__dataclass_fields__)
    assert table["document_id"].to_pylist() == [hit.document_id for hit in hits]
    assert [json.loads(text) for text in table["metadata"].to_pylist()] == [
        hit.metadata for hit in hits
    ]
    assert hits[:0].to_arrow().schema == table.schema


def test_hits_become_a_pandas_frame(library: ea.Collection) -> None:
    pytest.importorskip("pandas")
    hits = library.search("cats", k=2)
    frame = hits.to_pandas()
    assert list(frame.columns) == list(SearchHit.__dataclass_fields__)
    assert list(frame["score"]) == [hit.score for hit in hits]
    assert list(frame["metadata"]) == [{"floor": 1}, hits[1].metadata]


def test_without_pandas_the_error_says_what_to_install(
    library: ea.Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ea.EmbeddingAssetsError, match=r"pip install 'embedding-assets\[pandas\]'"):
        library.search("cats").to_pandas()


def test_a_text_has_the_vector_that_the_pipeline_stored_for_it(
    library: ea.Collection, pipeline: Pipeline
) -> None:
    rows = pipeline.rows()
    vectors = library.embed([row["context"] + row["text"] for row in rows])
    np.testing.assert_array_equal(vectors, [row["vector"] for row in rows])
    assert vectors.dtype == np.float32


def test_queries_are_embedded_once_and_equal_texts_have_equal_vectors(
    library: ea.Collection,
) -> None:
    first = library.embed(["purring", "barking", "purring "], role="query")
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(library.embed(["barking"], role="query"), first[1:2])
    assert np.abs(np.linalg.norm(first, axis=1) - 1).max() < 1e-3
    assert library.embed([]).shape == (0, first.shape[1])


def test_documents_are_streamed_with_their_partition(library: ea.Collection) -> None:
    assert library.partitions == BUCKETS
    everything = library.documents().read_all().to_pylist()
    assert sorted(one["id"] for one in everything) == ["cats", "hours", "lending"]
    assert {one["id"]: json.loads(one["metadata"])["floor"] for one in everything}["hours"] == 2
    for asked in (BUCKETS[0], BUCKETS[:1], "bucket_0...bucket_0"):
        some = library.documents(asked).read_all().to_pylist()
        assert some == [one for one in everything if one["partition"] == BUCKETS[0]]
    assert library.documents("bucket_0...bucket_1").read_all().to_pylist() == everything


def test_partitions_that_do_not_exist_are_refused_with_a_sentence(library: ea.Collection) -> None:
    for asked in ("bucket_9", "bucket_0...", ["bucket_1", "bucket_9"]):
        with pytest.raises(NotFoundError, match="they run from bucket_0 to bucket_1"):
            library.documents(asked)
    with pytest.raises(InvalidInputError, match="ends before it begins"):
        library.documents("bucket_1...bucket_0")


def test_a_handle_that_is_kept_knows_partitions_that_began_since(library: ea.Collection) -> None:
    settings = ea.CollectionSettings.model_validate(
        {
            "name": "days",
            "source": {"path": "x", "fields": {"timestamp": "created"}},
            "partitions": {"by": "day", "start": "2024-01-01"},
        }
    )
    kept = ea.Collection(settings, library.resources)
    days = {day: datetime(2024, 1, day, tzinfo=timezone.utc) for day in (1, 2)}
    with freeze_time(days[1]):
        assert kept.partitions == ("2024-01-01",)
    with freeze_time(days[2]):
        assert kept.partitions == ("2024-01-01", "2024-01-02")


def test_a_plan_counts_what_the_next_run_would_embed(
    library: ea.Collection, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    assert library.plan().texts == 0
    new = {"id": "dogs", "text": "Dogs are welcome."}
    write_jsonl(Path(pipeline.source), [*RECORDS, new])
    try:
        assert library.plan().texts == 1
        assert list(library.plan(["bucket_1"]).partitions) == ["bucket_1"]
    finally:
        write_jsonl(Path(pipeline.source), RECORDS)


def test_quality_is_measured_with_the_judgements_of_the_collection_or_with_others(
    library: ea.Collection, tmp_path: Path
) -> None:
    assert library.evaluate().ndcg_at_10 == 1.0
    (tmp_path / "none.tsv").write_text("1\tnowhere\t1\n")
    assert library.evaluate(qrels=tmp_path / "none.tsv").recall_at_10 == 0.0


def test_mistakes_are_errors_of_one_kind_that_say_what_to_do(
    library: ea.Collection, tmp_path: Path
) -> None:
    with pytest.raises(ea.EmbeddingAssetsError, match="they run from bucket_0 to bucket_1"):
        library.plan("bucket_9")
    with pytest.raises(ea.EmbeddingAssetsError, match="text to search for is empty"):
        library.search(" ")
    with pytest.raises(ea.EmbeddingAssetsError, match="at least 1, got 0"):
        library.search("cats", k=0)
    with pytest.raises(ea.EmbeddingAssetsError, match="takes a list of texts"):
        library.embed("cats")
    with pytest.raises(ea.EmbeddingAssetsError, match=r"Collections: .*peps"):
        ea.open("nowhere")
    empty = Pipeline(tmp_path, str(tmp_path / "none.jsonl"), embedder=library.resources.embedder)
    with pytest.raises(ea.EmbeddingAssetsError, match="embedding-assets build corpus"):
        empty.opened.search("hello")
    with pytest.raises(ea.EmbeddingAssetsError, match="embedding-assets build corpus"):
        empty.opened.documents()
    with pytest.raises(ea.EmbeddingAssetsError, match="has no 'evaluation' in its YAML"):
        empty.opened.evaluate()


def test_a_collection_of_the_project_is_opened_by_name() -> None:
    assert "peps" in ea.collections()
    peps = ea.open("peps")
    assert (peps.name, peps.partitions[0]) == ("peps", "2000")


def test_everything_public_is_there_and_nothing_is_loaded_before_it_is_used() -> None:
    for name in ea.__all__:
        assert getattr(ea, name).__module__.startswith(("embedding_assets.", "resources."))
        assert name in dir(ea)
    program = (
        "import sys, embedding_assets\n"
        "print([m for m in ('dagster', 'pyarrow', 'numpy', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
