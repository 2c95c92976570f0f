"""What people see and press: Dagster's own pages of the sample collection, in a real browser."""

import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from tests.support.browser import BROWSER, NO_BROWSER, launched
from tests.support.checkout import copy_checkout

playwright = pytest.importorskip("playwright.sync_api", reason="`pip install playwright`")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)]

STAGES = ("documents", "deduplicated_chunks", "embeddings", "vector_index")
ALSO = """\
  description: The *proposals* by which Python changes.
  owners: [ann@example.org, team:search]
  tags: {tier: gold}
  deletions: {max_share: 0, max_documents: 0}
"""
WAIT_SECONDS = 240
"""Nothing takes that long, but the machine may be busy with other tests."""


@pytest.fixture
def ui(tmp_path: Path, model_cache: Path) -> Iterator[str]:
    """The URL of `dg dev` over the sample collection, with nothing materialised yet."""
    project = copy_checkout(tmp_path / "project", model_cache)
    settings = project / "embedding_assets" / "defs" / "peps" / "defs.yaml"
    # Its threshold is for all partitions; here are two.
    own = re.sub(r"\n  evaluation: .*", "", settings.read_text())
    settings.write_text(f"{own.rstrip()}\n{ALSO}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("DAGSTER")},
        "PYTHONPATH": str(project),
        "DAGSTER_HOME": str(project / "dagster_home"),
        "EMBEDDING_DATA_DIR": str(project / "data"),
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with subprocess.Popen(
        ["dg", "dev", "--host", "127.0.0.1", "--port", str(port)],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as server:
        serving, lines = threading.Event(), []

        def listen() -> None:
            assert server.stdout is not None
            for line in server.stdout:
                lines.append(line)
                if "Serving dagster-webserver" in line:
                    serving.set()
            serving.set()

        threading.Thread(target=listen, daemon=True).start()
        try:
            serving.wait(WAIT_SECONDS)
            if server.poll() is not None or not serving.is_set():
                pytest.fail("`dg dev` did not start:\n" + "".join(lines[-40:]))
            yield f"http://127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture
def page(ui: str) -> Iterator[Any]:
    with launched(base_url=ui, viewport={"width": 1280, "height": 720}) as page:
        page.set_default_timeout(WAIT_SECONDS * 500)
        playwright.expect.set_options(timeout=WAIT_SECONDS * 500)
        yield page


@pytest.fixture
def picture(page: Any, tmp_path: Path) -> Callable[[str], None]:
    """Takes a screenshot; with SCREENSHOTS_DIR set, into that folder."""
    folder = Path(os.environ.get("SCREENSHOTS_DIR") or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)

    def take(name: str) -> None:
        path = folder / f"{name}.png"
        page.screenshot(path=path, animations="disabled")
        Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
        assert path.stat().st_size < 150_000

    return take


def test_a_collection_is_built_watched_and_judged_from_dagsters_pages(
    page: Any, picture: Callable[[str], None], tmp_path: Path
) -> None:
    """One test: to start the server takes longer than everything else."""
    _build(page, picture)
    _look(page, picture)
    _judge(page, picture)
    _watch(page, picture)
    _withhold(page, picture, tmp_path / "project" / "sample_data" / "peps-2000s.jsonl.gz")


def _build(page: Any, picture: Callable[[str], None]) -> None:
    expect = playwright.expect
    # The graph renders.
    page.goto(_graph('group:"peps"'))
    for asset in ("peps_source", *STAGES, "report"):
        expect(page.get_by_text(asset, exact=True).first).to_be_visible()
    expect(page.locator("svg foreignObject")).to_have_count(len(STAGES) + 2)

    # A backfill of two years, from the graph of the four stages.
    page.goto(_graph('key:"peps/*" and not key:"peps/report"'))
    page.get_by_role("button", name="Materialize all").click()
    _choose_partitions(page, "[2001...2002]")
    page.get_by_role("button", name="Launch backfill").click()
    expect(page.get_by_text("Created backfill")).to_be_visible()

    # Its run is under way.
    page.goto(f"/runs/{_runs(page, 1, 'STARTED', 'SUCCESS')[0]}")
    expect(page.get_by_text("peps__documents").first).to_be_visible()
    picture("run")

    # Meanwhile one partition of one asset, from its page.
    _materialize(page, "documents", "2003")
    _runs(page, 2, "SUCCESS")
    page.goto("/runs")
    expect(page.get_by_text("partition: 2003").first).to_be_visible()
    found = _ask(page, "partitionBackfillsOrError { ... on PartitionBackfills { results { id } } }")
    page.goto(f"/runs/b/{found['results'][0]['id']}")
    expect(page.get_by_text("100% completed")).to_have_count(len(STAGES))
    picture("backfill")


def _look(page: Any, picture: Callable[[str], None]) -> None:
    """Each asset's page says what it is, whose, where, and what its columns mean."""
    page.set_viewport_size({"width": 1280, "height": 1400})
    for key, told in SHOWN.items():
        page.goto(f"/assets/{key}")
        for text in ("Ann@example.org", "tier: gold", "by which Python changes", *told):
            found = page.get_by_text(re.compile(re.escape(text), re.IGNORECASE)).first
            playwright.expect(found).to_be_visible()
        picture(key.rpartition("/")[2])
    page.set_viewport_size({"width": 1280, "height": 720})


def _judge(page: Any, picture: Callable[[str], None]) -> None:
    """Each check of the run is there, green, with its sentence and its numbers."""
    expect = playwright.expect
    for asset, checks in CHECKS.items():
        page.goto(f"/assets/peps/{asset}?view=checks")
        expect(page.get_by_text(f"Checks ({len(checks)})")).to_be_visible()
        expect(page.get_by_text(re.compile("^Succeeded"))).to_have_count(len(checks))
    page.goto("/assets/peps/embeddings?view=checks&checkDetail=throughput")
    expect(page.get_by_text(re.compile("chunks were embedded: .* tokens/s")).first).to_be_visible()
    expect(page.get_by_text("min_chunks_per_second").first).to_be_visible()
    expect(page.get_by_text("runs_compared").first).to_be_visible()
    picture("checks")


def _watch(page: Any, picture: Callable[[str], None]) -> None:
    expect = playwright.expect
    # Dagster plots the numbers of the partitions.
    page.goto("/assets/peps/embeddings")
    page.get_by_text("Plots", exact=True).click()
    page.get_by_text("tokens_per_second", exact=True).scroll_into_view_if_needed()
    page.wait_for_function(_SOMETHING_IS_DRAWN)
    picture("plots")

    # The report, with its pictures.
    page.goto("/assets/peps/report")
    page.get_by_role("button", name="Materialize").first.click()
    expect(page.get_by_text("Launched run")).to_be_visible()
    _runs(page, 3, "SUCCESS")
    page.reload()
    page.get_by_text("[Show Markdown]").click()
    images = page.locator("img[src^='data:image/svg+xml']")
    expect(images).to_have_count(3)
    page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth > 500)")
    images.nth(0).scroll_into_view_if_needed()
    picture("report_in_dagster")

    page.set_viewport_size({"width": 2000, "height": 420})
    page.goto(_graph('group:"peps"'))
    page.get_by_text("Hide navigation").click()
    expect(page.get_by_text("Loading...")).to_have_count(0)
    page.wait_for_timeout(3000)  # for the picture alone: the graph moves into its place
    picture("assets")
    page.set_viewport_size({"width": 1280, "height": 720})


def _withhold(page: Any, picture: Callable[[str], None], source: Path) -> None:
    """A check that fails says why: here, of a document that is gone from the source."""
    lines = gzip.decompress(source.read_bytes()).splitlines(keepends=True)
    (of_2003, *_) = (line for line in lines if json.loads(line)["created"].startswith("2003"))
    lines.remove(of_2003)
    source.write_bytes(gzip.compress(b"".join(lines)))
    _materialize(page, "documents", "2003")
    _runs(page, 4, "SUCCESS")
    page.goto("/assets/peps/documents?view=checks&checkDetail=accounting")
    why = page.get_by_text(re.compile("1 document is not in the source any more"))
    playwright.expect(why.first).to_be_visible()
    playwright.expect(page.get_by_text(re.compile("^Failed")).first).to_be_visible()
    picture("red_check")


SHOWN = {
    "peps_source": ["External asset", "newest_file", "sample_data/*.jsonl.gz"],
    "peps/documents": ["Parquet", "The document's id, as in the source.", "partition_row_count"],
    "peps/deduplicated_chunks": ["DuckDB", "equal ones are embedded once"],
    "peps/embeddings": ["openvino", "DuckDB", "as raw little-endian float32"],
    "peps/vector_index": ["Row count", "lancedb", "embedding-assets search"],
}
CHECKS = {
    "documents": ("accounting",),
    "embeddings": ("throughput", "cache_hit_rate", "error_rate", "unknown_tokens", "space_drift"),
    "vector_index": ("vector_integrity", "completeness"),
}

_SOMETHING_IS_DRAWN = """() => [...document.querySelectorAll("canvas")].some(canvas => {
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return pixels.some(value => value > 0);
})"""


def _graph(selection: str) -> str:
    return f"/asset-groups~{quote(selection, safe='')}/"


def _choose_partitions(page: Any, partitions: str) -> None:
    field = page.get_by_placeholder("ex: 2000")
    field.fill(partitions)
    field.press("Enter")


def _materialize(page: Any, asset: str, partition: str) -> None:
    page.goto(f"/assets/peps/{asset}")
    page.get_by_role("button", name="Materialize").first.click()
    _choose_partitions(page, partition)
    page.get_by_role("button", name="Launch 1 run").click()
    launched = page.get_by_text(re.compile("Launched run|Created backfill"))
    playwright.expect(launched).to_be_visible()


def _runs(page: Any, count: int, *statuses: str) -> list[str]:
    """The ids of the runs in these states, the newest first, as soon as there are so many."""
    which = f"filter: {{statuses: [{', '.join(statuses)}]}}"
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        answer = _ask(page, f"runsOrError({which}) {{ ... on Runs {{ results {{ id }} }} }}")
        found = [run["id"] for run in answer["results"]]
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, f"{len(found)} runs of {count} are {statuses}"
        page.wait_for_timeout(500)


def _ask(page: Any, query: str) -> dict[str, Any]:
    """Dagster's answer to a GraphQL query of one field."""
    answer = page.request.post("/graphql", data={"query": f"{{ {query} }}"}).json()
    (found,) = answer["data"].values()
    return found
