"""`embedding-assets plan` and `accept`: what a run would do, and to agree to what it would not."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from embedding_assets.cli.quarantine import print_reasons
from embedding_assets.cli.terminal import (
    AsJson,
    console,
    errors_for_people,
    is_terminal,
    plain,
    print_json,
    print_rows,
)

if TYPE_CHECKING:
    from embedding_assets.operations.plan import Plan


def plan(
    collection: Annotated[
        str | None,
        typer.Argument(help="The collection; may be left out if there is one."),
    ] = None,
    partition_range: Annotated[
        str | None,
        typer.Argument(help="FIRST...LAST, or one partition; by default all.", metavar="RANGE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run would do and cost: changes, texts to embed, tokens, dollars, time.

    Reads the source, splits and asks the cache; embeds nothing and changes nothing.
    """
    import embedding_assets as ea

    with errors_for_people():
        name = (opened := ea.open(collection)).name
        with _progress_lines(as_json):
            found = opened.plan(partition_range)
    if as_json:
        print_json({"collection": name, **asdict(found)})
        return
    rows = [
        {"partition": key, **{label: f"{n.get(name, 0):,}" for label, name in _PLANNED.items()}}
        for key, n in found.partitions.items()
        if any(n.get(name) for name in _WORK)
    ]
    if rows:
        print_rows(rows, False, f"{name}: partitions with something to do")
    console.print(_how_many(len(rows), len(found.partitions)))
    if found.refused:
        print_reasons(name, found.refused)
        refused = sum(one.records for one in found.refused)
        documents = sum(one["documents"] for one in found.partitions.values())
        console.print(
            f"{refused:,} records are refused, {found.unplaced:,} of them belong to no partition; "
            f"{documents:,} documents are there."
        )
    if found.withheld:
        console.print(plain(found.withheld))
    console.print(f"To embed: {found.texts:,} texts, {found.tokens:,} tokens{_costs(found)}.")


def accept(
    collection: Annotated[str, typer.Argument(help="The collection.")],
    partition: Annotated[
        str | None,
        typer.Option(
            help="FIRST...LAST, or one partition; without it, what is withheld is listed.",
            metavar="RANGE",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Agree to deletions that are withheld: the next run removes those documents."""
    import embedding_assets as ea
    from embedding_assets.artifacts.withheld import as_range

    with errors_for_people():
        opened = ea.open(collection)
        withheld = opened.accept_deletions(partition) if partition else opened.withheld()
    rows = [{"partition": key, "documents": documents} for key, documents in withheld.items()]
    documents = sum(withheld.values())
    if as_json:
        print_rows(rows, True)
        return
    if partition:
        console.print(
            f"The next run of {plain(partition)} removes {documents:,} documents that the source "
            "no longer has. Sensors that are on request it; `embedding-assets plan` shows it."
        )
        return
    if rows:
        print_rows(rows, False, f"{opened.name}: documents that the source no longer has, but stay")
    console.print(
        f"The deletion of {documents:,} documents is withheld. To agree, name the partitions: "
        f"`embedding-assets accept {opened.name} --partition {plain(as_range(withheld))}`."
        if rows
        else f"No deletions of '{opened.name}' are withheld."
    )


_PLANNED = {
    "added": "added",
    "changed": "changed",
    "deleted": "deleted",
    "withheld": "deletions_withheld",
    "refused": "quarantined",
    "chunks": "chunks",
    "to embed": "cache_misses",
    "tokens": "tokens_to_embed",
}
_WORK = ("added", "changed", "deleted", "deletions_withheld", "cache_misses")


def _how_many(some: int, whole: int) -> str:
    if not some:
        return f"Nothing to do in any of the {whole:,} partitions."
    if some == whole:
        return f"Something to do in each of the {whole:,} partitions."
    return f"Something to do in {some:,} of {whole:,} partitions; the others are up to date."


def _costs(found: "Plan") -> str:
    costs = f", ${found.dollars:,.4f}" if found.dollars else ""
    if found.tokens and found.seconds is None:
        return f"{costs}; how long that takes is known after the first run"
    if not found.tokens or found.seconds is None:
        return costs
    takes = f"about {found.seconds:,.0f} s" if found.seconds >= 1 else "less than a second"
    return f"{costs}; embedding alone takes {takes}"


@contextmanager
def _progress_lines(as_json: bool) -> Iterator[None]:
    """Shows the lines of a plan's log to somebody at a terminal."""
    log = logging.getLogger("embedding_assets.operations.plan")
    handler = logging.StreamHandler(sys.stderr) if is_terminal(as_json) else logging.NullHandler()
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
