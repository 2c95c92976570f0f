"""Search in several indexes at once, hits by document, and what stands around a hit."""

from pathlib import Path

import pytest

import embedding_assets as ea
from embedding_assets.retrieval.search import IndexReader, search_indexes
from resources.errors import InvalidInputError, NotFoundError
from tests.support.fakes import CountingEmbedder
from tests.support.pipeline import Pipeline, write_jsonl

SETTINGS = {
    "partitions": {"by": "bucket", "count": 1},
    "chunking": {"max_tokens": 16, "overlap": 4, "context": "none"},
}
LONG = " ".join(f"Sentence number {n} is here." for n in range(12))


def built(folder: Path, name: str, texts: dict[str, str], model: str = "fake") -> ea.Collection:
    records = [{"id": key, "text": text} for key, text in texts.items()]
    source = str(write_jsonl(folder / f"{name}.jsonl", records))
    pipeline = Pipeline(folder, source, name, CountingEmbedder(model=model), dict(SETTINGS))
    assert pipeline.run().success
    return pipeline.opened


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[ea.Collection]:
    """Two collections with the same model, and one with another."""
    folder = tmp_path_factory.mktemp("three")
    return [
        built(folder, "zoo", {"a": "Cats purr.", "b": "Dogs bark."}),
        built(folder, "farm", {"a": "Cows moo.", "c": "Cats purr."}),
        built(folder, "sea", {"a": "Cats purr.", "d": LONG}, model="another"),
    ]


def test_scores_of_one_model_are_compared_across_collections(three: list[ea.Collection]) -> None:
    zoo, farm, _ = three
    hits = ea.search("Dogs bark.", [zoo, farm], k=3)
    assert [hit.collection for hit in hits[:1]] == ["zoo"]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    alone = [*zoo.search("Dogs bark.", 3), *farm.search("Dogs bark.", 3)]
    best = sorted((hit.score for hit in alone), reverse=True)[:3]
    assert [hit.score for hit in hits] == best
    assert hits.collections == ("zoo", "farm")
    assert len(hits.spaces) == 1
    same = ea.search("Cats purr.", [zoo, farm], k=2)
    assert {(hit.collection, hit.document_id) for hit in same} == {("zoo", "a"), ("farm", "c")}
    assert len(same.by_document()) == 2, "documents of two collections are two"


def test_ranks_of_different_models_are_fused(three: list[ea.Collection]) -> None:
    hits = ea.search("Cats purr.", three, k=4)
    assert len(hits.spaces) == 2
    # The first of each model stand before the second of any.
    assert {hit.collection for hit in hits[:2]} in ({"zoo", "sea"}, {"farm", "sea"})
    assert [hit.score > 0.999 for hit in hits] == [True, True, True, False]


def test_a_question_for_several_collections_is_embedded_once_for_each_model(
    three: list[ea.Collection],
) -> None:
    texts = [one.resources.embedder.texts for one in three]  # pyright: ignore
    before = [len(one) for one in texts]
    ea.search("never asked before", three)
    assert [len(one) for one in texts] == [before[0] + 1, before[1], before[2] + 1]


def test_mistakes_are_told_before_anything_is_asked(three: list[ea.Collection]) -> None:
    with pytest.raises(InvalidInputError, match="is empty"):
        ea.search(" \n", three)
    with pytest.raises(InvalidInputError, match="at least 1"):
        search_indexes([three[0].index], "x", 0)
    unbuilt = IndexReader("nobody", three[0].resources)
    assert not unbuilt.is_built
    assert three[0].index.is_built
    with pytest.raises(NotFoundError, match="'nobody' has no index"):
        search_indexes([three[0].index, unbuilt], "x", 1)


@pytest.mark.parametrize("chunks", [0, 1, 3, 99])
def test_the_text_around_a_hit_is_that_of_the_document(
    three: list[ea.Collection], chunks: int
) -> None:
    sea = three[2]
    hits = [hit for hit in sea.search(LONG, 50) if hit.document_id == "d"]
    by_number = {hit.chunk_number: hit for hit in hits}
    assert len(by_number) > 6
    hit = by_number[3]
    around = sea.neighbours(hit, chunks)
    first, last = by_number[max(0, 3 - chunks)], by_number[min(len(by_number) - 1, 3 + chunks)]
    assert around == LONG[first.span_start : last.span_end]


def test_documents_stand_once_and_references_are_not_shown_first(tmp_path: Path) -> None:
    references = "References\n\n[1] https://example.org/one-two\n[2] https://example.org/two"
    one = built(
        tmp_path, "papers", {"p": f"{references}\n\nThe lamp is lit.", "q": "A ship passes by."}
    )
    chunks = {hit.text: hit for hit in one.search("anything", 50)}
    (apparatus,) = (text for text in chunks if text.startswith("References"))
    hits = one.search(apparatus, 50)
    assert hits[0].text == apparatus
    found = {document.best.document_id: document for document in hits.by_document()}
    assert {*found} == {"p", "q"}
    assert found["p"].best.text == "The lamp is lit."
    assert {hit.text for hit in found["p"].passages} == {*chunks} - {"A ship passes by."}
    assert one.search(apparatus, 1).by_document()[0].best.text == apparatus
