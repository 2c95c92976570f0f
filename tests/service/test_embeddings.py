"""Vectors over HTTP: those of the pipeline, each computed once, in order, and failures apart."""

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from resources.caches.vectors import hash_array
from resources.embedders.local import LocalEmbedder
from resources.embedders.openai.embedder import OpenAIEmbedder
from resources.identity.content_hash import content_hash, query_hash
from tests.support.fakes import NOT_A_NUMBER, POISON, CountingEmbedder, fake_vector
from tests.support.models import SENTENCES
from tests.support.pipeline import Pipeline, write_jsonl
from tests.support.service import GatedEmbedder, RunningService, wait_until

NOTES = [
    {"id": f"note-{number}", "title": f"Note {number}", "text": text, "date": "2024-03-01"}
    for number, text in enumerate(text for text in SENTENCES if text.strip(" ."))
]


def pipeline(folder: Path, **fields: Any) -> Pipeline:
    source = write_jsonl(folder / "notes.jsonl", NOTES)
    fields = {"settings": {"source": {"fields": {"timestamp": "date"}}}, **fields}
    settings = fields["settings"] | {"partitions": {"by": "year", "start": "2024-01-01"}}
    return Pipeline(folder, str(source), **{**fields, "settings": settings})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Pipeline:
    """A collection with the default model, in fp32."""
    embedder = LocalEmbedder(
        model_cache=str(model_cache), precision="fp32", matryoshka_dimensions=[64, 128]
    )
    made = pipeline(tmp_path_factory.mktemp("built"), embedder=embedder)
    made.run()
    return made


@pytest.fixture(scope="module")
def real(built: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with RunningService(built.opened, folder=tmp_path_factory.mktemp("service")) as running:
        yield running


def vectors(answer: Any) -> np.ndarray:
    return np.array(answer.json()["embeddings"], dtype=np.float32)


def stored(built: Pipeline) -> tuple[list[str], np.ndarray]:
    rows = built.rows()
    texts = [(row["context"] or "") + row["text"] for row in rows]
    return texts, np.array([row["vector"] for row in rows], dtype=np.float32)


def test_what_the_pipeline_has_embedded_is_answered_to_the_bit_and_embeds_nothing(
    real: RunningService, built: Pipeline
) -> None:
    texts, expected = stored(built)
    before = real.metric("tokens_total")
    answer = real.post("/embed/batch", texts=texts)
    assert (vectors(answer) == expected).all()
    assert answer.json()["cached_count"] == answer.json()["count"] == len(texts)
    assert real.metric("tokens_total") == before


def test_what_the_service_embeds_is_what_the_pipeline_would_store(
    real: RunningService, built: Pipeline
) -> None:
    text = "  A text that nobody has\r\nasked for, with cafe\u0301. "
    first = real.post("/embed", text=text).json()
    again = real.post("/embed", text=text).json()
    (expected,) = built.opened.embed([text])
    assert first["cached"] is False
    assert again["cached"] is True
    assert first["embedding"] == again["embedding"]
    assert (np.array(first["embedding"], np.float32) == expected).all()


def test_openais_own_client_gets_the_same_vectors_in_each_form(
    real: RunningService, built: Pipeline
) -> None:
    client = openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0)
    model = client.models.list().data[0].id
    texts = ["one text", "another text"]
    expected = built.opened.embed(texts)

    def embedded(given: Any, **options: Any) -> np.ndarray:
        answer = client.embeddings.create(model=model, input=given, **options)
        assert [one.index for one in answer.data] == list(range(len(answer.data)))
        return np.array([one.embedding for one in answer.data], dtype=np.float32)

    assert (embedded(texts) == expected).all()  # the client asks for base64
    assert (embedded(texts, encoding_format="float") == expected).all()
    assert (embedded(texts[0]) == expected[:1]).all()
    tokenizer = built.embedder.new_tokenizer()
    tokens = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert (embedded(tokens) == expected).all()
    assert (embedded(tokens[0]) == expected[:1]).all()
    assert (embedded(texts, dimensions=384) == expected).all()
    for length in (128, 64):
        cut = expected[:, :length]
        cut = cut / np.linalg.norm(cut.astype(np.float64), axis=1, keepdims=True)
        assert (embedded(texts, dimensions=length) == cut.astype(np.float32)).all()
    usage = client.embeddings.create(model="corpus", input=texts).usage
    assert usage.total_tokens == usage.prompt_tokens == sum(len(one) + 2 for one in tokens)


@pytest.mark.parametrize(
    ("given", "kind", "param"),
    [
        ({"model": "nobody", "input": "a"}, openai.NotFoundError, "model"),
        ({"model": "corpus", "input": "  "}, openai.BadRequestError, "input"),
        ({"model": "corpus", "input": ["a", ""]}, openai.BadRequestError, "input.1"),
        ({"model": "corpus", "input": "a", "dimensions": 10}, openai.BadRequestError, "dimensions"),
        ({"model": "corpus", "input": [10**6]}, openai.BadRequestError, "input"),
        ({"model": "corpus", "input": []}, openai.UnprocessableEntityError, "input"),
    ],
)
def test_openais_client_understands_what_is_wrong(
    real: RunningService, given: dict[str, Any], kind: type[openai.APIStatusError], param: str
) -> None:
    client = openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(kind) as caught:
        client.embeddings.create(**given)
    assert caught.value.param == param
    assert caught.value.code


