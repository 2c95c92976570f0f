"""What is done about each failure, with the exact number of requests that it takes."""

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from embedding_assets.embeddings.stream import embed_each, embed_stream
from resources.embedders.base import HARMLESS_TEXT
from resources.errors import (
    CredentialsError,
    EmbedderUnavailableError,
    EmbeddingError,
    ModelError,
    SettingsError,
)
from tests.support.openai_server import (
    Answer,
    OpenAIServer,
    Request,
    Step,
    assert_right,
    embedder,
    error,
)
from tests.support.pipeline import Pipeline, write_jsonl

TEXTS = [f"Text {number}." for number in range(61)]
BAD = "Text 37."


def sizes(server: OpenAIServer) -> list[int | str]:
    """How many texts each request had; the harmless one by name."""
    return [
        "harmless" if request.texts == [HARMLESS_TEXT] else len(request.texts)
        for request in server.requests
    ]


def fails_for_bad(server: OpenAIServer, answer: Step) -> Step:
    def step(request: Request) -> Answer:
        bad = any(BAD in text for text in request.texts)
        return answer(request) if bad else server.embeddings(request)

    return step


# --- A text at fault ------------------------------------------------------------------------------

FAULTS: dict[str, tuple[Step, int]] = {
    "500": (error(500, "failed to encode response: json: unsupported value: NaN"), 3),
    "500 of llama.cpp": (error(500, "input is too large. increase the physical batch size"), 3),
    "424 of text-embeddings-inference": (lambda _: Answer(424, {"message": "backend"}), 3),
    "502 of a gateway": (lambda _: Answer(502, b"<html>Bad Gateway</html>"), 6),
    "reset": (lambda _: Answer(reset=True), 6),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_text_for_which_the_server_fails_is_found_and_the_others_are_kept(
    fault: str, server: OpenAIServer, tmp_path: Path
) -> None:
    answer, equal = FAULTS[fault]
    server.always = fails_for_bad(server, answer)
    batch, errors = embed_each(embedder(server, tmp_path), TEXTS)
    at = TEXTS.index(BAD)
    assert [i for i, e in enumerate(errors) if e] == [at]
    good = [i for i in range(len(TEXTS)) if i != at]
    assert_right(batch.vectors[good], [TEXTS[i] for i in good])
    # A few equal failures, a harmless text, once more; then halves, each sent once; the bad text
    # alone, a harmless one, and the bad one again.
    alone: list[int | str] = [1, "harmless", 1]
    halves = [30, 31, 15, 7, 8, 4, 2, *alone, 1, 2, 4, 16]
    assert sizes(server) == [*[61] * equal, "harmless", 61, *halves]


def test_a_text_for_which_the_server_fails_is_quarantined_and_the_run_keeps_the_others(
    server: OpenAIServer, tmp_path: Path
) -> None:
    server.always = fails_for_bad(server, error(500))
    records = [{"id": f"d{i}", "text": text} for i, text in enumerate(TEXTS)]
    source = write_jsonl(tmp_path / "documents.jsonl", records)
    ours = Pipeline(
        tmp_path,
        str(source),
        embedder=embedder(server, tmp_path),
        settings={"partitions": {"by": "bucket", "count": 1}},
    )
    ours.run(raise_on_error=False)
    assert len(ours.rows()) == 60
    assert [entry["document_id"] for entry in ours.embedding_quarantine()] == ["d37"]
    del server.requests[:]
    server.always = error(503)
    with pytest.raises(EmbedderUnavailableError, match=r"The server fails .* Ask again"):
        ours.opened.search("Which text?")
    assert sizes(server) == [1, 1, 1], "and a search does not wait for a quarter of an hour"


def test_an_outage_blames_no_text_and_only_the_harmless_one_is_sent_until_it_is_over(
    server: OpenAIServer, tmp_path: Path
) -> None:
    server.script = [error(500)] * 7
    batch, errors = embed_each(embedder(server, tmp_path), TEXTS)
    assert errors == [None] * len(TEXTS)
    assert_right(batch.vectors, TEXTS)
    assert sizes(server) == [61, 61, 61, *["harmless"] * 5, 61]


# --- Too much at once -----------------------------------------------------------------------------


def slow_above(server: OpenAIServer, most: int) -> Step:
    def step(request: Request) -> Answer:
        if len(request.texts) > most:
            return Answer(after=30)
        return server.embeddings(request)

    return step


def test_a_request_that_is_not_answered_in_time_is_sent_in_parts_and_so_are_later_ones(
    server: OpenAIServer, tmp_path: Path
) -> None:
    server.always = slow_above(server, 8)
    ours = embedder(server, tmp_path, timeout=0.5)
    ours.embed(["first"])
    batch, errors = embed_each(ours, TEXTS[:16])
    assert errors == [None] * 16
    assert_right(batch.vectors, TEXTS[:16])
    assert sizes(server) == [1, 16, "harmless", 8, 8]
    del server.requests[:]
    another_run = embedder(server, tmp_path, timeout=0.5)
    assert len(another_run.batches(TEXTS[:32])) == 4
    another_run.embed(TEXTS[:32])
    assert sizes(server) == [8, 8, 8, 8]


def test_a_server_that_does_one_after_the_other_gets_fewer_requests_at_a_time_not_smaller_ones(
    server: OpenAIServer, tmp_path: Path
) -> None:
    together = threading.Barrier(2)

    def hangs(_: Request) -> Answer:
        together.wait(30)
        return Answer(after=30)

    server.script = [server.embeddings, hangs, hangs]
    ours = embedder(server, tmp_path, timeout=1.0, max_concurrency=2)
    ours.embed(["first"])
    halves = TEXTS[:8], TEXTS[8:16]
    for embedded in embed_stream(ours, iter(halves), list):
        assert_right(embedded.batch.vectors, list(embedded.item))
    # Two at once, in vain; then each of them alone, after a harmless text.
    assert sorted(map(str, sizes(server))) == ["1", "8", "8", "8", "8", "harmless", "harmless"]
    known = embedder(server, tmp_path)._requests._memory.known
    assert (known.most_requests, known.most_texts) == (1, None)


def test_a_server_that_is_loading_its_model_is_asked_for_all_again(
    server: OpenAIServer, tmp_path: Path
) -> None:
    server.script = [lambda _: Answer(after=30)]
    ours = embedder(server, tmp_path, timeout=0.5)
    assert_right(ours.embed(TEXTS[:5]).vectors, TEXTS[:5])
    assert sizes(server) == [5, "harmless", 5]
    assert len(ours.batches(TEXTS)) == 1, "nothing was learned from a cold start"


def test_a_text_that_is_never_answered_is_quarantined_alone(
    server: OpenAIServer, tmp_path: Path
) -> None:
    server.always = fails_for_bad(server, lambda _: Answer(after=30))
    ours = embedder(server, tmp_path, timeout=0.3)
    _, errors = embed_each(ours, [BAD])
    assert errors[0] is not None
    assert "No answer within 0.3 s to one text" in errors[0][1]
    assert sizes(server) == [1, 1, 1, "harmless", 1]


BATCH_LIMITS = {
    "text-embeddings-inference": ({"message": "batch size 61 > maximum allowed batch size 32",
                                   "code": 422, "type": "Validation"}, 422, 32),
    "text-embeddings-inference behind LiteLLM": (
        {"error": {"message": "litellm.BadRequestError: Error code: 22 - {'message': "
                   "'batch size 61 > maximum allowed batch size 32', 'code': 22}"}}, 400, 32),
    "DashScope": ({"error": {"message": "batch size is invalid, it should not be larger than 10.: "
                             "input.contents", "type": "InvalidParameter"}}, 400, 10),
    "Gemini": ([{"error": {"code": 400, "message": "* BatchEmbedContentsRequest.requests: at most "
                           "20 requests can be in one batch", "status": "INVALID_ARGUMENT"}}],
               400, 20),
    "Azure, long ago": ({"error": {"message": "Too many inputs. The max number of inputs is 16.  "
                                   "We hope", "type": "invalid_request_error"}}, 400, 16),
    "Mistral": ({"object": "error", "message": "Too many inputs in request, split into more "
                 "batches.", "type": "invalid_request_prompt", "code": "3210"}, 400, 30),
    "Infinity": ({"error": {"message": "List should have at most 32 items after validation, not 61",
                            "type": None}}, 422, 32),
}  # fmt: skip


@pytest.mark.parametrize("provider", BATCH_LIMITS)
def test_the_largest_batch_of_a_server_is_asked_for_once_and_remembered(
    provider: str, server: OpenAIServer, tmp_path: Path
) -> None:
    body, status, most = BATCH_LIMITS[provider]
    limit = 32 if provider == "Mistral" else most

    def step(request: Request) -> Answer:
        many = len(request.texts) > limit
        return Answer(status, body) if many else server.embeddings(request)

    server.always = step
    batch, errors = embed_each(embedder(server, tmp_path), TEXTS)
    assert errors == [None] * len(TEXTS)
    assert_right(batch.vectors, TEXTS)
    parts = [most] * (61 // most) + [61 % most] * (61 % most > 0)
    assert sizes(server) == [61, *parts]
    del server.requests[:]
    embedder(server, tmp_path).embed(TEXTS)
    assert sizes(server) == parts


def test_what_was_learned_is_forgotten_after_a_day(
    server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = [error(413, "batch size 61 > maximum allowed batch size 32")]
    embedder(server, tmp_path).embed(TEXTS)
    assert embedder(server, tmp_path)._requests.most_texts == 32
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 86_401)
    assert embedder(server, tmp_path)._requests.most_texts == 2048


# --- What no waiting helps ------------------------------------------------------------------------


def google(code: int, message: str, status: str, **detail: Any) -> Step:
    """An error as Google writes it: a list of one."""
    content = [{"error": {"code": code, "message": message, "status": status, "details": [detail]}}]
    return lambda _: Answer(code, content)


QUOTAS: dict[str, Step] = {
    "OpenAI": error(429, "You exceeded your current quota", code="insufficient_quota"),
    "OpenAI's hard limit": error(400, code="billing_hard_limit_reached"),
    "OpenAI's requests per day": error(
        429, "Rate limit reached on requests per day (RPD): Limit 200", code="rate_limit_exceeded"
    ),
    "quota_exceeded": error(429, type="quota_exceeded"),
    "Google, a day": google(
        429, "You exceeded your current quota", "RESOURCE_EXHAUSTED",
        violations=[{"quotaId": "EmbedContentRequestsPerDayPerProjectPerModel-FreeTier"}],
    ),
    "402": error(402, "Payment Required"),
    "credits": error(429, "Your credit balance is too low"),
    "Cohere": lambda _: Answer(429, {"message": "Trial keys: 1000 API calls / month"}),
    "LiteLLM": error(429, "Budget has been exceeded! Max budget: 5", type="budget_exceeded"),
    "Hugging Face": lambda _: Answer(402, {"error": "You have exceeded your monthly credits"}),
    "Cloudflare": lambda _: Answer(429, {"errors": [{"message": "your daily free allocation"}]}),
    "inside a 200": lambda _: Answer(200, {"error": {"type": "insufficient_quota"}}),
}  # fmt: skip


@pytest.mark.parametrize("provider", QUOTAS)
@pytest.mark.parametrize("role", ["document", "query"])
def test_a_quota_that_is_used_up_stops_at_once_whoever_says_so(
    provider: str, role: Any, server: OpenAIServer, tmp_path: Path
) -> None:
    server.always = QUOTAS[provider]
    with pytest.raises(EmbedderUnavailableError, match="quota is used up"):
        embedder(server, tmp_path).embed(TEXTS, role)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "limit",
    [
        google(
            429, "You exceeded your current quota, please check your plan and billing details.",
            "RESOURCE_EXHAUSTED", violations=[{"quotaId": "EmbedContentRequestsPerMinute"}],
            retryDelay="0.2s",
        ),
        google(429, "Resource has been exhausted (e.g. check quota).", "RESOURCE_EXHAUSTED"),
        error(429, "Quota exceeded for online_prediction_requests_per_base_model"),
        error(429, "Rate limit reached on tokens per min (TPM): Limit 1000. Please try again"),
        lambda _: Answer(429, {"message": "Requests rate limit exceeded"}),
        lambda _: Answer(429, {"message": "Model is overloaded", "type": "overloaded"}),
    ],
)  # fmt: skip
def test_a_limit_that_passes_is_waited_for(
    limit: Step, server: OpenAIServer, tmp_path: Path
) -> None:
    server.script = [limit]
    assert_right(embedder(server, tmp_path).embed(TEXTS).vectors, TEXTS)
    first, second = server.requests
    if b"retryDelay" in repr(limit(first).body).encode():
        assert second.time - first.time >= 0.2


WRONG: dict[str, tuple[Step, type[EmbeddingError], str]] = {
    "Google's key": (google(400, "API key not valid. Please pass a valid API key.",
                            "INVALID_ARGUMENT"), CredentialsError, "PLANTED_KEY right"),
    "a key with 400": (error(400, "Incorrect API key provided"), CredentialsError, "PLANTED_KEY"),
    "LiteLLM's key": (error(400, "Authentication Error", type="auth_error",
                            code="invalid_api_key"), CredentialsError, "PLANTED_KEY"),
    "HTML": (lambda _: Answer(200, b"<!doctype html><p>Welcome"), SettingsError,
             "Is base_url right"),
    "text": (lambda _: Answer(200, b"Ollama is running"), SettingsError, "Is base_url right"),
    "404 of HTML": (lambda _: Answer(404, b"<html>nginx"), SettingsError, "Is base_url right"),
    "404 of Ollama": (lambda _: Answer(404, b"404 page not found"), SettingsError, "base_url"),
    "405": (lambda _: Answer(405, {"detail": "Method Not Allowed"}), SettingsError, "base_url"),
    "LM Studio": (lambda _: Answer(200, {"error": "Unexpected endpoint or method. (POST /embed)"}),
                  SettingsError, "Is base_url right"),
    "404 of FastAPI": (lambda _: Answer(404, {"detail": "Not Found"}), ModelError,
                       "does not know this model or URL"),
    "Azure": (error(404, code="DeploymentNotFound"), ModelError, "does not know this model"),
    "vLLM": (lambda _: Answer(404, {"object": "error", "message": "The model `x` does not exist.",
             "type": "NotFoundError", "code": 404}), ModelError, "does not know this model"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_in_the_settings_is_said_at_once(
    mistake: str, server: OpenAIServer, tmp_path: Path
) -> None:
    server.always, kind, sentence = WRONG[mistake]
    with pytest.raises(kind, match=sentence):
        embed_each(embedder(server, tmp_path), TEXTS)
    assert len(server.requests) == 1


def test_a_page_between_right_answers_is_a_gateway_that_will_be_well_again(
    server: OpenAIServer, tmp_path: Path
) -> None:
    ours = embedder(server, tmp_path)
    ours.embed(["first"])
    server.script = [lambda _: Answer(200, b"<html>Maintenance</html>")]
    assert_right(ours.embed(TEXTS).vectors, TEXTS)
    assert sizes(server) == [1, 61, 61]


# --- Questions ------------------------------------------------------------------------------------

DOWN: dict[str, tuple[Step, int]] = {
    "500": (error(500), 3),
    "503": (error(503), 3),
    "503 with a long wait": (error(503, headers={"Retry-After": "60"}), 1),
    "429 with a long wait": (error(429, headers={"Retry-After": "60"}), 1),
    "429": (error(429), 3),
    "reset": (lambda _: Answer(reset=True), 3),
    "no answer": (lambda _: Answer(after=30), 1),
}


@pytest.mark.parametrize("fault", DOWN)
def test_a_question_to_a_server_that_is_down_fails_soon_with_a_sentence(
    fault: str, server: OpenAIServer, tmp_path: Path
) -> None:
    server.always, requests = DOWN[fault]
    most = 1.0 if fault == "no answer" else 30.0
    ours = embedder(server, tmp_path, max_wait=900.0, timeout=60.0, query_max_wait=most)
    with pytest.raises(EmbedderUnavailableError, match="Ask again") as caught:
        ours.embed(["What is it?"], "query")
    assert server.url in str(caught.value)
    assert len(server.requests) == requests


def test_a_question_does_not_wait_for_those_who_use_up_the_limit(
    server: OpenAIServer, tmp_path: Path
) -> None:
    ours = embedder(server, tmp_path, query_max_wait=1.0)
    ours._requests._limiter.pause(600)
    with pytest.raises(EmbedderUnavailableError, match="a question waits 1 s at most"):
        ours.embed(["What is it?"], "query")
    assert not server.requests


def test_a_question_does_not_wait_for_requests_of_documents(
    server: OpenAIServer, tmp_path: Path
) -> None:
    arrived = threading.Event()

    def hangs(_: Request) -> Answer:
        arrived.set()
        return Answer(after=30)

    server.always = hangs
    ours = embedder(server, tmp_path, max_concurrency=1, query_max_wait=0.5, max_wait=0.0)

    def embed_documents() -> None:
        with suppress(EmbeddingError):
            ours.embed(TEXTS)

    documents = threading.Thread(target=embed_documents, daemon=True)
    documents.start()
    assert arrived.wait(30)
    with pytest.raises(EmbedderUnavailableError, match="a question waits"):
        ours.embed(["What is it?"], "query")
    assert len(server.requests) == 1


def test_many_questions_at_once_are_sent_in_parts(server: OpenAIServer, tmp_path: Path) -> None:
    def step(request: Request) -> Answer:
        many = len(request.texts) > 20
        return error(413, "Payload")(request) if many else server.embeddings(request)

    server.always = step
    ours = embedder(server, tmp_path)
    assert_right(ours.embed(TEXTS, "query").vectors, TEXTS)
    assert sizes(server) == [61, 30, 15, 15, 30, 15, 15, 1]
