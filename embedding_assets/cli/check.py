"""`embedding-assets check`: what would fail later is told before anything is run."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from embedding_assets.cli.terminal import AsJson, console, errors_for_people, plain, print_json
from resources.errors import EmbeddingAssetsError, NotFoundError

if TYPE_CHECKING:
    from embedding_assets.operations.check import Finding

_SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}
_SUBJECT_WIDTH = 13


def check(
    collection: Annotated[
        str | None, typer.Argument(help="The collection; by default all of them.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check cheaply what would fail later: settings, source, first records, model, keys, stores.

    Nothing is changed, downloaded or embedded, no server of embeddings is asked and no key sent.
    Exit status: 1 if something is wrong (✗); what may be meant so is a warning (!).
    """
    findings = []
    with errors_for_people():
        about = None
        for finding in _findings(collection):
            findings.append(finding)
            if as_json:
                continue
            if len(findings) == 1 or finding.collection != about:
                about = finding.collection
                console.print(plain(about or "all collections"), style="bold")
            sign, style = _SIGNS[finding.status]
            subject = Text(f"  {sign} {finding.subject:{_SUBJECT_WIDTH}}", style)
            first, *others = finding.sentence.split("\n")
            console.print(subject, Text(plain(first)), soft_wrap=True)
            for line in others:
                console.print(Text(" " * (_SUBJECT_WIDTH + 5) + plain(line)), soft_wrap=True)
    wrong = sum(finding.status == "error" for finding in findings)
    if as_json:
        print_json([asdict(each) for each in findings])
    elif wrong:
        console.print(f"{wrong} of {len(findings)} checks found something wrong.")
    if wrong:
        raise typer.Exit(1)


def _findings(name: str | None) -> "Iterator[Finding]":
    from embedding_assets.api import loaded
    from embedding_assets.collection.environment import read_environment
    from embedding_assets.operations.check import Finding, check_collection, check_project

    try:
        environment = read_environment()
        available, broken = loaded()
    except EmbeddingAssetsError as error:
        yield Finding(None, "environment", "error", str(error))
        return
    if name is not None and name not in available and not broken:
        known = ", ".join(available) or "none"
        raise NotFoundError(f"There is no collection '{name}'. Collections: {known}.")
    if name is None or name not in available:
        for sentence in broken:
            yield Finding("not loaded", "settings", "error", sentence)
    for collection in available.values():
        if name in (None, collection.name):
            yield Finding(collection.name, "settings", "ok", "the YAML is valid")
            yield from check_collection(collection.settings, collection.resources)
    yield from check_project(environment)
