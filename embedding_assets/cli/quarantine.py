"""`embedding-assets quarantine`: what was refused, and why."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedding_assets.cli.terminal import AsJson, console, errors_for_people, plain, print_rows

if TYPE_CHECKING:
    import pyarrow as pa

    from embedding_assets.artifacts.quarantine import QuarantineReason

_SHOWN = 20


def quarantine(
    collection: Annotated[
        str | None,
        typer.Argument(help="The collection; may be left out if there is one."),
    ] = None,
    partition: Annotated[
        str | None,
        typer.Option(
            help="FIRST...LAST, or one partition; by default all. What belongs to no partition is "
            "shown too, if its file is read for them.",
            metavar="RANGE",
        ),
    ] = None,
    reason: Annotated[
        str | None, typer.Option(help="Only what was refused for this reason.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=0, help=f"How many entries are listed; by default {_SHOWN}, with --json all."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what the last runs refused: how much for which reason, then record by record."""
    import embedding_assets as ea

    with errors_for_people():
        opened = ea.open(collection)
        reasons = opened.quarantine_reasons(partition)
        asked = [one for one in reasons if reason in (None, one.reason)]
        entries = opened.quarantine(partition, reason)
        if as_json:
            _print_json(opened.name, asked, entries, limit)
            return
        if not asked:
            others = ", ".join(f"{one.reason} ({one.records:,})" for one in reasons)
            console.print(plain(_nothing(opened.name, reason, others)))
            return
        print_reasons(opened.name, asked)
        shown = [*islice(_rows(entries), _SHOWN if limit is None else limit)]
    if shown:
        print_rows(shown, False, f"{opened.name}: entries")
    total = sum(one.records for one in asked)
    if len(shown) < total:
        console.print(f"{len(shown):,} of {total:,} entries are listed; --limit {total} lists all.")


def print_reasons(collection: str, reasons: "Sequence[QuarantineReason]") -> None:
    """A table of reasons, each with an example; nothing if there are none."""
    if reasons:
        rows = [
            {
                "stage": one.stage,
                "reason": one.reason,
                "records": f"{one.records:,}",
                "such as": one.example,
            }
            for one in reasons
        ]
        print_rows(rows, False, f"{collection}: refused")


def _rows(entries: "pa.RecordBatchReader") -> Iterator[dict[str, Any]]:
    for batch in entries:
        yield from batch.to_pylist()


def _print_json(
    collection: str,
    reasons: "Sequence[QuarantineReason]",
    entries: "pa.RecordBatchReader",
    limit: int | None,
) -> None:
    """One object, written entry by entry: there may be millions."""
    head = {"collection": collection, "reasons": [asdict(one) for one in reasons]}
    sys.stdout.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "entries": [')
    for number, row in enumerate(islice(_rows(entries), limit)):
        sys.stdout.write(("," if number else "") + "\n" + json.dumps(row, ensure_ascii=False))
    sys.stdout.write("\n]}\n")


def _nothing(collection: str, reason: str | None, others: str) -> str:
    if others:
        return f"Nothing of '{collection}' is refused as '{reason}'. Refused as: {others}."
    return f"Nothing of '{collection}' is refused."
