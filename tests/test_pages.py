"""The pages name every setting and only files that exist, and CONTRIBUTING.md keeps its word."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from embedding_assets.collection.environment import Environment
from embedding_assets.collection.settings import CollectionSettings
from tests.support.checkout import PROJECT

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


def settings_within(annotation: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings of the models in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield from list(settings_within(field.annotation, f"{prefix}{name}.")) or [
                prefix + name
            ]
    for part in get_args(annotation):
        yield from settings_within(part, prefix)


def test_every_setting_and_every_variable_is_explained() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    settings = set(settings_within(CollectionSettings))
    assert {"embedder.tokenizer", "automation.reconcile_sensor.max_attempts"} <= settings
    unknown = {name for name in settings if not re.search(rf"\b{name.split('.')[-1]}\b", text)}
    variables = {name.upper() for name in Environment.model_fields}
    unknown |= {name for name in variables if not re.search(rf"`(EMBEDDING)?_{name}\b", text)}
    assert unknown == set()
