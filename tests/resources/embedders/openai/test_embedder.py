"""The embedder of OpenAI-compatible servers against a real server that misbehaves on purpose."""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from pydantic import ValidationError

from embedding_assets.collection.resources import collection_resources
from embedding_assets.collection.settings import CollectionSettings
from embedding_assets.embeddings.stream import embed_each, embed_stream
from resources.embedders.base import Embedder
from resources.embedders.local import LocalEmbedder
from resources.embedders.openai.embedder import OpenAIEmbedder
from resources.embedders.openai.token_estimate import estimating_tokenizer
from resources.embedders.pricing import Budget
from resources.errors import (
    BudgetError,
    CredentialsError,
    EmbedderUnavailableError,
    EmbeddingError,
    ModelError,
    SettingsError,
)
from resources.limits.concurrency import AdaptiveConcurrency
from tests.support.forks import FORKS
from tests.support.instance import shipped_instance
from tests.support.openai_server import (
    KEY,
    MODEL,
    Answer,
    OpenAIServer,
    Request,
    Step,
    as_text,
    assert_right,
    embedder,
    error,
    tokens,
)
from tests.support.pipeline import Pipeline, checks, numbers, write_jsonl

TEXTS = ["The first text.", "A second one.", "A third, with more words.", "The last."]
BAD = "this text is refused"


# --- Faults that pass: right vectors, and exactly so many requests --------------------------------


def _changed(server: OpenAIServer, **changes: Any) -> Step:
    return lambda request: Answer(body=server.content(request, **changes))


def _data(server: OpenAIServer, change: Callable[[list[Any]], Any]) -> Step:
    def step(request: Request) -> Answer:
        content = server.content(request)
        return Answer(body={**content, "data": change(content["data"])})

    return step


def _vector(server: OpenAIServer, row: int, value: Any) -> Step:
    def change(data: list[Any]) -> list[Any]:
        data[row]["embedding"] = value
        return data

    return _data(server, change)


def _half_body(server: OpenAIServer) -> Step:
    return lambda request: Answer(body=server.content(request), cut=100)


def _floats(server: OpenAIServer) -> Step:
    def step(request: Request) -> Answer:
        request.body["encoding_format"] = "float"
        return server.embeddings(request)

    return step


_HTML = b"<html><body>502 Bad Gateway</body></html>"

