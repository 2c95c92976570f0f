"""`embedding-assets`: its commands, each in the file of its name."""

import typer

from embedding_assets.cli.build import build
from embedding_assets.cli.cache import app as cache
from embedding_assets.cli.check import check
from embedding_assets.cli.indexes import collections, drop_index
from embedding_assets.cli.new import new
from embedding_assets.cli.plan import accept, plan
from embedding_assets.cli.quarantine import quarantine
from embedding_assets.cli.search import evaluate, search

app = typer.Typer(
    help="Build this project's collections, search and evaluate them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (
    new,
    check,
    build,
    search,
    plan,
    quarantine,
    accept,
    evaluate,
    collections,
    drop_index,
):
    app.command()(command)
app.add_typer(cache, name="cache")


def main() -> None:
    app()
