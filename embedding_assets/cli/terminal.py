"""What the commands of `embedding-assets` print, for people and for machines."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from resources.errors import EmbeddingAssetsError, not_permitted
from resources.plain_text import plain

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
console = Console(markup=False, emoji=False)
"""Takes nothing for markup, since most of what it prints comes from outside: styles are given as
`Text` or as `style`."""


def print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool, title: str = "") -> None:
    """Prints a table, or a JSON list of objects."""
    if as_json:
        print_json(rows)
        return
    table = Table(title=title, title_justify="left")
    for column in rows[0] if rows else ():
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(plain("–" if value is None else str(value)) for value in row.values()))
    console.print(table)


def print_json(value: Any) -> None:
    """JSON for machines: times are in ISO 8601, and characters as they are."""
    json.dump(value, sys.stdout, indent=2, default=_as_json, ensure_ascii=False)
    sys.stdout.write("\n")


def _as_json(value: Any) -> str:
    return value.isoformat() if isinstance(value, date | time) else str(value)


def warn(text: str) -> None:
    """A warning beside the output, which stays as it is for machines."""
    typer.secho(_plain_lines(text), fg="yellow", err=True)


def _plain_lines(text: str) -> str:
    return "\n".join(map(plain, text.split("\n")))


def program() -> str:
    """This program as it was called, so that a command which it shows works when it is copied."""
    name, called = "embedding-assets", sys.argv[0]
    if Path(called).name != name or shutil.which(name) == called:
        return name
    return called


def is_terminal(as_json: bool) -> bool:
    """Whether somebody watches, so that progress may be shown."""
    return console.is_terminal and not as_json


@contextmanager
def errors_for_people() -> Iterator[None]:
    """What can go wrong ends in one sentence; only a bug of ours ends in a traceback."""
    try:
        yield
    except (EmbeddingAssetsError, OSError) as error:
        said = str(error) if isinstance(error, EmbeddingAssetsError) else not_permitted(error)
        if said is None:
            raise
        typer.secho(f"Error: {_plain_lines(said)}", fg="red", err=True)
        raise typer.Exit(1) from error