PASSING: dict[str, tuple[Callable[[OpenAIServer], list[Step]], int]] = {
    "none": (lambda _: [], 1),
    "429 with retry-after": (lambda _: [error(429, headers={"Retry-After": "0.1"})], 2),
    "429 with retry-after-ms": (lambda _: [error(429, headers={"retry-after-ms": "50"})], 2),
    "429 with a reset header": (
        lambda _: [error(429, headers={"x-ratelimit-reset-requests": "80ms"})],
        2,
    ),
    "429 without a hint, twice": (lambda _: [error(429), error(429)], 3),
    "500": (lambda _: [error(500)], 2),
    "503 with retry-after": (lambda _: [error(503, headers={"Retry-After": "0.1"})], 2),
    "502 with HTML": (lambda _: [lambda _: Answer(502, _HTML)], 2),
    "529, three times": (lambda _: [error(529)] * 3, 4),
    "408": (lambda _: [error(408)], 2),
    "reset": (lambda _: [lambda _: Answer(reset=True)], 2),
    "half a body": (lambda server: [_half_body(server)], 2),
    "no body": (lambda _: [lambda _: Answer(200, b"")], 2),
    "broken JSON": (lambda _: [lambda _: Answer(200, b'{"data": [{"embed')], 2),
    "JSON, but a list": (lambda _: [lambda _: Answer(200, [1, 2])], 2),
    "JSON without data": (lambda server: [_changed(server, data=None)], 2),
    "data that is no vectors": (lambda server: [_vector(server, 1, {"a": 1})], 2),
    "text that is no base64": (lambda server: [_vector(server, 1, "%%%%")], 2),
    "fewer vectors": (lambda server: [_data(server, lambda data: data[:-1])], 2),
    "more vectors": (lambda server: [_data(server, lambda data: [*data, data[0]])], 2),
    "an index twice": (lambda server: [_data(server, lambda data: [data[0], *data[:-1]])], 2),
    "reordered": (lambda server: [_data(server, lambda data: data[::-1])], 1),
    "floats instead of base64": (lambda server: [_floats(server)], 1),
    "no usage": (lambda server: [_changed(server, usage=None)], 1),
    "no model": (lambda server: [_changed(server, model=None)], 1),
    "a version of the model": (lambda server: [_changed(server, model=f"{MODEL}-v2")], 1),
    "an error inside a 200": (
        lambda _: [lambda _: Answer(200, {"error": {"message": "overloaded", "code": 503}})],
        2,
    ),
    "a rate limit inside a 200": (
        lambda _: [lambda _: Answer(200, {"error": {"code": "rate_limit_exceeded"}})],
        2,
    ),
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_ends_in_the_right_vectors_with_exactly_so_many_requests(
    fault: str, server: OpenAIServer, tmp_path: Path
) -> None:
    script, requests = PASSING[fault]
    server.script = script(server)
    batch, errors = embed_each(embedder(server, tmp_path), TEXTS)
    assert errors == [None] * len(TEXTS)
    assert_right(batch.vectors, TEXTS)
    assert len(server.requests) == requests
    assert all(request.texts == TEXTS for request in server.requests)
    if fault != "no usage":
        assert batch.tokens.sum() == tokens(server.requests[-1])


# --- Faults that stay: one request, and a sentence ------------------------------------------------

STOPPING: dict[str, tuple[Callable[[OpenAIServer], Step], type[EmbeddingError], str]] = {
    "quota": (
        lambda _: error(429, code="insufficient_quota"),
        EmbedderUnavailableError,
        "quota is used up",
    ),
    "quota inside a 200": (
        lambda _: lambda _: Answer(200, {"error": {"type": "insufficient_quota"}}),
        EmbedderUnavailableError,
        "quota is used up",
    ),
    "HTML with 200": (lambda _: lambda _: Answer(200, _HTML), SettingsError, "Is base_url right"),
    "401": (lambda _: error(401, f"Incorrect API key: {KEY}"), CredentialsError, "PLANTED_KEY"),
    "403": (lambda _: error(403), CredentialsError, "does not accept the key"),
    "404": (lambda _: error(404, code="model_not_found"), ModelError, "does not know this model"),
    "400 for a setting": (
        lambda _: error(400, param="user"),
        SettingsError,
        "does not accept 'user'",
    ),
    "wrong model": (
        lambda server: _changed(server, model="text-embedding-3-large"),
        ModelError,
        "answers with 'text-embedding-3-large'",
    ),
    "wrong dimension": (
        lambda server: _vector(server, 2, as_text(np.ones(8))),
        ModelError,
        "Expected vectors of 16 numbers, but the server answers with 8",
    ),
    "a wait longer than max_wait": (
        lambda _: error(429, headers={"Retry-After": "86400"}),
        EmbedderUnavailableError,
        "asks to wait 86,400 s",
    ),
}


@pytest.mark.parametrize("fault", STOPPING)
def test_a_lasting_fault_stops_after_one_request_with_a_plain_sentence(
    fault: str, server: OpenAIServer, tmp_path: Path
) -> None:
    always, kind, sentence = STOPPING[fault]
    server.always = always(server)
    with pytest.raises(kind, match=sentence) as caught:
        embed_each(embedder(server, tmp_path), TEXTS)
    assert not caught.value.blames_text
    assert len(server.requests) == 1
    assert_no_key_in(caught.value)


def assert_no_key_in(error: BaseException | None) -> None:
    """Neither in its text nor in what hangs on it."""
    while error is not None:
        assert KEY not in repr(error) + str(error) + repr(vars(error))
        assert "request" not in vars(error), "the client's errors hold the key in their headers"
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("key", ["data", "index", "a"])
def test_a_key_that_occurs_in_an_answer_spoils_no_vectors(
    key: str, server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_KEY", key)  # servers on one's own machine take any
    assert_right(embedder(server, tmp_path).embed(TEXTS).vectors, TEXTS)
    assert len(server.requests) == 1


@pytest.mark.parametrize("body", [KEY, {"error": {"message": [KEY]}}, {"model": KEY}, [KEY]])
def test_an_answer_that_repeats_the_key_does_not_show_it(
    body: Any, server: OpenAIServer, tmp_path: Path
) -> None:
    server.always = lambda _: Answer(body=body if isinstance(body, dict | list) else body.encode())
    with pytest.raises(EmbeddingError, match=r"\*\*\*") as caught:
        embed_each(embedder(server, tmp_path, max_wait=0.0), TEXTS)
    assert_no_key_in(caught.value)


def test_a_server_that_stays_down_is_given_up_after_max_wait(tmp_path: Path) -> None:
    with OpenAIServer() as gone:
        url = gone.url
    with pytest.raises(EmbedderUnavailableError, match="Given up after max_wait") as caught:
        embed_each(embedder(url, tmp_path, max_wait=0.2), TEXTS)
    assert_no_key_in(caught.value)


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_says_at_once_again_and_again_is_asked_ever_less_often(
    status: int, server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda _, longest: longest)
    server.always = error(status, headers={"x-ratelimit-reset-requests": "1ms"})
    with pytest.raises(EmbeddingError, match="Given up after max_wait"):
        embedder(server, tmp_path, max_wait=1.0).embed(TEXTS)
    assert len(server.requests) <= 7, "at once, after 0.02 s, 0.04 s, ... 0.32 s"


@pytest.mark.parametrize("status", [429, 503])
def test_a_caller_that_leaves_does_not_wait_for_a_server_that_is_down(
    status: int, server: OpenAIServer, tmp_path: Path
) -> None:
    failed = threading.Event()

    def fails(request: Request) -> Answer:
        failed.set()
        return error(status, headers={"Retry-After": "600"})(request)

    server.script, server.always = [server.embeddings], fails
    ours = embedder(server, tmp_path, max_wait=6000.0, max_concurrency=3)
    stream = embed_stream(ours, iter([["a"], ["b"], ["c"], ["d"], ["e"]]), list)
    assert isinstance(stream, Generator)
    assert next(stream).errors == [None]
    assert failed.wait(60)
    leaving = threading.Thread(target=stream.close, daemon=True)
    leaving.start()
    leaving.join(60)
    assert not leaving.is_alive()
    server.always = server.embeddings
    if status == 503:  # a pause is for all
        assert_right(ours.embed(TEXTS).vectors, TEXTS)


def test_without_a_key_nothing_is_sent(
    server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PLANTED_KEY")
    with pytest.raises(CredentialsError, match="PLANTED_KEY is not set"):
        embed_each(embedder(server, tmp_path), TEXTS)
    assert not server.requests


def test_the_key_of_openai_goes_to_no_other_server(
    server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    embedder(server, tmp_path, api_key_env=None).embed(TEXTS)
    assert KEY not in str(server.requests[0].headers)
    embedder(server, tmp_path, api_key_env="OPENAI_API_KEY").embed(TEXTS)
    assert KEY in server.requests[1].headers["authorization"]


# --- Texts at fault -------------------------------------------------------------------------------


def refusing(server: OpenAIServer, status: int = 400) -> Step:
    def step(request: Request) -> Answer:
        if any(BAD in text for text in request.texts):
            return error(status, "maximum context length is 8192 tokens")(request)
        return server.embeddings(request)

    return step


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_batch_is_halved_until_the_bad_text_is_alone(
    status: int, server: OpenAIServer, tmp_path: Path
) -> None:
    server.always = refusing(server, status)
    texts = [*TEXTS[:2], BAD, TEXTS[3]]
    batch, errors = embed_each(embedder(server, tmp_path), texts)
    assert_right(batch.vectors[[0, 1, 3]], [texts[0], texts[1], texts[3]])
    assert [e is None for e in errors] == [True, True, False, True]
    assert errors[2] is not None
    assert errors[2][0] == "embedding_failed"
    assert "maximum context length" in errors[2][1]
    # All four, the first two, the last two, the bad one, a harmless one, the last one.
    assert [len(request.texts) for request in server.requests] == [4, 2, 2, 1, 1, 1]


def test_a_text_whose_vector_never_comes_is_quarantined(
    server: OpenAIServer, tmp_path: Path
) -> None:
    def forgets(request: Request) -> Answer:
        content = server.content(request)
        kept = [entry for entry in content["data"] if BAD not in request.texts[entry["index"]]]
        return Answer(body={**content, "data": kept})

    server.always = forgets
    batch, errors = embed_each(embedder(server, tmp_path), [TEXTS[0], BAD])
    assert_right(batch.vectors[:1], TEXTS[:1])
    assert errors[0] is None
    assert errors[1] is not None
    assert "Sent 1 texts, but 0 vectors came back" in errors[1][1]
    # An incomplete answer is asked for three times; then each text alone, and a harmless one.
    assert [len(request.texts) for request in server.requests] == [2, 2, 2, 1, 1, 1]


@pytest.mark.parametrize(
    "value",
    [
        as_text(np.full(16, np.nan)),
        as_text(np.full(16, np.inf)),
        as_text(np.zeros(16)),
        [float("nan")] * 16,
        [None] * 16,
        [1e300] * 16,
    ],
    ids=["NaN", "infinity", "zero", "NaN literal", "null", "too large"],
)
def test_a_vector_that_is_none_is_quarantined_and_the_others_are_kept(
    value: Any, server: OpenAIServer, tmp_path: Path
) -> None:
    server.script = [_vector(server, 1, value)]
    batch, errors = embed_each(embedder(server, tmp_path), TEXTS)
    assert [e and e[0] for e in errors] == [None, "invalid_vector", None, None]
    assert_right(batch.vectors[[0, 2, 3]], [TEXTS[0], *TEXTS[2:]])
    assert len(server.requests) == 1


def test_a_text_over_the_limit_is_cut_and_the_cut_tokens_are_counted(
    server: OpenAIServer, tmp_path: Path
) -> None:
    long = "word " * 100
    batch = embedder(server, tmp_path, max_input_tokens=20).embed([long, "short"])
    sent = server.requests[0].texts
    assert len(sent[0].split()) <= 20
    assert long.startswith(sent[0])
    assert sent[1] == "short"
    assert batch.truncated_tokens[0] >= 80
    assert batch.truncated_tokens[1] == 0


# --- Requests -------------------------------------------------------------------------------------


def test_batches_are_within_the_limits_of_a_request_and_each_is_one(
    server: OpenAIServer, tmp_path: Path
) -> None:
    ours = embedder(server, tmp_path, max_request_inputs=7, max_request_tokens=60)
    texts = [f"text number {i} " + "and more " * (i % 9) for i in range(60)]
    slices = ours.batches(texts)
    assert [i for part in slices for i in range(part.start, part.stop)] == list(range(60))
    tokenizer = estimating_tokenizer()
    counts = [len(encoding) for encoding in tokenizer.encode_batch(texts)]
    assert all(part.stop - part.start <= 7 and sum(counts[part]) <= 60 for part in slices)
    for part, following in pairwise(slices):
        full = part.stop - part.start == 7
        assert full or sum(counts[part]) + counts[following.start] > 60
    for part in slices:
        assert_right(ours.embed(texts[part]).vectors, texts[part])
    assert len(server.requests) == len(slices)
    assert embedder(server, tmp_path).batches(texts) == [slice(0, 60)]
    assert embedder(server, tmp_path).batches([]) == []


def test_the_request_is_what_openai_documents(server: OpenAIServer, tmp_path: Path) -> None:
    embedder(server, tmp_path).embed(TEXTS)
    other = embedder(server, tmp_path, model="nomic-embed-text", query_prompt="search: ")
    other.embed(["What?"], role="query")
    first, second = server.requests
    assert first.body == {
        "input": TEXTS,
        "model": MODEL,
        "dimensions": 16,
        "encoding_format": "base64",
    }
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert second.body == {
        "input": ["search: What?"],
        "model": "nomic-embed-text",
        "dimensions": 16,
        "encoding_format": "base64",
    }


def test_spaces_differ_by_everything_that_changes_vectors(tmp_path: Path) -> None:
    variants: list[dict[str, Any]] = [
        {"base_url": "https://api.openai.com/v1"},
        {"base_url": "https://api.openai.com/v1", "model": "text-embedding-3-large"},
        {"base_url": "https://api.openai.com/v1", "dimensions": 32},
        {},
        {"base_url": "http://127.0.0.1:2/v1"},
        {"server_name": "ours"},
        {"document_prompt": "passage: "},
        {"query_prompt": "query: "},
        {"max_input_tokens": 512},
        {"answers_as": "other"},
    ]
    base = "http://127.0.0.1:1/v1"
    ids = [embedder(base, tmp_path, **variant).space.id for variant in variants]
    assert len(set(ids)) == len(variants)
    moved = embedder("http://127.0.0.1:3/v1", tmp_path, server_name="ours")
    assert moved.space.id == ids[5]
    assert embedder(base, tmp_path, max_concurrency=2, timeout=1.0).space.id == ids[3]


# --- Limits and money -----------------------------------------------------------------------------


def test_after_a_429_every_embedder_with_the_key_waits_as_long_as_the_server_says(
    server: OpenAIServer, tmp_path: Path
) -> None:
    refused = threading.Event()

    def refuse(request: Request) -> Answer:
        refused.set()
        return error(429, headers={"Retry-After": "0.8"})(request)

    server.script = [refuse]
    one = threading.Thread(target=lambda: embedder(server, tmp_path).embed(["one"]))
    one.start()
    refused.wait(10)
    others = embedder(server, tmp_path)
    limiter = others._requests._limiter
    deadline = time.monotonic() + 10
    while not limiter.paused:  # until the answer has arrived there
        assert time.monotonic() < deadline, "the pause is not shared"
        time.sleep(0.005)
    others.embed(["two"])
    one.join(10)
    first, *later = server.requests
    assert sorted(request.texts[0] for request in later) == ["one", "two"]
    assert all(request.time - first.time >= 0.8 for request in later)


def test_limits_are_learned_from_headers_and_kept(server: OpenAIServer, tmp_path: Path) -> None:
    def tells(request: Request) -> Answer:
        headers = {
            "x-ratelimit-limit-requests": "2",
            "x-ratelimit-remaining-requests": "1",
            "x-ratelimit-limit-tokens": "400",
            "x-ratelimit-remaining-tokens": "390",
        }
        return Answer(body=server.content(request), headers=headers)

    server.always = tells
    ours = embedder(server, tmp_path, rate_limit_window=1.0)
    for text in "abcd":
        ours.embed([text])
    times = [request.time for request in server.requests]
    assert all(times[i + 2] - times[i] >= 1.0 for i in range(2))
    assert "2 requests, 400 tokens" in ours.describe()
    assert len(ours.batches(["some words of a text"] * 8)) > 1, "packed for the limit"
    assert ours.statistics()["seconds_rate_limited"] >= 0.5
    assert 0 < ours.statistics()["rate_limit_utilisation"] <= 1


def test_what_the_first_answer_tells_holds_for_the_next_request(
    server: OpenAIServer, tmp_path: Path
) -> None:
    told = {"x-ratelimit-limit-tokens": "1000"}
    server.script = [lambda request: Answer(body=server.content(request), headers=told)]
    ours = embedder(server, tmp_path, rate_limit_window=0.2)
    ours.embed(TEXTS)
    texts = [f"Text {number} of more than the limit." for number in range(200)]
    assert_right(ours.embed(texts).vectors, texts)
    assert len(ours.batches(texts)) > 20, "each takes 5 % of the limit"


def test_tokens_that_others_use_up_are_not_ours(server: OpenAIServer, tmp_path: Path) -> None:
    def nothing_left(request: Request) -> Answer:
        headers = {"x-ratelimit-limit-tokens": "1000", "x-ratelimit-remaining-tokens": "0"}
        return Answer(body=server.content(request), headers=headers)

    server.script = [nothing_left]
    ours = embedder(server, tmp_path, rate_limit_window=0.6)
    ours.embed(["one"])
    ours.embed(["two"])
    assert server.requests[1].time - server.requests[0].time >= 0.6


def test_a_request_larger_than_the_limit_is_an_error_and_no_endless_wait(
    server: OpenAIServer, tmp_path: Path
) -> None:
    ours = embedder(server, tmp_path, tokens_per_minute=3)
    with pytest.raises(SettingsError, match="Raise tokens_per_minute") as caught:
        ours.embed(["a text of more than three tokens"])
    assert not caught.value.blames_text
    assert not server.requests


@pytest.fixture
def price(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """A price table of the user's own: a dollar a token."""
    (tmp_path / "prices.yaml").write_text(f"{MODEL}: 1000000\n")
    monkeypatch.setenv("EMBEDDING_PRICES", str(tmp_path / "prices.yaml"))
    return 1.0


def test_prices_come_from_the_file_that_the_user_names(
    server: OpenAIServer, tmp_path: Path, price: float
) -> None:
    ours = embedder(server, tmp_path)
    assert ours.price.dollars(12) == 12 * price
    ours.embed(TEXTS)
    assert ours.statistics()["dollars"] == tokens(server.requests[0]) * price
    assert embedder(server, tmp_path, model="unknown").price.dollars(12) == 0


def test_the_shipped_prices_are_dollars_for_a_million_tokens(tmp_path: Path) -> None:
    ours = embedder("http://127.0.0.1:1/v1", tmp_path)
    assert ours.price.dollars(1_000_000) == pytest.approx(0.02)


@pytest.mark.parametrize("table", ["{", "- 1", "a: cheap", "a: -1", "a: .nan", "a: true"])
def test_a_wrong_price_table_is_named(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text(table)
    monkeypatch.setenv("EMBEDDING_PRICES", str(tmp_path / "mine.yaml"))
    with pytest.raises(SettingsError, match=r"mine\.yaml"):
        embedder("http://127.0.0.1:1/v1", tmp_path).price.dollars(1)


def test_the_budget_stops_before_it_would_be_exceeded(
    server: OpenAIServer, tmp_path: Path, price: float
) -> None:
    ours = embedder(server, tmp_path, max_dollars=10.0)

    def embed_much() -> None:
        for _ in range(20):
            ours.embed(["two words"])

    with pytest.raises(BudgetError, match="max_dollars") as caught:
        embed_much()
    assert not caught.value.blames_text
    spent = sum(map(tokens, server.requests)) * price
    assert 8 <= spent <= 10


def test_a_refused_request_costs_nothing_and_a_lost_answer_its_estimate(
    server: OpenAIServer, tmp_path: Path, price: float
) -> None:
    server.script = [error(500), _half_body(server)]
    ours = embedder(server, tmp_path)
    ours.embed(["one two three"])
    estimate = len(estimating_tokenizer().encode("one two three"))
    assert ours.statistics()["dollars"] == (estimate + 3) * price
    assert ours.statistics()["requests"] == 3
    assert ours.statistics()["retries"] == 2


def test_max_dollars_without_a_price_sends_nothing(server: OpenAIServer, tmp_path: Path) -> None:
    ours = embedder(server, tmp_path, model="unknown", max_dollars=1.0)
    with pytest.raises(SettingsError, match="price of 'unknown'"):
        ours.embed(TEXTS)
    assert not server.requests


@pytest.mark.parametrize(("spent", "fits"), [(0.3, True), (0.6, False)])
def test_a_request_waits_until_those_in_flight_have_left_room_in_the_budget(
    spent: float, fits: bool
) -> None:
    budget = Budget(1.0)
    budget.reserve(0.6)
    outcomes: list[bool] = []

    def reserve() -> None:
        try:
            budget.reserve(0.6)
            outcomes.append(True)
        except BudgetError:
            outcomes.append(False)

    second = threading.Thread(target=reserve)
    second.start()
    second.join(0.1)
    assert second.is_alive(), "both together could exceed the budget"
    budget.settle(0.6, spent)
    second.join(10)
    assert outcomes == [fits]


# --- Concurrency ----------------------------------------------------------------------------------


def test_concurrency_begins_with_one_doubles_and_halves() -> None:
    concurrency = AdaptiveConcurrency(8)
    limits = [concurrency.limit]
    for _ in range(3):
        for _ in range(concurrency.limit):
            with concurrency.slot():
                concurrency.succeeded()
        limits.append(concurrency.limit)
    assert limits == [1, 2, 4, 8]
    with concurrency.slot() as first, concurrency.slot() as second:
        concurrency.failed(first)
        concurrency.failed(second)  # began before the decrease: the same overload
    assert concurrency.limit == 4
    for _ in range(4):
        concurrency.succeeded()
    assert concurrency.limit == 4  # 1/4 + 1/4.25 + … : a round and a bit for one more
    concurrency.succeeded()
    assert concurrency.limit == 5


def test_calls_from_many_threads_are_in_flight_together(tmp_path: Path) -> None:
    together = threading.Barrier(4)
    warm = 8

    def step(request: Request) -> Answer:
        if request.texts == ["together"]:
            together.wait(10)  # breaks unless four requests are here at once
        return server.embeddings(request)

    with OpenAIServer(always=step) as server:
        ours = embedder(server, tmp_path, max_concurrency=4)
        assert ours.concurrency == 4
        for _ in range(warm):
            ours.embed(["warm"])
        threads = [threading.Thread(target=ours.embed, args=(["together"],)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert not together.broken
        assert len(server.requests) == warm + 4


# --- Tokens ---------------------------------------------------------------------------------------

# Counted with OpenAI's tiktoken 0.14, encoding cl100k_base.
COUNTED_BY_OPENAI = json.loads((Path(__file__).parent / "cl100k_counts.json").read_text())


@pytest.mark.parametrize("entry", COUNTED_BY_OPENAI, ids=lambda entry: entry["text"][:20])
def test_the_estimate_is_not_below_what_openai_counts(entry: dict[str, Any]) -> None:
    estimate = len(estimating_tokenizer().encode(entry["text"], add_special_tokens=False))
    assert entry["tokens"] <= estimate <= len(entry["text"].encode())


def test_the_estimate_covers_every_character_in_order() -> None:
    texts = [entry["text"] for entry in COUNTED_BY_OPENAI]
    for text, encoding in zip(texts, estimating_tokenizer().encode_batch(texts), strict=True):
        covered = np.zeros(len(text), dtype=bool)
        for start, end in encoding.offsets:
            covered[start:end] = True
        assert covered.all()
        assert encoding.offsets == sorted(encoding.offsets)


# --- Settings -------------------------------------------------------------------------------------


def settings(**embedder: Any) -> CollectionSettings:
    return CollectionSettings.model_validate(
        {"name": "corpus", "source": {"path": "x"}, "embedder": embedder}
    )


def test_settings_make_the_embedder() -> None:
    made = collection_resources(
        settings(
            provider="openai",
            model="nomic-embed-text",
            base_url="http://127.0.0.1:11434/v1/",
            dimensions=768,
            max_dollars=2.5,
            tokens_per_minute=1000,
            document_prompt="search_document: ",
            timeout=5,
            max_wait=60,
            retry_delay=0.1,
        )
    )["corpus_embedder"]
    assert isinstance(made, OpenAIEmbedder)
    assert made.base_url == "http://127.0.0.1:11434/v1"
    assert made.space.dimension == 768
    assert (made.max_dollars, made.tokens_per_minute) == (2.5, 1000)
    assert (made.timeout, made.max_wait, made.retry_delay) == (5, 60, 0.1)
    assert made.max_input_tokens == 8191
    plain = collection_resources(settings(provider="openai", model="text-embedding-3-large"))
    assert plain["corpus_embedder"].space.dimension == 3072
    given: dict[str, Any] = {
        "revision": "main", "max_tokens": 128, "batch_tokens": 512,
        "document_prompt": "passage: ", "query_prompt": "query: ", "matryoshka_dimensions": [64],
    }  # fmt: skip
    local = collection_resources(settings(**given))["corpus_embedder"]
    assert isinstance(local, LocalEmbedder)
    assert {name: getattr(local, name) for name in given} == given


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"base_url": "http://x/v1"}, "set provider: openai"),
        ({"max_dollars": 1}, "set provider: openai"),
        ({"provider": "openai"}, r"embedder.openai.model\n +Field required"),
        ({"provider": "openai", "model": "own"}, "how long are the vectors"),
        ({"provider": "openai", "model": MODEL, "device": "cuda"}, "on this machine .*: device"),
        ({"provider": "openai", "model": MODEL, "dimensions": 9999}, "at most 1536"),
        (
            {"provider": "openai", "model": MODEL, "matryoshka_dimensions": [256, 1536]},
            "less than the 1536 dimensions of .* got 1536",
        ),
        ({"matryoshka_dimensions": [0]}, "greater than or equal to 1"),
        ({"provider": "openai", "model": MODEL, "api_key": "x"}, "not permitted"),
        ({"batch_tokens": 0}, "greater than or equal to 1"),
        ({"provider": "azure"}, "'local' or 'openai'"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        settings(**given)


def test_to_what_vectors_may_be_cut_changes_nothing_that_is_stored(tmp_path: Path) -> None:
    whole, cut = (
        embedder("http://127.0.0.1/v1", tmp_path, matryoshka_dimensions=lengths)
        for lengths in ([], [2, 3])
    )
    assert whole.space == cut.space
    assert list(cut.shorter_dimensions) == [3, 2]


@pytest.mark.parametrize("url", ["http://user:secret@host/v1", "http://host/v1?api-key=1", "host"])
def test_a_url_with_a_secret_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="base_url must"):
        embedder(url, tmp_path)


# --- The whole pipeline ---------------------------------------------------------------------------


def pipeline(
    server: OpenAIServer,
    folder: Path,
    documents: int = 12,
    settings: dict[str, Any] | None = None,
    fallback: Embedder | None = None,
    **fields: Any,
) -> Pipeline:
    records = [{"id": f"d{i}", "text": f"Document {i} is about {i * i}."} for i in range(documents)]
    source = write_jsonl(folder / "documents.jsonl", records)
    return Pipeline(
        folder,
        str(source),
        embedder=embedder(server, folder, **fields),
        settings={
            "partitions": {"by": "bucket", "count": 1},
            "embedder": {"flush_size": 2},
            **(settings or {}),
        },
        fallback=fallback,
    )


def test_a_run_leaves_the_key_nowhere(
    server: OpenAIServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    home = tmp_path / "dagster"
    # So long that the sentence made of it is cut within the key.
    echo = (
        "x" * (300 - len("Incorrect API key provided: ") - 10)
        + f"Incorrect API key provided: {KEY}"
    )
    server.script = [error(500, echo), error(429, echo), server.embeddings, error(401, echo)]
    ours = pipeline(server, tmp_path, max_concurrency=1)
    logging.getLogger("openai").setLevel(logging.DEBUG)
    with caplog.at_level(logging.DEBUG), shipped_instance(home) as instance:
        assert not ours.run(instance=instance, raise_on_error=False).success
        assert ours.run(instance=instance).success
        assert len(ours.rows()) == 12
        stored = [
            str(instance.all_logs(run.run_id)) + str(run.run_config) + str(run.tags)
            for run in instance.get_runs()
        ]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert any(b"does not accept the key" in content for content in written), "the scan sees errors"
    output = capfd.readouterr()
    shown = [caplog.text, output.out, output.err, repr(ours.embedder), *stored]
    part = KEY[:10]
    assert not any(part.encode() in content for content in written)
    assert not any(part in text for text in shown)
    assert all(KEY in request.headers["authorization"] for request in server.requests)


class _Elsewhere:
    """A server in another process."""

    def __init__(self, url: str) -> None:
        self.url = url


def _run(url: str, folder: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    pipeline(cast("OpenAIServer", _Elsewhere(url)), folder, max_concurrency=1).run()


def test_a_killed_run_keeps_every_finished_request(tmp_path: Path) -> None:
    def kill_at_the_fifth(request: Request) -> Answer:
        if len(server.requests) == 5:
            process.kill()
        return server.embeddings(request)

    with OpenAIServer(always=kill_at_the_fifth) as server:
        process = FORKS.Process(target=_run, args=(server.url, tmp_path, {**os.environ}))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        # While the fifth is with the server, the fourth may be on its way into the cache.
        finished = {text for request in server.requests[:3] for text in request.texts}
        del server.requests[:]
        server.always = server.embeddings
        ours = pipeline(server, tmp_path)
        assert ours.run().success
        documents = {row["text"] for row in ours.rows()}
        again = {text for request in server.requests for text in request.texts}
        assert len(finished) >= 3
        assert len(documents) == 12
        assert not finished & again & documents


def test_a_spent_budget_keeps_what_is_embedded(
    server: OpenAIServer, tmp_path: Path, price: float
) -> None:
    ours = pipeline(server, tmp_path, documents=120, max_dollars=400.0)
    assert not ours.run(raise_on_error=False).success
    first = {text for request in server.requests for text in request.texts}
    assert sum(map(tokens, server.requests)) * price <= 400
    del server.requests[:]
    richer = pipeline(server, tmp_path, documents=120)
    assert richer.run().success
    documents = {row["text"] for row in richer.rows()}
    assert len(documents) == 120
    assert 10 < len(first & documents) < 120
    again = {text for request in server.requests for text in request.texts}
    assert not first & again & documents


def test_lost_answers_are_in_the_cost_of_the_run_and_in_that_of_its_partitions(
    server: OpenAIServer, tmp_path: Path, price: float
) -> None:
    no_vectors = _changed(server, data=None)
    server.script = [server.embeddings, _half_body(server), *[no_vectors] * 3, error(500)]
    ours = pipeline(server, tmp_path, documents=6, max_concurrency=1)
    result = ours.run()
    (used,) = (
        evaluation.metadata["dollars"].value
        for evaluation in result.get_asset_check_evaluations()
        if evaluation.check_name == "throughput"
    )
    paid = sum(tokens(request) * price for request in server.requests)
    assert isinstance(used, float)
    assert used > paid, "of the half answer only an estimate is known, and that is higher"
    assert numbers(result, "embeddings")["dollars"] == pytest.approx(used)


def test_a_refused_text_is_in_the_quarantine_of_the_run(
    server: OpenAIServer, tmp_path: Path
) -> None:
    server.always = refusing(server)
    records = [{"id": "good", "text": "A good text."}, {"id": "bad", "text": BAD}]
    ours = pipeline(server, tmp_path)
    write_jsonl(tmp_path / "documents.jsonl", records)
    ours.run(raise_on_error=False)
    (entry,) = ours.embedding_quarantine()
    assert entry["document_id"] == "bad"
    assert "maximum context length" in entry["detail"]
    assert [row["document_id"] for row in ours.rows()] == ["good"]


def test_when_the_server_fails_half_way_a_model_here_takes_over_and_is_undone_later(
    tmp_path: Path, model_cache: Path
) -> None:
    """The real components of a user: a provider, a local model, DuckDB, LanceDB."""
    local = LocalEmbedder(model_cache=str(model_cache), device="cpu")
    documents = 12
    with OpenAIServer() as undisturbed_server:
        undisturbed = pipeline(undisturbed_server, tmp_path / "undisturbed", documents)
        undisturbed.run()
    down = threading.Event()
    answered: list[int] = []

    def fails_after_five(request: Request) -> Answer:
        answered.append(len(request.texts))
        if len(answered) > 5 and not down.is_set():
            return Answer(status=503)
        return server.embeddings(request)

    with OpenAIServer(always=fails_after_five) as server:
        failing = pipeline(
            server,
            tmp_path / "run",
            documents,
            {"fallback": {"when": ["unavailable"]}},
            local,
            max_wait=0.2,
            max_concurrency=1,
        )
        first = failing.run()
        assert not checks(first)["fallback_share"]
        assert checks(first)["completeness"]
        assert checks(first)["vector_integrity"]
        assert numbers(first, "embeddings")["dollars"] > 0
        (used,) = (
            evaluation.metadata
            for evaluation in first.get_asset_check_evaluations()
            if evaluation.check_name == "throughput"
        )
        assert used["requests"].value == len(answered)
        assert {"retries", "dollars", "seconds_rate_limited", "rate_limit_utilisation"} <= {*used}
        assert used["rate_limit_share"].value == 1
        in_fallback = {row["document_id"] for row in failing.rows(local)}
        in_primary = {row["document_id"] for row in failing.rows()}
        assert in_fallback
        assert in_primary
        assert not in_fallback & in_primary
        assert len(in_fallback | in_primary) == documents
        for row in failing.rows(local):
            (expected,) = local.embed([row["context"] + row["text"]]).vectors
            np.testing.assert_allclose(row["vector"], expected, atol=2e-3)

        down.set()
        second = failing.run()
        assert checks(second)["fallback_share"]
        assert failing.rows(local) == []

        def content(rows: list[dict[str, Any]]) -> list[list[str]]:
            return [[str(value) for value in row.values()] for row in rows]

        assert content(failing.rows()) == content(undisturbed.rows())
