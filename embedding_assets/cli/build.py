"""`embedding-assets build`: brings a collection's index up to date, and says what happened."""

import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from embedding_assets.cli.build_progress import own_stderr, progress
from embedding_assets.cli.build_summary import as_json_object, print_change, print_summary
from embedding_assets.cli.interrupts import answering_interrupts
from embedding_assets.cli.terminal import console, errors_for_people, plain, program

if TYPE_CHECKING:
    from embedding_assets.api import Collection
    from embedding_assets.operations.build import Build

_FAILED, _CHECK_FAILED, _INTERRUPTED = 1, 3, 130
"""Exit statuses; 0: all is well, 2: the command is not one."""


def build(
    collection: Annotated[
        str | None,
        typer.Argument(help="The collection; may be left out if there is one."),
    ] = None,
    partition_range: Annotated[
        str | None,
        typer.Argument(
            help="FIRST...LAST, or one partition; `latest` is the current one of those by time; by "
            "default all.",
            metavar="RANGE",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 also when a check only warns.")
    ] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Go on: whenever documents are new, changed or deleted, build the partitions that "
            "they touch, until Ctrl-C.",
        ),
    ] = False,
    every: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two looks at the source, with --watch.")
    ] = 5.0,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print what happened as JSON, for machines; with --watch a line a build."
        ),
    ] = False,
) -> None:
    """Bring a collection's index up to date: read, split, embed what is new, and index it.

    Runs the collection's four assets through Dagster, in this process; its UI shows the run. What
    did not change is not embedded again. Progress goes to stderr, what happened to stdout.

    Exit status: 0 if all is well; 1 if the run failed; 2 if the command is wrong; 3 if a check
    failed with severity ERROR; 130 after Ctrl-C or SIGTERM: what was finished is kept, and the
    same command goes on.
    """
    given = [collection, partition_range, "--watch" if watch else None]
    again = shlex.join([program(), "build", *filter(None, given)])
    with _interruptible(again), errors_for_people():
        opened, built = _build(collection, partition_range)
        if as_json:
            text = json.dumps(as_json_object(opened, built), indent=None if watch else 2)
            sys.stdout.write(text + "\n")
        else:
            print_summary(opened, built, again)
        if watch and built.status != "interrupted":
            sys.stdout.flush()
            failed = [built.partitions] if built.status == "failed" else []
            _watch(opened, partition_range, failed, every, as_json)
    raise typer.Exit(_status(built, strict))


def _build(name: str | None, partitions: str | None) -> "tuple[Collection, Build]":
    with own_stderr() as stderr, progress(stderr, name) as watcher:
        import embedding_assets as ea

        opened = ea.open(name)
        with answering_interrupts(stderr):
            return opened, opened.build(partitions, watcher=watcher)


def _status(built: "Build", strict: bool) -> int:
    if built.status == "interrupted":
        return _INTERRUPTED
    if built.failure and not built.failure.by_check:
        return _FAILED
    red = built.failure or built.failed_checks("ERROR") or (strict and built.failed_checks("WARN"))
    return _CHECK_FAILED if red else 0


def _watch(
    opened: "Collection",
    partitions: str | None,
    failed: list[list[str]],
    every: float,
    as_json: bool,
) -> None:
    """Builds what changes, and then what has `failed` too, until somebody interrupts."""
    if not as_json:
        console.print(
            f"\nWatching {plain(opened.settings.source.path)}, every {every:g} s; Ctrl-C ends it.",
            style="bold",
        )
    with opened.watching(partitions) as changes, own_stderr() as stderr:
        while True:
            if changed := changes():
                runs, failed = [*(one for one in failed if one not in changed), *changed], []
                for run in runs:
                    shown = progress(stderr, opened.name, passing=True)
                    with shown as watcher, answering_interrupts(stderr):
                        built = opened.build(run, watcher=watcher)
                    _tell_change(opened, built, as_json)
                    if built.status == "failed":
                        failed.append(run)
            time.sleep(every)


def _tell_change(opened: "Collection", built: "Build", as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(as_json_object(opened, built)) + "\n")
        sys.stdout.flush()
    else:
        print_change(opened, built)
    if built.status == "interrupted":
        raise KeyboardInterrupt


@contextmanager
def _interruptible(again: str) -> Iterator[None]:
    """Between runs, Ctrl-C and SIGTERM end the command in order too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        typer.secho(f"Interrupted. To go on: {plain(again)}", fg="yellow", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)
