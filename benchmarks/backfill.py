"""What a backfill over many small partitions costs, against four empty assets.

    python -m benchmarks.backfill [--partitions 7300] [--documents 3] [--per-run 366]

Launches both backfills as the UI does, by GraphQL at a real webserver with a real daemon, under the
project's own dagster.yaml: first four assets that do nothing, then a collection with a fake
embedder. Each is killed once on the way, daemon and runs together, and the daemon is started again.

Promises: no error; nothing embedded twice, but for at most the flushes under way when it was
killed; at most 1.3 times the time and the event log of the empty assets. And one that follows: what
the pipeline and Dagster cost beside the embedding is less than 5 % of a partition of one minute.
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

from embedding_assets.collection import Collection
from tests.backfill_project import EMPTY, VARIABLE, partition_keys, write_corpus
from tests.dagster_server import DagsterServer, dagster_server

PROMISE = 1.3
ORCHESTRATION = 0.05
FLUSH_SIZE = 1024
_DEADLINE = 4 * 3600.0


def measure(
    folder: Path, prefix: str, partitions: int, documents: int, per_run: int, kill: bool
) -> dict[str, Any]:
    """Runs one backfill to its end and returns what it cost."""
    folder.mkdir()
    write_corpus(folder / "corpus.jsonl", partitions, documents)
    orders = json.dumps({"folder": str(folder), "partitions_per_run": per_run})
    assets = [dg.AssetKey([prefix, name]) for name in Collection.ASSETS]
    with dagster_server(folder / "home", "tests.backfill_project", {VARIABLE: orders}) as server:
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
    with dg.DagsterInstance.from_config(str(home)) as instance:
        return {"materialized": len(instance.get_materialized_partitions(last))}


def _embedded(journal: Path) -> dict[str, int]:
    texts = Counter(journal.read_text().split()) if journal.exists() else Counter()
    return {"texts": len(texts), "embedded_twice": texts.total() - len(texts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--partitions", type=int, default=7_300)
    parser.add_argument("--documents", type=int, default=3, help="in each partition")
    parser.add_argument("--per-run", type=int, default=366)
    parser.add_argument("--no-kill", action="store_true")
    options = parser.parse_args()
    # Else nobody would stop webserver and daemon.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    results = {}
    with tempfile.TemporaryDirectory(prefix="backfill-") as folder:
        for name in (EMPTY, "corpus"):
            results[name] = measure(
                Path(folder) / name,
                name,
                options.partitions,
                options.documents,
                options.per_run,
                not options.no_kill,
            )
            cost = results[name]
            print(
                f"{name:8} {cost['seconds']:8.1f} s  "
                f"{1e3 * cost['seconds'] / options.partitions:7.1f} ms and "
                f"{cost['kilobytes'] / options.partitions:6.1f} kB a partition  {cost['status']}  "
                f"{dict(cost['runs'])}  {cost['materialized']} partitions recorded",
                flush=True,
            )
    empty, corpus = results[EMPTY], results["corpus"]
    time_ratio = corpus["seconds"] / empty["seconds"]
    size_ratio = corpus["kilobytes"] / empty["kilobytes"]
    share = corpus["seconds"] / options.partitions / 60
    print(f"time   {time_ratio:.2f} times that of empty assets (promise: {PROMISE})")
    print(f"events {size_ratio:.2f} times those of empty assets (promise: {PROMISE})")
    print(f"texts  {corpus['texts']:,} embedded, {corpus['embedded_twice']} of them twice")
    print(f"share  {share:.2%} of a partition of one minute (promise: {ORCHESTRATION:.0%})")
    kept = (
        corpus["status"] == "COMPLETED_SUCCESS"
        and corpus["materialized"] == options.partitions
        and corpus["texts"] == options.partitions * options.documents
        and corpus["embedded_twice"] <= FLUSH_SIZE
        and time_ratio <= PROMISE
        and size_ratio <= PROMISE
        and share <= ORCHESTRATION
    )
    raise SystemExit(0 if kept else "A promise does not hold.")


if __name__ == "__main__":
    main()