def test_a_collection_elsewhere_can_embed_through_the_service(
    real: RunningService, built: Pipeline, tmp_path: Path
) -> None:
    embedder = OpenAIEmbedder(
        base_url=f"{real.url}/v1",
        model="corpus",
        dimensions=384,
        rate_limits=str(tmp_path / "limits"),
    )
    # It brings vectors of any server to norm 1, also those that have it but for rounding.
    expected = built.opened.embed(["one text"])
    assert np.abs(embedder.embed(["one text"]).vectors - expected).max() < 1e-7


# --- With an embedder that counts -----------------------------------------------------------------


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[tuple[RunningService, CountingEmbedder]]:
    made = pipeline(tmp_path, embedder=CountingEmbedder())
    with RunningService(made.opened, folder=tmp_path) as running:
        yield running, running.service.collections["corpus"].resources.embedder  # pyright: ignore


def test_order_is_kept_and_a_text_that_fails_says_why_at_its_place(
    counting: tuple[RunningService, CountingEmbedder],
) -> None:
    running, _ = counting
    texts = ["b", POISON, "a", " ", "b", NOT_A_NUMBER, "c"]
    answer = running.post("/embed/batch", texts=texts).json()
    for text, vector in zip(texts, answer["embeddings"], strict=True):
        if text in ("a", "b", "c"):
            assert (np.array(vector, np.float32) == fake_vector(text, 32)).all()
        else:
            assert vector is None
    assert [(one["index"], one["code"]) for one in answer["errors"]] == [
        (1, "embedding_failed"),
        (3, "empty_text"),
        (5, "invalid_vector"),
    ]
    assert answer["count"] == 4
    single = running.post("/embed", text=NOT_A_NUMBER)
    assert (single.status_code, single.json()["error"]["code"]) == (500, "invalid_vector")


def test_texts_that_many_ask_for_at_once_are_embedded_once(tmp_path: Path) -> None:
    embedder = GatedEmbedder()
    made = pipeline(tmp_path, embedder=embedder)
    with RunningService(made.opened, folder=tmp_path) as running, ThreadPoolExecutor(20) as pool:
        embedder.texts.clear()
        gate = embedder.close()
        same = [pool.submit(running.post, "/embed", text="the same") for _ in range(20)]
        wait_until(lambda: gate.calls)
        (server,) = running.service.servers.values()
        wait_until(lambda: sum(len(job.waiting) for job in server._jobs.values()) == 20)
        gate.open.set()
        answers = [one.result().json()["embedding"] for one in same]
    assert embedder.texts == ["the same"]
    assert all(answer == answers[0] for answer in answers)


def test_a_question_and_a_document_of_the_same_words_are_two_texts(
    counting: tuple[RunningService, CountingEmbedder],
) -> None:
    running, embedder = counting
    embedder.texts.clear()
    for role in ("document", "query", "document", "query"):
        assert running.post("/embed", text="words", role=role).status_code == 200
    assert embedder.texts == ["words", "words"]


def test_what_was_embedded_is_in_the_cache_when_the_service_has_stopped(tmp_path: Path) -> None:
    made = pipeline(tmp_path, embedder=CountingEmbedder())
    with RunningService(made.opened, folder=tmp_path) as running:
        running.post("/embed/batch", texts=["one", "two"])
        running.post("/embed", text="three", role="query")
        running.post("/embed", text="one")
    space = made.embedder.space
    keys = [content_hash("one"), content_hash("two"), query_hash("three")]
    found = made.cache.get(space, hash_array(keys))
    assert found.found.all()
    assert (found.vectors[2] == fake_vector("three", 32)).all()
    (statistics,) = made.cache.statistics()
    assert (statistics.hits, statistics.misses) == (1 + 3, 3)  # three were asked for just now


def test_a_cache_that_a_run_has_locked_or_that_is_gone_is_no_reason_to_wait(
    tmp_path: Path,
) -> None:
    made = pipeline(tmp_path, embedder=CountingEmbedder())
    made.opened.embed(["known", "also known"])
    with RunningService(made.opened, folder=tmp_path) as running:
        with made.cache._turn():
            assert running.post("/embed", text="known").json()["cached"] is False
            assert running.client.get("/ready").status_code == 200
        assert running.post("/embed", text="also known").json()["cached"] is True
        Path(made.cache.path).unlink()
        assert running.post("/embed", text="new").json()["cached"] is False
        assert running.post("/embed", text="known").json()["cached"] is True  # from memory
    assert Path(made.cache.path).exists()


def test_what_a_run_embeds_meanwhile_is_known_at_once(tmp_path: Path) -> None:
    made = pipeline(tmp_path, embedder=CountingEmbedder())
    with RunningService(made.opened, folder=tmp_path) as running:
        assert running.post("/embed", text="before").json()["cached"] is False
        made.opened.embed(["embedded by another"])
        assert running.post("/embed", text="embedded by another").json()["cached"] is True


def test_base64_is_little_endian_float32(
    counting: tuple[RunningService, CountingEmbedder],
) -> None:
    running, _ = counting
    answer = running.post("/v1/embeddings", model="corpus", input="a", encoding_format="base64")
    told = np.frombuffer(base64.b64decode(answer.json()["data"][0]["embedding"]), "<f4")
    assert (told == fake_vector("a", 32)).all()
