"""A browser that is installed already, without a window."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
NO_BROWSER = "no Chromium or Chrome on PATH; on Debian and Ubuntu: apt-get install chromium"
FLAGS = (
    "--no-sandbox",  # it needs privileges that a container does not give
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def launched(**page: Any) -> Iterator[Any]:
    """A page of it; the test is skipped where there is no browser.

    Args:
        page: options of Playwright's `new_page`.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="`pip install playwright`")
    if BROWSER is None:
        pytest.skip(NO_BROWSER)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser.new_page(**page)
        browser.close()
