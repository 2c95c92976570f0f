"""`make docs`: every page is in the site, and to read it takes no other host."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkout import PROJECT, copy_checkout

pytest.importorskip("zensical", reason="`make docs` installs it, on Python 3.11 or newer")

LOADED = re.compile(r'<(?:script|img|iframe)[^>]* src="?([^" >]+)|<link[^>]* href="?([^" >]+)')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Path:
    project = copy_checkout(tmp_path_factory.mktemp("checkout") / "project", model_cache)
    (project / ".venv").symlink_to(sys.prefix)
    installed = ("-o", ".venv/.installed", "-o", ".venv/.installed-docs")
    done = subprocess.run(
        ["make", "docs", *installed],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project), "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return project / "site"


def test_every_page_is_in_the_site_and_in_its_navigation(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    docs = {page.with_suffix(".html").name for page in (PROJECT / "docs").glob("*.md")}
    for page in {f"docs/{name}" for name in docs} | {"CHANGELOG.html", "benchmarks/index.html"}:
        assert (site / page).is_file()
        assert f'href="./{page}"' in home, page


def test_a_reader_asks_no_other_host(site: Path) -> None:
    pages = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    assert len(pages) > 10
    loaded = {a or b for text in pages.values() for a, b in LOADED.findall(text)}
    assert any(one.endswith(".js") for one in loaded)
    assert {one for one in loaded if "//" in one} == set()
    # For a diagram in a page the site's script would ask one.
    assert not [page for page, text in pages.items() if 'class="mermaid' in text]
