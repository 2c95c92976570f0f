"""The page at /docs in a real browser, from the real service: all of it, and from nowhere else."""

import html
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from embedding_assets.service.reference import reference_page
from tests.service.test_embeddings import NOTES
from tests.support.browser import launched
from tests.support.fakes import CountingEmbedder
from tests.support.pipeline import Pipeline, write_jsonl
from tests.support.service import RunningService

playwright = pytest.importorskip("playwright.sync_api", reason="`pip install playwright`")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A collection, a model and a document of the names for which the page puts capitals."""
    folder = tmp_path_factory.mktemp("reference")
    source = write_jsonl(folder / "notes.jsonl", [{"id": "ID", "text": NOTES[0]["text"]}])
    buckets = {"partitions": {"by": "bucket", "count": 1}}
    embedder = CountingEmbedder(model="MODEL")
    return Pipeline(folder, str(source), name="NAME", embedder=embedder, settings=buckets)


@pytest.fixture(scope="module")
def running(made: Pipeline) -> Iterator[RunningService]:
    with RunningService(made.opened, folder=made.folder) as running:
        yield running


@pytest.fixture(scope="module")
def page(running: RunningService) -> Iterator[Any]:
    """The page; at the end nothing may have gone wrong in it, nor come from elsewhere."""
    wrong: list[str] = []
    asked: list[str] = []
    with launched() as page:
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.goto(f"{running.url}/docs")
        yield page
        assert not wrong
        assert [url for url in asked if not url.startswith((running.url, "data:", "about:"))] == []


def document(running: RunningService) -> dict[str, Any]:
    return running.client.get("/openapi.json").json()


def endpoints(running: RunningService) -> list[str]:
    paths = document(running)["paths"]
    return [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]


def test_each_endpoint_is_told_with_its_fields_and_answer(running: RunningService) -> None:
    shown = running.client.get("/docs").text
    assert shown.count('<div class="command"') == len(endpoints(running))
    for path, methods in document(running)["paths"].items():
        for method, operation in methods.items():
            start = shown.index(f"<h3><code>{method.upper()} {path}</code></h3>")
            told = html.unescape(
                re.sub("<[^>]+>", "", shown[start : shown.index("</article>", start)])
            )
            assert operation["description"].split("\n")[0].replace("`", "") in told
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for name, field in body.get("schema", {}).get("properties", {}).items():
                assert name in told
                assert field.get("description", "") in told
    assert "string, required" in shown
    assert "integer, at least 1, by default <code>5</code>" in shown
    # Each link leads to something that is there once.
    for anchor in set(re.findall(r'href="#([^"]+)"', shown)):
        assert shown.count(f'id="{anchor}"') == 1, anchor


def test_nothing_is_asked_of_another_host_and_the_links_lead_on(
    running: RunningService, page: Any
) -> None:
    expect = playwright.expect
    expect(page.locator("article .command")).to_have_count(len(endpoints(running)))
    page.get_by_role("navigation").get_by_role("link", name="POST /search").click()
    expect(page.get_by_role("heading", name="POST /search", exact=True)).to_be_in_viewport()
    page.locator("article", has_text="POST /search").first.get_by_role("link", name="Found").click()
    expect(page.get_by_role("heading", name="Found", exact=True)).to_be_in_viewport()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on PATH")
def test_a_command_that_is_copied_works_as_it_stands(
    made: Pipeline, running: RunningService, page: Any
) -> None:
    made.run()
    for name in endpoints(running):
        if "/jobs" in name:  # here is no queue
            continue
        page.get_by_role("button", name=f"Copy {name}", exact=True).press("Enter")
        command = page.evaluate("navigator.clipboard.readText()")
        assert running.url in command
        write = "\n%{http_code}"
        ended = subprocess.run(
            ["sh", "-c", command.replace("curl -s", f"curl -s -w '{write}'", 1)],
            capture_output=True,
            text=True,
        )
        assert ended.stdout.endswith("\n200"), (command, ended.stdout)


def test_it_fits_a_telephone_and_all_of_it_is_reached_by_keyboard(
    running: RunningService, page: Any
) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    page.goto("about:blank")  # forgets where the focus was
    page.goto(f"{running.url}/docs")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    focused = "[...document.querySelectorAll('a, button')].indexOf(document.activeElement)"
    for expected in range(page.locator("a, button").count()):
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == expected
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_what_is_marked_up_in_a_name_or_a_description_stays_text() -> None:
    hostile = "<script>alert(1)</script> & `<b>`"
    field = {"type": "string", "description": hostile, "default": "</dl><img src=x>"}
    schema = {"type": "object", "properties": {hostile: field}}
    operation = {
        "tags": ["Search"],
        "description": hostile,
        "requestBody": {"content": {"application/json": {"schema": schema}}},
        "responses": {"400": {"description": hostile}},
    }
    shown = reference_page({"paths": {"/x": {"post": operation}}})
    assert "<script>alert" not in shown
    assert "<img" not in shown
    assert "<code>&lt;b&gt;</code>" in shown


def test_a_command_says_the_method_that_curl_would_not_guess() -> None:
    content = {"application/json": {"schema": {"properties": {"a": {}}, "examples": [{"a": 1}]}}}
    of = {"responses": {"202": {"description": "begun"}}}
    paths = {
        "/a": {"get": of, "post": {**of, "requestBody": {"content": content}}, "delete": of},
        "/a/{id}/b": {"post": of},
    }
    commands = re.findall("<pre>(.*?)</pre>", reference_page({"paths": paths}), re.DOTALL)
    assert [re.sub("</?span[^>]*>", "", command) for command in commands] == [
        "curl -s 'http://127.0.0.1:8080/a'",
        "curl -s 'http://127.0.0.1:8080/a' \\\n"
        "  -H 'content-type: application/json' -d '{\"a\": 1}'",
        "curl -s -X DELETE 'http://127.0.0.1:8080/a'",
        "curl -s -X POST 'http://127.0.0.1:8080/a/ID/b'",
    ]
