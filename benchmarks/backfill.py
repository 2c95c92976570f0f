"""What a backfill over many small partitions costs, against four empty assets.

    python -m benchmarks.backfill [--quick] [--partitions 7300] [--documents 3] [--per-run 366]

Launches both backfills as the UI does, by GraphQL at a real webserver with a real daemon, under the
project's own dagster.yaml: first four assets that do nothing, then a collection with a fake
embedder. Each is killed once on the way, daemon and runs together, and the daemon is started again.
What the collection costs a partition is the orchestration: Dagster and pipeline without a model.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg

from benchmarks.measure import Line, print_tables, write_results
from embedding_assets.collection.collection import CollectionAssets
from tests.support.backfill_project import EMPTY, VARIABLE, partition_keys, write_corpus
from tests.support.dagster_server import DagsterServer, dagster_server
from tests.support.instance import shipped_instance

CORPUS = "corpus"
_DEADLINE = 4 * 3600.0


def measure(
    folder: Path, prefix: str, partitions: int, documents: int, per_run: int, kill: bool
) -> dict[str, Any]:
    """Runs one backfill to its end and returns what it cost."""
    folder.mkdir()
    write_corpus(folder / "corpus.jsonl", partitions, documents)
    orders = json.dumps({"folder": str(folder), "partitions_per_run": per_run})
    assets = [dg.AssetKey([prefix, name]) for name in CollectionAssets.ASSETS]
    with dagster_server(
        folder / "home", "tests.support.backfill_project", {VARIABLE: orders}
    ) as server:
        size_before = _size(server.home)
        started = time.monotonic()
        backfill = server.launch_backfill(assets, partition_keys(partitions))
        if kill:
            _kill_half_way(server, backfill)
        server.until(lambda: _ended(server, backfill), "the backfill ends", _DEADLINE)
        seconds = time.monotonic() - started
        status = server.backfill(backfill)
        size = _size(server.home) - size_before
    return {
        "seconds": seconds,
        "kilobytes": size / 1e3,
        "status": status["status"],
        "runs": Counter(run["status"] for run in status["runs"]),
        **_recorded(folder / "home", assets[-1]),
        **_embedded(folder / "journal"),
    }


def _kill_half_way(server: DagsterServer, backfill: str) -> None:
    def half_way() -> bool:
        runs = server.backfill(backfill)["runs"]
        finished = sum(run["status"] == "SUCCESS" for run in runs)
        return finished >= max(1, len(runs) // 2) and any(r["status"] == "STARTED" for r in runs)

    def half_way_or_over() -> bool:
        return half_way() or _ended(server, backfill)

    server.until(half_way_or_over, "half of the runs have succeeded", _DEADLINE)
    server.kill_daemon()
    server.start_daemon()


def _ended(server: DagsterServer, backfill: str) -> bool:
    status = server.backfill(backfill)["status"]
    return status.startswith(("COMPLETED", "FAILED", "CANCELED"))


def _size(home: Path) -> int:
    return sum(file.stat().st_size for file in home.rglob("*") if file.is_file())


def _recorded(home: Path, last: dg.AssetKey) -> dict[str, int]:
    with shipped_instance(home) as instance:
        return {"materialized": len(instance.get_materialized_partitions(last))}


def _embedded(journal: Path) -> dict[str, int]:
    texts = Counter(journal.read_text().split()) if journal.exists() else Counter()
    return {"texts": len(texts), "embedded_twice": texts.total() - len(texts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--partitions", type=int, default=7_300)
    parser.add_argument("--documents", type=int, default=3, help="in each partition")
    parser.add_argument("--per-run", type=int, default=366)
    parser.add_argument("--quick", action="store_true", help="few partitions")
    parser.add_argument("--no-kill", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.partitions, options.per_run = 120, 30
    # Else nobody would stop webserver and daemon.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    costs = {}
    with tempfile.TemporaryDirectory(prefix="backfill-") as folder:
        for name in (EMPTY, CORPUS):
            costs[name] = measure(
                Path(folder) / name,
                name,
                options.partitions,
                options.documents,
                options.per_run,
                not options.no_kill,
            )
            print(f"{name}: {costs[name]['seconds']:,.1f} s, {costs[name]['status']}", flush=True)
    rows = [
        {
            "assets": name,
            "seconds": cost["seconds"],
            "ms a partition": 1e3 * cost["seconds"] / options.partitions,
            "kB a partition": cost["kilobytes"] / options.partitions,
            "backfill": cost["status"],
            "runs": ", ".join(f"{n} {status}" for status, n in sorted(cost["runs"].items())),
            "partitions recorded": f"{cost['materialized']:,}",
            "texts embedded": f"{cost['texts']:,}",
        }
        for name, cost in costs.items()
    ]
    lines = judge(costs[EMPTY], costs[CORPUS], options.partitions, options.documents)
    tables = {f"A backfill of {options.partitions:,} partitions": rows}
    write_results("backfill", "A backfill over small partitions", tables, lines)
    print_tables({**tables, "Promises": [line.row() for line in lines]})


def judge(
    empty: dict[str, Any], corpus: dict[str, Any], partitions: int, documents: int
) -> list[Line]:
    """The promises, from what `measure` returned for the empty assets and for the collection."""
    succeeded = corpus["status"] == "COMPLETED_SUCCESS"
    recorded = corpus["materialized"] / partitions
    return [
        Line("share of the partitions recorded, no error", 1, recorded if succeeded else 0, ""),
        Line("share of the texts embedded", 1, corpus["texts"] / partitions / documents, ""),
        Line("texts embedded twice", 0, corpus["embedded_twice"], "", at_most=True),
        Line("time against empty assets", 1.3, corpus["seconds"] / empty["seconds"], at_most=True),
        Line(
            "event log against empty assets",
            1.3,
            corpus["kilobytes"] / empty["kilobytes"],
            at_most=True,
        ),
        Line(
            "orchestration, share of a partition of one minute",
            0.05,
            corpus["seconds"] / partitions / 60,
            "",
            at_most=True,
        ),
    ]


if __name__ == "__main__":
    main()
