"""What the commands of `embedding-assets` print, for people and for machines."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from resources.errors import EmbeddingAssetsError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
console = Console()


def print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool, title: str = "") -> None:
    """Prints a table, or a JSON list of objects."""
    if as_json:
        json.dump(rows, sys.stdout, indent=2, default=str, ensure_ascii=False)
        sys.stdout.write("\n")
        return
    table = Table(title=title, title_justify="left")
    for column in rows[0] if rows else ():
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(plain(str(value)) for value in row.values()))
    console.print(table)


def plain(text: str) -> str:
    """Text of documents is not markup of ours, nor may it steer the terminal."""
    from rich.markup import escape

    return escape("".join(c for c in text if c.isprintable() or c == "\n"))


def is_terminal(as_json: bool) -> bool:
    """Whether somebody watches, so that progress may be shown."""
    return console.is_terminal and not as_json


@contextmanager
def errors_for_people() -> Iterator[None]:
    """What can go wrong ends in one sentence; only a bug of ours ends in a traceback."""
    try:
        yield
    except EmbeddingAssetsError as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        raise typer.Exit(1) from error
