"""`embedding-assets`: its commands, each in the file of its name."""

from importlib.metadata import version
from typing import Annotated

import typer

from embedding_assets.cli.build import build
from embedding_assets.cli.cache import app as cache
from embedding_assets.cli.check import check
from embedding_assets.cli.indexes import collections, drop_index
from embedding_assets.cli.keys import app as keys
from embedding_assets.cli.new import new
from embedding_assets.cli.plan import accept, plan
from embedding_assets.cli.quarantine import quarantine
from embedding_assets.cli.search import evaluate, search
from embedding_assets.cli.serve import serve
from embedding_assets.cli.worker import worker
from resources.garbage_collection import collect_garbage_rarely

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # it fills lines, however wide the terminal is
)
_COMMANDS = {
    "Set up and build": (new, check, build),
    "Ask": (search, evaluate),
    "Look": (plan, quarantine, collections),
    "Decide": (accept, drop_index),
    "Serve": (serve, worker),
}
for panel, commands in _COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(cache, name="cache", rich_help_panel="Decide")
app.add_typer(keys, name="keys", rich_help_panel="Serve")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"embedding-assets {version('embedding-assets')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Keep a vector index of a document archive up to date, and search in it.

    From a folder to the first answer:

    - `embedding-assets new FOLDER` looks at the documents, and proposes a collection of them
    - `embedding-assets build NAME` indexes it
    - `embedding-assets search "a question" -c NAME` asks it
    """


def main() -> None:
    collect_garbage_rarely()
    app()
