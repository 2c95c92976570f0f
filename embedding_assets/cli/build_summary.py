"""What `embedding-assets build` says when it has built: numbers, checks, and what to do next."""

import shlex
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from embedding_assets.cli.quarantine import print_reasons
from embedding_assets.cli.terminal import console, program
from resources.plain_text import plain

if TYPE_CHECKING:
    from embedding_assets.api import Collection
    from embedding_assets.artifacts.quarantine import QuarantineReason
    from embedding_assets.operations.build import Build, CheckOutcome

_MARKS = {"passed": ("✓", "green"), "WARN": ("!", "yellow"), "ERROR": ("✗", "bold red")}


def print_summary(collection: "Collection", built: "Build", again: str) -> None:
    """Prints what a build did.

    Args:
        collection: that was built.
        built: what was done.
        again: the command that was given.
    """
    if built.failure:
        _print_failure(built)
    elif built.status == "interrupted":
        console.print("Interrupted. What was finished is kept.", style="bold yellow")
    elif red := built.failed_checks("ERROR"):
        names = ", ".join(check.check for check in red)
        console.print(f"\nDone in {built.seconds:,.1f} s, but not well: {names}", style="bold red")
    else:
        console.print(f"\nDone in {built.seconds:,.1f} s", style="bold")
    if built.numbers:
        console.print(_numbers(built))
    print_reasons(built.collection, _refused(collection, built))
    _print_withheld(collection, built)
    name = plain(built.collection)
    if built.status == "succeeded":
        _print_hint("Search", f'{program()} search "..." -c {name}')
    else:
        _print_hint("To go on", plain(again))
    if built.runs:
        _print_hint("The whole log", _user_interface(), f", {_UI}/runs/{built.runs[-1]}")


_UI = "http://127.0.0.1:3000"


def _print_hint(what: str, command: str, more: str = "") -> None:
    console.print(Text.assemble(f"{what}: ", (command, "bold"), more), soft_wrap=True)


def _user_interface() -> str:
    """The command that opens Dagster's."""
    from embedding_assets.collection.environment import read_environment

    environment = read_environment()
    if (environment.project / "Makefile").exists():
        return "make ui"
    return f"DAGSTER_HOME={shlex.quote(str(environment.dagster_home))} dg dev"


def _print_failure(built: "Build") -> None:
    failure = built.failure
    assert failure is not None
    where = f" at {failure.asset}" if failure.asset else ""
    sentence = failure.sentence
    if failure.by_check:
        names = ", ".join(check.check for check in built.failed_checks("ERROR"))
        sentence = f"the check {names} ends the run."
    console.print(Text(f"\nFailed{where}: {_lines(sentence)}", "bold red"), soft_wrap=True)
    if failure.traceback:
        console.print(_lines(failure.traceback), soft_wrap=True, highlight=False)


def _lines(text: str) -> str:
    return "\n".join(map(plain, text.split("\n")))


def _numbers(built: "Build") -> Table:
    numbers = {asset: built.numbers.get(asset, {}) for asset in _ASSETS}
    documents, chunks, embeddings, index = numbers.values()
    documents = documents | {"quarantined": _quarantined(built)}
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row(
        "documents",
        f"{_documents(documents):,.0f} ({_counts(documents, _CHANGES)})",
    )
    if both := chunks or embeddings:
        distinct = f"{both.get('distinct_chunks', 0):,.0f} of them distinct"
        table.add_row("chunks", f"{both.get('chunks', 0):,.0f}, {distinct}")
    if embeddings:
        table.add_row(
            "cache", _counts(embeddings, {"cache_hits": "hits", "cache_misses": "misses"})
        )
        table.add_row("embedded", _embedded(embeddings, built))
    if index:
        table.add_row("index", _index(index, built))
    if built.checks:
        table.add_row("checks", _checks(built.checks))
    return table


_ASSETS = ("documents", "deduplicated_chunks", "embeddings", "vector_index")
_CHANGES = {
    name: name for name in ("added", "changed", "unchanged", "deleted")
} | {"quarantined": "refused"}  # fmt: skip


def _documents(documents: dict[str, float]) -> float:
    """How many there are now; runs over very many partitions tell their changes only."""
    if "documents" in documents:
        return documents["documents"]
    return sum(documents.get(name, 0) for name in ("added", "changed", "unchanged"))


