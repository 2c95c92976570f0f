"""The pages lead to files that exist, and CONTRIBUTING.md says how few of them a change touches."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PAGE = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CHANGES = re.findall(r"^\*\*(.+)\*\*\n\n((?:\|.*\n)+)", PAGE, re.M)


def named_files(text: str) -> dict[str, bool]:
    """Each path named, and whether it is still to be written."""
    found = re.findall(r"`([\w./-]+/[\w./-]*|[\w-]+\.(?:md|toml|txt))`( \(new\))?", text)
    return {path: bool(new) for path, new in found}


def test_every_file_that_it_names_exists_unless_it_is_new() -> None:
    named = named_files(PAGE)
    assert len(named) > 30
    assert {path for path, new in named.items() if (PROJECT / path).exists() == new} == set()


PAGES = [*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md"), *PROJECT.glob("benchmarks/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_every_file_of_code_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = {page.parent / link for link in re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", text)}
    named = {PROJECT / path for path, new in named_files(text).items() if not new}
    code = {path for path in named if path.suffix == ".py"}
    assert {path for path in links | code if not path.exists()} == set()


def test_it_walks_through_five_changes() -> None:
    assert len(CHANGES) == 5


@pytest.mark.parametrize(("change", "table"), CHANGES)
def test_a_change_touches_at_most_five_files(change: str, table: str) -> None:
    rows = table.splitlines()[2:]
    assert 1 <= len(rows) <= 5, change
    assert all(named_files(row.split("|")[1]) for row in rows)
