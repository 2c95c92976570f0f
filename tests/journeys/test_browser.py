"""What people see and press: Dagster's own pages of the sample collection, in a real browser."""

import os
import re
import shutil
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

from tests.support.checkout import copy_checkout

playwright = pytest.importorskip("playwright.sync_api", reason="`pip install playwright`")

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None,
        reason="no Chromium or Chrome on PATH; on Debian and Ubuntu: apt-get install chromium",
    ),
]

FLAGS = (
    "--no-sandbox",  # it needs privileges that a container does not give
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
STAGES = ("documents", "deduplicated_chunks", "embeddings", "vector_index")
WAIT_SECONDS = 240
"""Nothing takes that long, but the machine may be busy with other tests."""


@pytest.fixture
def ui(tmp_path: Path, model_cache: Path) -> Iterator[str]:
    """The URL of `dg dev` over the sample collection, with nothing materialised yet."""
    project = copy_checkout(tmp_path / "project", model_cache)
    settings = project / "embedding_assets" / "defs" / "peps" / "defs.yaml"
    # Its threshold is for all partitions; here are two.
    settings.write_text(re.sub(r"\n  evaluation: .*", "", settings.read_text()))
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
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page(base_url=ui, viewport={"width": 1280, "height": 720})
        page.set_default_timeout(60_000)
        playwright.expect.set_options(timeout=60_000)
        yield page
        browser.close()


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
    page: Any, picture: Callable[[str], None]
) -> None:
    """One test: to start the server takes longer than everything else."""
    _build(page)
    _judge(page)
    _watch(page, picture)


def _build(page: Any) -> None:
    expect = playwright.expect
    # The graph renders.
    page.goto(_graph('key:"peps/*"'))
    for asset in (*STAGES, "report"):
        expect(page.get_by_text(asset, exact=True).first).to_be_visible()
    expect(page.locator("svg foreignObject")).to_have_count(len(STAGES) + 1)

    # A backfill of two years, from the graph of the four stages.
    page.goto(_graph('key:"peps/*" and not key:"peps/report"'))
    page.get_by_role("button", name="Materialize all").click()
    _choose_partitions(page, "[2001...2002]")
    page.get_by_role("button", name="Launch backfill").click()
    expect(page.get_by_text("Created backfill")).to_be_visible()

    # Meanwhile one partition of one asset, from its page.
    page.goto("/assets/peps/documents")
    page.get_by_role("button", name="Materialize").first.click()
    _choose_partitions(page, "2003")
    page.get_by_role("button", name="Launch 1 run").click()
    expect(page.get_by_text(re.compile("Launched run|Created backfill"))).to_be_visible()
    page.goto("/runs")  # the runs of a backfill are one row, which says Completed at the end
    expect(page.get_by_text("partition: 2003").first).to_be_visible()
    _comes(page, "Success")

    # The last stage of the backfill has come to its last year.
    page.goto("/assets/peps/vector_index")
    _comes(page, "2002")


def _judge(page: Any) -> None:
    """Each check of the run is there, green, with its numbers."""
    expect = playwright.expect
    for asset, checks in CHECKS.items():
        page.goto(f"/assets/peps/{asset}?view=checks")
        expect(page.get_by_text(f"Checks ({len(checks)})")).to_be_visible()
        expect(page.get_by_text(re.compile("^Succeeded"))).to_have_count(len(checks))
    page.goto("/assets/peps/embeddings?view=checks&checkDetail=throughput")
    expect(page.get_by_text("min_chunks_per_second").first).to_be_visible()
    expect(page.get_by_text("runs_compared").first).to_be_visible()


def _watch(page: Any, picture: Callable[[str], None]) -> None:
    expect = playwright.expect
    # Dagster plots the numbers of the partitions.
    page.goto("/assets/peps/embeddings")
    page.get_by_text("Plots", exact=True).click()
    expect(page.get_by_text("chunks_per_second", exact=True)).to_be_visible()
    page.wait_for_function(_SOMETHING_IS_DRAWN)
    picture("plots")

    # The report, with its pictures.
    page.goto("/assets/peps/report")
    page.get_by_role("button", name="Materialize").first.click()
    expect(page.get_by_text("Launched run")).to_be_visible()
    _comes(page, "[Show Markdown]")
    page.get_by_text("[Show Markdown]").click()
    images = page.locator("img[src^='data:image/svg+xml']")
    expect(images).to_have_count(3)
    page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth > 500)")
    images.nth(0).scroll_into_view_if_needed()
    picture("report_in_dagster")

    page.set_viewport_size({"width": 1900, "height": 600})
    page.goto(_graph('key:"peps/*"'))
    page.get_by_text("Hide navigation").click()
    page.wait_for_timeout(3000)  # for the picture alone: the graph moves into its place
    picture("assets")


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


def _comes(page: Any, text: str) -> None:
    """Waits for what a run will bring; a page that missed the news is loaded again."""
    deadline = time.monotonic() + WAIT_SECONDS
    found = page.get_by_text(text, exact=True).first
    while True:
        try:
            return playwright.expect(found).to_be_visible(timeout=10_000)
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            page.reload()
