"""Runs a collection's assets over a range of partitions in a process that is killed on the way.

All is as it ships, instance and executor too, but for the fake embedder, which keeps a journal.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from embedding_assets.runs import grouping, range_run
from resources.artifact_stores.files import FileArtifactStore
from resources.caches.duckdb import DuckDBEmbeddingCache
from resources.vector_stores.lancedb import LanceDBVectorStore
from tests.support.fakes import CountingEmbedder
from tests.support.forks import FORKS
from tests.support.instance import shipped_instance
from tests.support.pipeline import ASSETS, Pipeline

FIRST, LAST = "2020", "2023"
FLUSH_SIZE = 3
INTERRUPTED = 3
"""Exit status of a run that did not succeed."""


def pipeline(folder: Path, source: Path) -> Pipeline:
    """Four yearly partitions; state, journal and source are files."""
    return Pipeline(
        folder,
        str(source),
        embedder=CountingEmbedder(journal=str(folder / "journal")),
        settings={
            "source": {"fields": {"timestamp": "created"}},
            "partitions": {"by": "year", "start": "2020-01-01"},
            "embedder": {"flush_size": FLUSH_SIZE},
        },
    )


def job(folder: str, source: str) -> dg.JobDefinition:
    """All four assets of `pipeline`."""
    own = pipeline(Path(folder), Path(source))
    assets = dg.define_asset_job("all", [dg.AssetKey([own.name, asset]) for asset in ASSETS])
    return dg.Definitions.merge(own.definitions, dg.Definitions(jobs=[assets])).resolve_job_def(
        "all"
    )


def run_all(folder: Path, source: Path, instance: dg.DagsterInstance) -> dg.JobExecutionResult:
    """Runs the assets as Dagster's command line does."""
    return dg.execute_job(
        dg.build_reconstructable_job(
            __name__, "job", reconstructable_kwargs={"folder": str(folder), "source": str(source)}
        ),
        instance,
        tags={
            "dagster/asset_partition_range_start": FIRST,
            "dagster/asset_partition_range_end": LAST,
        },
        run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
    )


def kill_at(point: list[Any], kill: Callable[[], None]) -> None:
    """Has the process killed at a point.

    Args:
        point: ["write", asset, file name, moment], ["put", moment] or ["replace", moment], and then
            the number of the call: 1 is the first. Moments: "before" and "after" the step is
            durable; "during" (replace only) when a part of the rows has been handed over.
        kill: ends the process.
    """
    action, *details, call = point
    calls = iter(range(1, call + 1))

    def is_due() -> bool:
        return next(calls, None) == call

    if action == "write":
        asset, name, moment = details
        writing: Any = FileArtifactStore.writing

        @contextmanager
        def killed_writing(self: FileArtifactStore, key: str) -> Iterator[Path]:
            due = f"/{asset}/" in key and key.endswith(f"/{name}") and is_due()
            with writing(self, key) as path:
                yield path
                if due and moment == "before":
                    kill()
            if due and moment == "after":
                kill()

        FileArtifactStore.writing = killed_writing  # pyright: ignore[reportAttributeAccessIssue]
        return
    (moment,) = details
    owner: Any = {"put": DuckDBEmbeddingCache, "replace": LanceDBVectorStore}[action]
    original = getattr(owner, action)

    def killed(*arguments: Any, **named: Any) -> None:
        due = is_due()
        if due and moment == "before":
            kill()
        if due and moment == "during":
            resource, collection, space, rows = arguments
            arguments = (resource, collection, space, _killed_on_the_way(rows, kill))
        original(*arguments, **named)
        if due and moment == "after":
            kill()

    setattr(owner, action, killed)


def _killed_on_the_way(rows: pa.RecordBatchReader, kill: Callable[[], None]) -> Any:
    def batches() -> Iterator[pa.RecordBatch]:
        yield next(rows).slice(0, 1)
        kill()

    return pa.RecordBatchReader.from_batches(rows.schema, batches())


@dataclass(frozen=True)
class Orders:
    """What a run does, and when it ends.

    Attributes:
        folder: where its state is; what it prints goes into the file `output` in there.
        source: the documents.
        point: see `kill_at`.
        signal: sent at the point.
        small: partitions are handled as the small ones that they are, else as if each were large.
    """

    folder: Path
    source: Path
    point: list[Any]
    signal: signal.Signals
    small: bool


def run_killed(orders: Orders) -> int | None:
    """Runs all assets in a process of its own; returns its exit status."""
    process = FORKS.Process(target=_run, args=(orders,))
    process.start()
    process.join()
    return process.exitcode


def _run(orders: Orders) -> None:
    output = os.open(orders.folder / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    tempfile.tempdir = str(orders.folder / "tmp")
    kill_at(orders.point, lambda: os.kill(os.getpid(), orders.signal))
    if not orders.small:
        # As if each partition were large and took long.
        grouping._PARTITIONS_TOGETHER = 1
        range_run._RECORD_AT_ONCE_AFTER_SECONDS = 0.0
    with shipped_instance(orders.folder / "dagster") as instance:
        succeeded = run_all(orders.folder, orders.source, instance).success
    sys.exit(0 if succeeded else INTERRUPTED)
