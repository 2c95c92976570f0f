"""`embedding-assets new`: looks at data, and writes the YAML of a collection of them."""

import re
import shlex
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from embedding_assets.cli.terminal import (
    AsJson,
    console,
    errors_for_people,
    is_terminal,
    plain,
    print_json,
    print_rows,
    program,
)
from resources.errors import InvalidInputError

if TYPE_CHECKING:
    from embedding_assets.operations.propose import Proposal

_EXAMPLE = 60
_TEXT = 240
_WORDS = 6


def new(
    path: Annotated[
        str, typer.Argument(help="File, folder, glob or URL of the documents.", metavar="PATH")
    ],
    name: Annotated[
        str | None, typer.Option(help="The collection's name; by default from the path.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Write the file without asking.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look at the beginning of some data, propose a collection of them, and write its YAML.

    Shows which field is the id, the title, the text and the time, a document as it would be stored,
    and what would be refused and why. Nothing that is there is overwritten. With --json nothing is
    asked, and only --yes writes.
    """
    with errors_for_people():
        if name is not None and not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            raise InvalidInputError(
                "A name begins with a letter, and has letters, digits and underscores; "
                f"got {name!r}."
            )
        with console.status("Looking …") if is_terminal(as_json) else nullcontext():
            proposal, project, folder = _looked_at(path, name)
    file = folder / proposal.name / "defs.yaml"
    if not as_json:
        _show(proposal, path)
    if proposal.example is None:
        typer.secho("Error: None of these records would be stored.", fg="red", err=True)
        raise typer.Exit(1)
    shown = file.relative_to(project) if file.is_relative_to(project) else file
    if yes or (not as_json and typer.confirm(f"Write {shown}?", default=True)):
        with errors_for_people():
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("x", encoding="utf-8") as stream:
                stream.write(proposal.yaml)
    elif not as_json:
        console.print("Nothing was written.")
        return
    next_commands = _next(proposal)
    if as_json:
        _print_json(proposal, file, yes, next_commands)
    else:
        console.print(plain(f"Wrote {shown}. Next:"))
        for command in next_commands:
            console.print(Text(f"  {plain(command)}", "bold"), soft_wrap=True)


def _looked_at(path: str, name: str | None) -> "tuple[Proposal, Path, Path]":
    """What is proposed, the folder of the project, and that of its collections."""
    from dagster import ComponentTree

    from embedding_assets.collection.environment import read_environment
    from embedding_assets.operations.propose import propose

    project = read_environment().project
    folder = ComponentTree.for_project(project).defs_module_path
    if name is not None:  # it is told before the data are looked at
        _check_new(folder, name)
    proposal = propose(path, project, name)
    _check_new(folder, proposal.name)
    return proposal, project, folder


def _check_new(folder: Path, name: str) -> None:
    file = folder / name / "defs.yaml"
    there = [file] if file.parent.exists() else [*_files_with(folder, name)]
    if there:
        raise InvalidInputError(
            f"There is a collection '{name}' already, in {there[0]}: choose another name with "
            "--name, or change that file."
        )


def _files_with(folder: Path, name: str) -> Iterator[Path]:
    for file in folder.rglob("defs.yaml"):
        if re.search(rf"^\s+name:\s*['\"]?{name}['\"]?\s*(#|$)", file.read_text("utf-8"), re.M):
            yield file


def _show(proposal: "Proposal", path: str) -> None:
    sample = proposal.sample
    about = "" if sample.is_whole else "about " if proposal.are_all_listed else "more than "
    seen = "all were looked at" if sample.is_whole else f"{len(sample.found):,} were looked at"
    console.print(plain(f"{path}: {about}{sample.documents:,} records; {seen}."))
    roles = {field: part for part, field in proposal.settings.source.fields if field}
    print_rows(
        [
            {
                "field": column.path,
                "filled": f"{column.filled:.0%}",
                "example": _short(column.values[0] if column.values else None, _EXAMPLE),
                "becomes": roles.get(column.path, "metadata"),
            }
            for column in proposal.columns
        ],
        False,
        "Fields",
    )
    if example := proposal.example:
        rows = {
            "id": example.id,
            "title": example.title,
            "text": _short(example.text, _TEXT),
            "timestamp": example.timestamp and example.timestamp.isoformat(),
            "metadata": _short(example.metadata, _TEXT),
        }
        print_rows(
            [{"part": part, "value": value} for part, value in rows.items() if value],
            False,
            "A document as it would be stored",
        )
    refused = sum(one.records for one in proposal.refused)
    if refused:
        print_rows(
            [
                {"reason": one.reason, "records": f"{one.records:,}", "such as": one.example}
                for one in proposal.refused
            ],
            False,
            f"{refused:,} of {len(sample.found):,} records would be refused",
        )
    for note in proposal.notes:
        console.print(plain(f"- {note}"))
    console.print()
    for line in proposal.yaml.splitlines():
        console.print(Text(f"  {plain(line)}", "dim" if "#" in line else ""), soft_wrap=True)


def _short(value: Any, length: int) -> str:
    text = " ".join(str(value).split()) if value is not None else ""
    return text if len(text) <= length else text[:length] + "…"


def _next(proposal: "Proposal") -> list[str]:
    example = proposal.example
    assert example is not None
    question = " ".join((example.title or example.text).split()[:_WORDS])
    return [
        f"{program()} build {proposal.name}",
        f"{program()} search {shlex.quote(question)} -c {proposal.name}",
    ]


def _print_json(proposal: "Proposal", file: Path, written: bool, commands: list[str]) -> None:
    sample, example = proposal.sample, proposal.example
    found = {
        "collection": proposal.name,
        "file": str(file),
        "written": written,
        "yaml": proposal.yaml,
        "records": sample.documents,
        "records_are_estimated": not sample.is_whole,
        "records_seen": len(sample.found),
        "fields": proposal.settings.source.fields.model_dump(),
        "example": asdict(example) if example else None,
        "refused": [asdict(one) for one in proposal.refused],
        "notes": proposal.notes,
        "next": commands,
    }
    print_json(found)
