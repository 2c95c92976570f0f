"""`embedding-assets build`: brings a collection's index up to date, and says what happened."""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from io import UnsupportedOperation
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from embedding_assets.cli.build_progress import shown
from embedding_assets.cli.build_summary import print_summary
from embedding_assets.cli.terminal import errors_for_people

if TYPE_CHECKING:
    from embedding_assets.api import Collection
    from embedding_assets.operations.build import Build

FAILED, CHECK_FAILED, INTERRUPTED = 1, 3, 130
"""Exit statuses; 0: all is well, 2: the command is not one."""


def build(
    collection: Annotated[
        str | None,
        typer.Argument(help="The collection; may be left out if there is one."),
    ] = None,
    partition_range: Annotated[
        str | None,
        typer.Argument(
            help="FIRST...LAST, or one partition; LAST may be `latest`; by default all.",
            metavar="RANGE",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 also when a check only warns.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what happened as JSON, for machines.")
    ] = False,
) -> None:
    """Bring a collection's index up to date: read, split, embed what is new, and index it.

    Runs the collection's four assets through Dagster, in this process; its UI shows the run. What
    did not change is not embedded again. Progress goes to stderr, what happened to stdout.

    Exit status: 0 if all is well; 1 if the run failed; 2 if the command is wrong; 3 if a check
    failed with severity ERROR; 130 after Ctrl-C (or SIGTERM): what was finished is kept, and the
    same command goes on.
    """
    again = shlex.join(["embedding-assets", "build", *filter(None, [collection, partition_range])])
    try:
        with errors_for_people(), _stderr() as stderr, shown(stderr, collection) as watcher:
            import embedding_assets as ea

            opened = ea.open(collection)
            built = opened.build(partition_range, watcher=watcher)
        _tell(opened, built, again, as_json)
    except KeyboardInterrupt:
        typer.secho("Interrupted before the run began.", fg="yellow", err=True)
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(_status(built, strict))


def _status(built: "Build", strict: bool) -> int:
    if built.status == "interrupted":
        return INTERRUPTED
    if built.failure and not built.failure.by_check:
        return FAILED
    red = built.failure or built.failed_checks("ERROR") or (strict and built.failed_checks("WARN"))
    return CHECK_FAILED if red else 0


def _tell(collection: "Collection", built: "Build", again: str, as_json: bool) -> None:
    if as_json:
        json.dump(_for_machines(built), sys.stdout, indent=2, default=str, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        print_summary(collection, built, again)


def _for_machines(built: "Build") -> dict[str, Any]:
    return {
        "collection": built.collection,
        "status": built.status,
        "partitions": built.partitions,
        "runs": built.runs,
        "started": built.started.isoformat(timespec="milliseconds"),
        "seconds": round(built.seconds, 3),
        "assets": {
            asset: {**numbers, "seconds": round(built.seconds_by_asset.get(asset, 0.0), 3)}
            for asset, numbers in built.numbers.items()
        },
        "checks": [asdict(check) for check in built.checks],
        "failure": asdict(built.failure) if built.failure else None,
    }


@contextmanager
def _stderr() -> Iterator[Console]:
    """Somebody's terminal, whatever becomes of stderr: while assets run, Dagster keeps what is
    written there as the run's own, and passes it on late."""
    try:
        own = os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding)
    except UnsupportedOperation:  # not a file, as in a test or a notebook
        yield Console(markup=False, emoji=False, highlight=False, stderr=True)
        return
    with own:
        yield Console(markup=False, emoji=False, highlight=False, file=own)
