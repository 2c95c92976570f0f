"""Every command of the pages, from top to bottom, in the shell of somebody who just cloned them.

A block of commands that a test cannot run has a comment before it, which says why: `<!-- not run:
needs a Redis server -->`. One that stays has `<!-- serves URL ... -->`: it is started, asked, and
stopped. A block of text right after commands is what they print, but for its numbers and "…".
"""

import json
import re
import socket
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.checkout import PROJECT, FreshCheckout, Shell

PAGES = re.findall(r'= "(.+\.md)"', (PROJECT / "zensical.toml").read_text(encoding="utf-8"))
"""As they are in the site's navigation."""
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>not run:|serves) *(?P<said>.*?) -->\n)?"
    r"```bash\n(?P<script>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?",
    re.DOTALL,
)
NOISE = re.compile(
    r"we collect usage statistics|^The active virtual environment"
    r"|^Traceback \(most recent call last\)|^\S+:\d+: \w*Warning: |Using temporary directory",
    re.M,
)
"""What nobody asked for; the documents that a search shows may tell of it."""
WAIT_SECONDS = 600
"""Nothing takes that long, but the machine may be busy with other tests."""
RUNS = "{ runsOrError { ... on Runs { results { runId } } } }"


@dataclass(frozen=True)
class Block:
    """Commands of a page.

    Attributes:
        mark: what the comment before them says: "not run:", "serves", or nothing.
        said: the comment's words.
        output: what the page says that they print.
    """

    script: str
    mark: str
    said: str
    output: str


def blocks(page: str) -> list[Block]:
    text = (PROJECT / page).read_text(encoding="utf-8")
    found = [
        Block(**{name: one or "" for name, one in match.groupdict().items()})
        for match in BLOCK.finditer(text)
    ]
    assert len(found) == text.count("```bash"), f"{page}: a block looks like none"
    return found


def test_what_is_not_run_says_why() -> None:
    marked = [block for page in PAGES for block in blocks(page) if block.mark == "not run:"]
    assert marked
    assert [block.script for block in marked if len(block.said) < 10] == []


@pytest.mark.slow
@pytest.mark.parametrize("pages", [PAGES[:1], PAGES], ids=["home", "all"])
def test_commands_run_in_the_order_of_the_pages(
    pages: list[str], tmp_path: Path, model_cache: Path, subtests: pytest.Subtests
) -> None:
    """One test: all but the first page need the sample collection, which takes longest to build."""
    checkout = FreshCheckout(tmp_path, model_cache)
    for page in pages:
        with subtests.test(page=page), checkout.shell() as shell:
            for block in blocks(page):
                if block.mark == "serves":
                    serve(shell, block)
                elif not block.mark:
                    status, said = shell.run(block.script)
                    assert status == 0, f"{block.script}\n{said[-4000:]}"
                    assert NOISE.search(said) is None, said
                    assert missing(block.output, said) == [], said
    with subtests.test("nothing is left in the home folder, nor beside the project's own"):
        assert list(checkout.home.iterdir()) == []
        assert list(checkout.folder.glob(".tmp*")) == []


def missing(expected: str, said: str) -> list[str]:
    """The lines that a page promises and that were not said."""

    def pattern(line: str) -> str:
        parts = re.split(r"(\d[\d.,]*|…|\s+)", line.strip())
        return "".join(
            r"\d[\d.,]*" if part[0].isdigit() else {"…": ".*"}.get(part) or re.escape(part)
            for part in parts
            if part
        )

    lines = [" ".join(line.split()) for line in expected.splitlines() if line.strip()]
    text = " ".join(said.split())
    return [line for line in lines if not re.search(pattern(line), text)]


def serve(shell: Shell, block: Block) -> None:
    """Starts what stays, on other ports; each address answers, and its pages know of the runs."""
    script, urls = block.script, block.said
    for port in sorted(set(re.findall(r":(\d+)", block.said))):
        free = _free_port()
        script, urls = script.replace(port, free), urls.replace(port, free)
        script = re.sub(r"make (ui|serve)\b", rf"make \1 PORT={free}", script)
    with shell.serving(script) as log:
        for url in urls.split():
            if urlsplit(url).path:  # not Dagster's
                assert _answer(url, None, log)
                continue
            runs = _asked(f"{url}/graphql", RUNS, log)["data"]["runsOrError"]["results"]
            assert runs, f"{url} shows none of the runs of the commands before"


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _asked(url: str, query: str, log: Path) -> dict[str, Any]:
    """What it answers, as soon as it does."""
    return json.loads(_answer(url, json.dumps({"query": query}).encode(), log))


def _answer(url: str, body: bytes | None, log: Path) -> bytes:
    """What it answers, as soon as it does."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as answer:
                return answer.read()
        except OSError:
            if time.monotonic() > deadline:
                pytest.fail(f"{url} did not answer: {log.read_text()[-4000:]}")
            time.sleep(0.1)
