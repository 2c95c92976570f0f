"""Search over HTTP: the hits of the Python API, in one or several collections."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import embedding_assets as ea
from embedding_assets.service.keys import create_key
from resources.limits.quota import Quota
from tests.service.test_embeddings import NOTES, pipeline
from tests.support.fakes import CountingEmbedder
from tests.support.pipeline import Pipeline, write_jsonl
from tests.support.service import RunningService

QUESTION = "The northern lights"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Pipeline]:
    """Two collections with models of their own."""
    folder = tmp_path_factory.mktemp("one")
    first = pipeline(folder, embedder=CountingEmbedder())
    other = tmp_path_factory.mktemp("other")
    second = pipeline(other, name="other", embedder=CountingEmbedder(model="other", dimension=16))
    for one in (first, second):
        one.run()
    return first, second


@pytest.fixture(scope="module")
def running(
    two: tuple[Pipeline, Pipeline], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("service")
    with RunningService(*(one.opened for one in two), folder=folder) as running:
        yield running


@pytest.mark.parametrize("exact", [False, True])
def test_hits_are_those_of_the_python_api(
    running: RunningService, two: tuple[Pipeline, Pipeline], exact: bool
) -> None:
    expected = two[0].opened.search(QUESTION, 4, exact=exact)
    answer = running.post("/collections/corpus/search", query=QUESTION, k=4, exact=exact).json()
    for hit, wanted in zip(answer["hits"], expected, strict=True):
        assert hit["score"] == wanted.score
        assert hit["chunk_id"] == wanted.chunk_id
        assert hit["text"] == wanted.text
        assert hit["span"] == [wanted.span_start, wanted.span_end]
        assert len(hit["text"]) == hit["span"][1] - hit["span"][0]
        assert hit["metadata"] == wanted.metadata
        ((first, last),) = hit["highlight"]
        assert hit["text"][first:last].strip()
    assert answer["fused"] is False
    assert {"total", "embed", "store"} == {*answer["seconds"]}


def test_several_collections_are_asked_in_their_own_spaces_and_ranks_are_fused(
    running: RunningService, two: tuple[Pipeline, Pipeline]
) -> None:
    expected = ea.search(QUESTION, [one.opened for one in two], 6)
    for body in ({}, {"collections": ["corpus", "other"]}):
        answer = running.post("/search", query=QUESTION, k=6, **body).json()
        assert [hit["chunk_id"] for hit in answer["hits"]] == [hit.chunk_id for hit in expected]
        assert {hit["collection"] for hit in answer["hits"]} == {"corpus", "other"}
        assert answer["fused"] is True
        assert {space["model"] for space in answer["spaces"]} == {"fake", "other"}
    only = running.post("/search", query=QUESTION, collections=["other"]).json()
    assert {hit["collection"] for hit in only["hits"]} == {"other"}


def test_a_document_is_shown_as_it_is_in_the_index(running: RunningService) -> None:
    listed = running.client.get("/collections").json()
    assert [(one["name"], one["built"]) for one in listed["collections"]] == [
        ("corpus", True),
        ("other", True),
    ]
    note = NOTES[0]
    shown = running.client.get("/collections/corpus/documents", params={"id": note["id"]}).json()
    assert shown["title"] == note["title"]
    assert shown["chunks"][0]["text"] in note["text"]
    assert [chunk["chunk_number"] for chunk in shown["chunks"]] == [*range(len(shown["chunks"]))]
    missing = running.client.get("/collections/corpus/documents", params={"id": "nobody"})
    assert missing.status_code == 404


def test_a_long_document_is_shown_whole(tmp_path: Path) -> None:
    text = "\n\n".join(f"Paragraph {number} says " + "words " * 150 for number in range(140))
    source = write_jsonl(tmp_path / "long.jsonl", [{"id": "long", "text": text}])
    made = Pipeline(tmp_path, str(source), settings={"partitions": {"by": "bucket", "count": 1}})
    made.run()
    with RunningService(made.opened, folder=tmp_path) as running:
        shown = running.client.get("/collections/corpus/documents?id=long").json()
    chunks = shown["chunks"]
    assert len(chunks) > 128
    assert chunks[0]["span"][0] == 0
    assert chunks[-1]["span"][1] == len(text.strip())


def test_an_index_that_is_dropped_and_built_again_is_answered_from_again(tmp_path: Path) -> None:
    made = pipeline(tmp_path, embedder=CountingEmbedder())
    made.run()
    with RunningService(made.opened, folder=tmp_path) as running:
        ask = "/collections/corpus/search"
        before = running.post(ask, query=QUESTION).json()["hits"]
        made.store.drop_table("corpus", made.embedder.space)
        gone = running.post(ask, query=QUESTION)
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")
        assert "build corpus" in gone.json()["error"]["message"]
        made.run()
        assert running.post(ask, query=QUESTION).json()["hits"] == before


# --- Keys -----------------------------------------------------------------------------------------


def test_a_key_opens_what_its_scopes_say_and_stands_nowhere(
    two: tuple[Pipeline, Pipeline], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RunningService(*(one.opened for one in two), folder=tmp_path) as running:
        pass
    _, narrow = create_key(running.keys, "narrow", ["search:corpus"], Quota(), None)
    _, wide = create_key(running.keys, "wide", ["all"], Quota(requests=3), None)
    with RunningService(*(one.opened for one in two), folder=tmp_path) as running:

        def status(key: str | None, path: str, **body: object) -> int:
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            answer = running.client.post(path, json=body, headers=headers)
            assert key is None or key not in answer.text
            return answer.status_code

        assert status(None, "/embed", text="a") == 401
        assert status("ea_wrong", "/embed", text="a") == 401
        assert status(narrow, "/embed", text="a") == 403
        assert status(narrow, "/collections/corpus/search", query="a") == 200
        assert status(narrow, "/collections/other/search", query="a") == 403
        assert status(narrow, "/search", query="a", collections=["other"]) == 403
        found = running.client.post(
            "/search", json={"query": "a"}, headers={"X-API-Key": narrow}
        ).json()
        assert {hit["collection"] for hit in found["hits"]} == {"corpus"}
        listed = running.client.get("/collections", headers={"X-API-Key": narrow}).json()
        assert [one["name"] for one in listed["collections"]] == ["corpus"]
        assert running.client.get("/metrics", headers={"X-API-Key": narrow}).status_code == 403
        assert running.client.get("/health").status_code == 200
        assert running.client.get("/").status_code == 200
        took = [status(wide, "/embed", text="a", collection="corpus") for _ in range(4)]
        assert took == [200, 200, 200, 429]
        seen = running.client.get("/metrics", headers={"X-API-Key": wide}).text
        seen += running.client.get("/stats", headers={"X-API-Key": wide}).text
    seen += caplog.text + running.keys.read_text()
    for secret in (narrow, wide, narrow.rsplit("_", 1)[-1], wide.rsplit("_", 1)[-1]):
        assert secret not in seen


def test_no_answer_names_a_collection_to_a_key_that_may_not_search_in_it(
    two: tuple[Pipeline, Pipeline], tmp_path: Path
) -> None:
    keys = tmp_path / "api_keys.json"
    scopes = ("search:corpus", "search:gone"), ("search",), ("metrics",)
    narrow, wide, operator = (
        create_key(keys, str(scope), scope, Quota(), None)[1] for scope in scopes
    )
    with RunningService(*(one.opened for one in two), folder=tmp_path) as running:
        running.service.not_loaded.append("other.yaml: bad")

        def answered(key: str | None, path: str, **body: object) -> tuple[int, str]:
            headers = {} if key is None else {"X-API-Key": key}
            method = "POST" if body else "GET"
            answer = running.client.request(method, path, json=body or None, headers=headers)
            return answer.status_code, answer.text

        question = {"query": "a"}
        for path, body in (
            ("/search", question | {"collections": ["gone"]}),
            ("/collections/gone/search", question),
            ("/collections/gone/documents?id=a", {}),
        ):
            status, told = answered(narrow, path, **body)
            assert status == 404
            assert "There are: corpus." in told
            status, told = answered(wide, path, **body)
            assert status == 404
            assert "There are: corpus, other." in told
        # Of what it may not search in, it does not even learn whether that is there.
        for name in ("other", "nobody"):
            told = answered(narrow, "/search", query="a", collections=[name])
            assert told[0] == 403
            assert told == answered(narrow, f"/collections/{name}/search", **question)
        for path in ("/collections", "/v1/models", "/stats", "/metrics", "/ready"):
            assert "other" not in answered(narrow, path)[1], path
        assert answered(narrow, "/v1/models")[0] == 403
        assert answered(None, "/ready") == (200, '{"status":"ready"}')
        assert "other.yaml" in answered(wide, "/collections")[1]
        assert "index other" in answered(operator, "/ready")[1]
