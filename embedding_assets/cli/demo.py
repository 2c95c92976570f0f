"""`make demo`: builds the sample collection with Dagster's own command line, and searches in it."""

import os
import shlex
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
from rich.table import Table
from rich.text import Text

from embedding_assets.cli.terminal import console, plain
from embedding_assets.collection.collection import CollectionAssets
from embedding_assets.collection.environment import read_environment
from resources.errors import EmbeddingAssetsError

_COLLECTION = "peps"
_QUERIES = (
    "How can I tell whether two dictionaries are equal regardless of order?",
    "Which proposal lets me write type hints for functions that take other functions?",
)


def main() -> None:
    project = read_environment().project
    os.environ.setdefault("DAGSTER_HOME", str(project / "dagster_home"))
    started = time.monotonic()
    instance = dg.DagsterInstance.get()
    before = _newest_run(instance)
    command = _command()
    console.print("Indexing 120 Python Enhancement Proposals with Dagster", style="bold")
    console.print(f"$ {shlex.join(command)}\n", style="dim", soft_wrap=True)
    status = _run(command, project)
    run_id = _newest_run(instance)
    if status or run_id is None or run_id == before:
        console.print("The run failed; its last lines are above.", style="red")
        sys.exit(status or 1)
    numbers, checks = _what_happened(instance, run_id)
    _print_summary(numbers, checks, time.monotonic() - started)
    for query in _QUERIES:
        search = ["embedding-assets", "search", query, "-c", _COLLECTION, "-k", "3"]
        console.print(f"\n$ {shlex.join(search)}", style="dim", soft_wrap=True)
        subprocess.run([_beside_python(search[0]), *search[1:]], check=True)
    console.print(
        Text.assemble(
            "\nSearch for something yourself: ",
            (f'.venv/bin/embedding-assets search "..." -c {_COLLECTION}', "bold"),
            "\nSee the assets, their checks and this run in Dagster's UI: ",
            ("make ui", "bold"),
            ", then open http://127.0.0.1:3000",
        )
    )


def _command() -> list[str]:
    from embedding_assets.definitions import defs

    documents = defs().resolve_assets_def(dg.AssetKey([_COLLECTION, "documents"]))
    assert documents.partitions_def is not None
    partitions = documents.partitions_def.get_partition_keys()
    return [
        "dagster",
        "asset",
        "materialize",
        "--select",
        f'key:"{_COLLECTION}/*"',
        "--partition-range",
        f"{partitions[0]}...{partitions[-1]}",
        "-m",
        "embedding_assets.definitions",
    ]


def _run(command: list[str], project: Path) -> int:
    """Runs Dagster; shows the progress lines of the assets, and everything if it fails."""
    last: list[str] = []
    with (
        subprocess.Popen(
            [_beside_python(command[0]), *command[1:]],
            cwd=project,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
        console.status("Starting Dagster ..."),
    ):
        assert process.stdout is not None
        for line in process.stdout:
            last = [*last[-60:], line]
            for progress in _progress(line):
                console.print(plain(progress), highlight=False)
    if process.returncode:
        sys.stderr.writelines(last)
    return process.returncode


def _progress(line: str) -> Iterator[str]:
    # time - dagster - LEVEL - job - run id - step - message
    fields = line.rstrip("\n").split(" - ")
    if len(fields) < 6:
        return
    level, step = fields[2], fields[5]
    if " INFO" in f" {level}" or "WARNING" in level:
        yield f"  {step.removeprefix(f'{_COLLECTION}__'):<20} {' - '.join(fields[6:])}"


def _newest_run(instance: dg.DagsterInstance) -> str | None:
    runs = instance.get_runs(limit=1)
    return runs[0].run_id if runs else None


def _what_happened(
    instance: dg.DagsterInstance, run_id: str
) -> tuple[dict[str, dict[str, Any]], list[tuple[str, bool]]]:
    """The numbers of each asset, summed over its partitions, and the results of the checks."""
    latest: dict[tuple[str, str | None], dg.AssetMaterialization] = {}
    checks = []
    for entry in instance.all_logs(run_id):
        event = entry.dagster_event
        if event is None:
            continue
        if event.is_step_materialization:
            materialization = event.step_materialization_data.materialization
            asset = materialization.asset_key.path[-1]
            latest[asset, materialization.partition] = materialization
        elif event.event_type_value == "ASSET_CHECK_EVALUATION":
            check = event.asset_check_evaluation_data
            checks.append((f"{check.asset_key.path[-1]}: {check.check_name}", check.passed))
    numbers: dict[str, dict[str, Any]] = defaultdict(lambda: defaultdict(float))
    for (asset, _), materialization in latest.items():
        for name, value in materialization.metadata.items():
            if isinstance(value.value, int | float):
                numbers[asset][name] += value.value
    return numbers, checks


def _print_summary(
    numbers: dict[str, dict[str, Any]],
    checks: Iterable[tuple[str, bool]],
    seconds: float,
) -> None:
    documents, chunks, embeddings, index = (numbers[asset] for asset in CollectionAssets.ASSETS)
    table = Table(title=f"\nDone in {seconds:.0f} s", title_justify="left", show_header=False)
    table.add_row(
        "documents",
        f"{documents['documents']:,.0f} ({documents['added']:.0f} added, "
        f"{documents['changed']:.0f} changed, {documents['unchanged']:.0f} unchanged, "
        f"{documents['deleted']:.0f} deleted, {documents['quarantined']:.0f} quarantined)",
    )
    table.add_row(
        "chunks", f"{chunks['chunks']:,.0f}, {chunks['distinct_chunks']:,.0f} of them distinct"
    )
    table.add_row(
        "cache", f"{embeddings['cache_hits']:,.0f} hits, {embeddings['cache_misses']:,.0f} misses"
    )
    if embeddings["embedded"]:
        rate = embeddings["tokens"] / embeddings["seconds_embedding"]
        embedded = (
            f"{embeddings['embedded']:,.0f} chunks, {embeddings['tokens']:,.0f} tokens, "
            f"{rate:,.0f} tokens/s, {embeddings['errors']:.0f} errors"
        )
    else:
        embedded = "nothing: every chunk was in the cache"
    table.add_row("embedded", embedded)
    table.add_row(
        "index",
        f"{index['rows']:,.0f} rows ({index['rows_written']:,.0f} written, "
        f"{index['rows_removed']:,.0f} removed)",
    )
    results = [
        Text.assemble(("✓", "green"), f" {n}") if ok else Text(f"✗ {n}", "red") for n, ok in checks
    ]
    table.add_row("checks", Text("\n").join(results))
    console.print(table)


def _beside_python(program: str) -> str:
    return str(Path(sys.executable).parent / program)


if __name__ == "__main__":
    try:
        main()
    except EmbeddingAssetsError as mistake:
        sys.exit(f"Error: {mistake}")