def _counts(numbers: dict[str, float], names: dict[str, str]) -> str:
    return ", ".join(f"{numbers.get(name, 0):,.0f} {label}" for name, label in names.items())


def _embedded(embeddings: dict[str, float], built: "Build") -> str:
    if not embeddings.get("cache_misses"):
        return "nothing: every chunk was in the cache"
    said = f"{embeddings.get('embedded', 0):,.0f} chunks, {embeddings.get('tokens', 0):,.0f} tokens"
    throughput = [check.numbers for check in built.checks if check.check == "throughput"]
    if throughput and throughput[0].get("tokens_per_second"):
        said += f", {throughput[0]['tokens_per_second']:,.0f} tokens/s"
    said += f", {embeddings.get('errors', 0):,.0f} errors"
    if embeddings.get("dollars"):
        said += f", ${embeddings['dollars']:,.4f}"
    if embeddings.get("fallback_vectors"):
        said += f", {embeddings['fallback_vectors']:,.0f} vectors of the fallback"
    return said


def _index(index: dict[str, float], built: "Build") -> str:
    changes = {"rows_written": "written", "rows_removed": "removed"}
    known = {name: label for name, label in changes.items() if name in index}
    rows = [check.numbers.get("rows_in_index") for check in built.checks]
    (total,) = [number for number in rows if number is not None][:1] or [index.get("rows", 0)]
    return f"{total:,.0f} rows ({_counts(index, known)})"


def _checks(checks: "list[CheckOutcome]") -> Table:
    table = Table.grid(padding=(0, 1))
    for one in checks:
        mark, style = _MARKS["passed" if one.passed else one.severity]
        said = "dim" if one.passed else style
        table.add_row(Text(mark, style), one.check, Text(plain(one.description), said))
    return table


def _refused(collection: "Collection", built: "Build") -> "list[QuarantineReason]":
    """Why something was refused."""
    some = _quarantined(built) or built.numbers.get("embeddings", {}).get("errors")
    return collection.quarantine_reasons(built.partitions) if some else []


def _quarantined(built: "Build") -> float:
    """Records; how many belong to no partition is in the numbers of the check alone."""
    unplaced = [check.numbers.get("quarantined_of_no_partition", 0) for check in built.checks]
    return built.numbers.get("documents", {}).get("quarantined", 0) + max(unplaced, default=0)


def _withheld(collection: "Collection", built: "Build") -> dict[str, int]:
    some = built.numbers.get("documents", {}).get("deletions_withheld")
    return collection.withheld(built.partitions) if some else {}


def _print_withheld(collection: "Collection", built: "Build") -> None:
    from embedding_assets.artifacts.withheld import as_range

    if withheld := _withheld(collection, built):
        name, partitions = plain(built.collection), plain(as_range(withheld))
        documents = sum(withheld.values())
        console.print(f"The deletion of {documents:,} documents is withheld.", style="yellow")
        _print_hint(
            "If the source is right, agree, and build again",
            f"{program()} accept {name} --partition {partitions}",
        )


def print_change(collection: "Collection", built: "Build") -> None:
    """Prints what a build did in a line, and more only of what went wrong."""
    documents, embeddings, index = (
        built.numbers.get(asset, {}) for asset in ("documents", "embeddings", "vector_index")
    )
    first, last = built.partitions[0], built.partitions[-1]
    changes = {name: label for name, label in _CHANGES.items() if documents.get(name)}
    console.print(
        f"{datetime.now():%H:%M:%S} {plain(first if first == last else f'{first}...{last}')}: "
        f"documents: {_counts(documents, changes) or 'none'}; "
        f"chunks: {embeddings.get('embedded', 0):,.0f} embedded; "
        f"index: {_index(index, built)}; {built.seconds:,.1f} s",
        soft_wrap=True,
    )
    if built.failure:
        _print_failure(built)
    if failed := [check for check in built.checks if not check.passed]:
        console.print(_checks(failed))
    print_reasons(built.collection, _refused(collection, built))
    _print_withheld(collection, built)


def as_json_object(collection: "Collection", built: "Build") -> dict[str, Any]:
    """All of it, for machines."""
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
        "refused": [asdict(reason) for reason in _refused(collection, built)],
        "deletions_withheld": _withheld(collection, built),
        "failure": asdict(built.failure) if built.failure else None,
    }
