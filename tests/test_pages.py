"""The pages tell of all there is, links lead somewhere, and CONTRIBUTING.md keeps its word."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from typer.core import TyperGroup
from typer.main import get_command

from docs import make_reference
from embedding_assets.cli.main import app
from embedding_assets.collection.environment import Environment
from embedding_assets.collection.settings import CollectionSettings
from embedding_assets.service.settings import ServiceSettings
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


MAKEFILE = (PROJECT / "Makefile").read_text(encoding="utf-8")
_PROGRAM = get_command(app)
assert isinstance(_PROGRAM, TyperGroup)
COMMANDS = _PROGRAM.commands
PAGES = [*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md"), *PROJECT.glob("benchmarks/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_every_file_of_code_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = {page.parent / link for link in re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", text)}
    named = {PROJECT / path for path, new in named_files(text).items() if not new}
    code = {path for path in named if path.suffix == ".py"}
    assert {path for path in links | code if not path.exists()} == set()


def test_every_curl_that_sends_something_says_that_it_is_json() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES).replace("\\\n", " ")
    sent = [line for line in re.findall(r"^ *curl .*", text, re.M) if " -d " in line]
    assert sent
    assert [line for line in sent if " -H 'content-type: application/json' " not in line] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_a_sentence_is_one(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for said in re.findall(r"`((?:make|python -m|embedding-assets) [^`]+)`", text):
        program, name, *rest = shlex.split(said.removeprefix("python "))
        if program == "make":
            assert re.search(rf"^{name}:", MAKEFILE, re.M), said
        elif program == "-m":
            assert (PROJECT / name.replace(".", "/")).with_suffix(".py").exists(), said
        else:
            command = COMMANDS[name]
            if isinstance(command, TyperGroup) and rest:
                command = command.commands[rest[0]]
            options = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in rest if word.startswith("-")} <= options, said


def test_it_walks_through_five_changes() -> None:
    assert len(CHANGES) == 5


@pytest.mark.parametrize(("change", "table"), CHANGES)
def test_a_change_touches_at_most_five_files(change: str, table: str) -> None:
    rows = table.splitlines()[2:]
    assert 1 <= len(rows) <= 5, change
    assert all(named_files(row.split("|")[1]) for row in rows)


def described(model: type[BaseModel]) -> Iterator[str]:
    """The names of all settings of a model and of those within it; each has a description."""
    for name, field in model.model_fields.items():
        inner = list(models_within(field.annotation))
        assert field.description or inner, f"{model.__name__}.{name} says nothing"
        yield from [name] if not inner else (one for each in inner for one in described(each))


def models_within(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models_within(part)


def test_the_page_of_settings_tells_of_every_setting_and_every_variable() -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", make_reference.settings_page(), re.M))
    settings = {*described(CollectionSettings)}
    assert {"tokenizer", "max_attempts", "when"} <= settings
    assert settings == {name for name in told if not name.startswith("EMBEDDING_")}
    variables = {f"EMBEDDING_{name.upper()}" for name in described(Environment)}
    variables |= {f"EMBEDDING_SERVE_{name.upper()}" for name in described(ServiceSettings)}
    assert variables == {name for name in told if name.startswith("EMBEDDING_")}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="typer is older there, and words it so")
@pytest.mark.parametrize("page", ["settings.md", "command_line.md"])
def test_pages_that_are_made_from_the_code_say_what_it_says(page: str) -> None:
    file = PROJECT / "docs" / page
    made = make_reference.pages()[file]
    assert file.read_text(encoding="utf-8") == made, "run `python -m docs.make_reference`"
