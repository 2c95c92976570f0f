"""Compares what a project holds with what its archives say, by other means than its own."""

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import psutil
import pyarrow.parquet as pq

import embedding_assets as ea
from embedding_assets.collection.collection import CollectionAssets
from resources.embedders.local_model.model_files import find_model
from resources.identity.content_hash import content_hash
from resources.vector_stores.base import row_schema
from tests.campaigns.archive import Archive, Entry
from tests.support.instance import shipped_instance
from tests.support.models import cosines, sentence_transformer

_LEAST_COSINE = 0.999
_DISK_TIMES, _DISK_SPARE = 3, 2_000_000
"""What may be taken beyond what is needed: so many times, and so many bytes."""
_WHOLE_RUN = ("embedded", "rows_written", "rows_removed")
"""What a run that has nothing to do reports as 0."""


@dataclass(frozen=True)
class Place:
    """The folders of a campaign: DAGSTER_HOME, all outputs, and temporary files."""

    home: Path
    data: Path
    temporary: Path


class Vectors:
    """What sentence-transformers itself makes of texts, in fp32; each text is embedded once."""

    def __init__(self, model: str) -> None:
        self._folder = str(find_model(model))
        self._known: dict[str, np.ndarray] = {}

    def of(self, texts: list[str]) -> np.ndarray:
        new = [*dict.fromkeys(text for text in texts if text not in self._known)]
        if new:
            model = sentence_transformer(self._folder)
            made = model.encode(new, show_progress_bar=False)
            self._known.update(zip(new, made, strict=True))
        return np.stack([self._known[text] for text in texts])


def audit_index(archive: Archive, vectors: Vectors) -> Iterator[str]:
    """A sentence for each thing in a collection that is not as its archive says."""
    collection = ea.open(archive.name)
    rows = stored_rows(collection)
    by_document = defaultdict(list)
    for row in rows:
        by_document[row["document_id"]].append(row)
    expected = archive.stored
    yield from _differ("index", {*by_document}, {*expected})
    ids = collection.documents().read_all()["id"].to_pylist()
    yield from _differ("documents", {*ids}, {*expected})
    if len(ids) != len({*ids}):
        yield "documents: an id is there twice"
    yield from _differ("quarantine", _quarantined(collection), archive.refused)
    for id in expected.keys() & by_document.keys():
        chunks = sorted(by_document[id], key=lambda row: row["chunk_number"])
        for wrong in _wrong_with(archive, expected[id], chunks):
            yield f"{id}: {wrong}"
    if rows:
        own = np.stack([row["vector"] for row in rows])
        independent = vectors.of([row["context"] + row["text"] for row in rows])
        for row, cosine in zip(rows, cosines(own, independent), strict=True):
            if not cosine > _LEAST_COSINE:
                yield f"{row['document_id']} {row['chunk_number']}: cosine {cosine:.4f}"


def stored_rows(collection: ea.Collection) -> list[dict[str, Any]]:
    """All rows of the collection's index, by chunk id."""
    space = collection.resources.embedder.space
    columns = row_schema(space).names
    batches = collection.resources.store.scan(collection.name, space, columns)
    return sorted((r for b in batches for r in b.to_pylist()), key=lambda row: row["chunk_id"])


def audit_plan(archive: Archive) -> Iterator[str]:
    """What a run would still do, where there should be nothing."""
    plan = ea.open(archive.name).plan()
    for partition, numbers in plan.partitions.items():
        for name in ("added", "changed", "deleted", "cache_misses"):
            if numbers[name]:
                yield f"plan: {partition}: {name} {numbers[name]}"
    if plan.texts:
        yield f"plan: {plan.texts} texts to embed"


def audit_idle_run(place: Place) -> Iterator[str]:
    """What the newest run did, where there was nothing to do."""
    with shipped_instance(place.home) as instance:
        (run,) = instance.get_runs(limit=1)
        for entry in instance.all_logs(run.run_id):
            event = entry.dagster_event
            if event is None or not event.is_step_materialization:
                continue
            materialization = event.step_materialization_data.materialization
            for name in _WHOLE_RUN:
                number = materialization.metadata.get(name)
                if number is not None and number.value:
                    yield (
                        f"a run with nothing to do: {materialization.asset_key.to_user_string()} "
                        f"{materialization.partition} {name} {number.value}"
                    )


def audit_surroundings(place: Place) -> Iterator[str]:
    """What runs that are over left behind: in Dagster, on disk, as processes."""
    with shipped_instance(place.home) as instance:
        for run in instance.get_runs(limit=20):
            if not run.is_finished:
                yield f"run {run.run_id} is {run.status.value}"
        for pool in instance.event_log_storage.get_concurrency_keys():
            info = instance.event_log_storage.get_concurrency_info(pool)
            if info.claimed_slots or info.pending_steps:
                yield f"pool {pool} is taken: {info}"
    for path in (place.home / "runs_under_way").glob("*"):
        yield f"still counted as under way: {path.name}"
    for path in leftovers(place):
        yield f"left behind: {path}"
    for process in psutil.process_iter(["environ", "cmdline"]):
        environment = process.info["environ"] or {}
        if environment.get("DAGSTER_HOME") == str(place.home) and process.pid != os.getpid():
            yield f"still running: {process.pid} {process.info['cmdline']}"


def leftovers(place: Place) -> list[Path]:
    """Files and folders that only a run under way may have."""
    found = [one for one in place.temporary.iterdir() if not one.name.startswith("torchinductor")]
    found += place.data.rglob(".*.tmp")
    found += place.data.glob("cache.duckdb.damaged-*")
    found += place.data.glob("cache.duckdb.compact*")
    found += place.data.glob("cache.duckdb.tmp/*")
    return found


def asset_under_way(place: Place, run_id: str) -> str:
    """What a run was doing when it was killed: an asset, what is between, or it had not begun."""
    if not run_id:
        return "start"
    with shipped_instance(place.home) as instance:
        begun, ended = (
            [entry.step_key for entry in instance.all_logs(run_id, of_type=kind)]
            for kind in (dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_SUCCESS)
        )
    under_way = {*begun} - {*ended}
    return str(under_way.pop()).split("__")[-1] if under_way else "between"


def disk_use(data: Path) -> dict[str, int]:
    """Bytes in the store, in the cache and in the artifacts."""

    def in_all(*paths: Path) -> int:
        files = (file for path in paths for file in [path, *path.rglob("*")] if file.is_file())
        return sum(file.stat().st_size for file in files)

    return {
        "vectors": in_all(data / "vectors"),
        "cache": in_all(*data.glob("cache.duckdb*")),
        "artifacts": in_all(data / "artifacts"),
    }


def _differ(what: str, found: set[str], expected: set[str]) -> Iterator[str]:
    if missing := expected - found:
        yield f"{what}: missing {sorted(missing)[:5]} ({len(missing)})"
    if extra := found - expected:
        yield f"{what}: should not be there {sorted(extra)[:5]} ({len(extra)})"


def _quarantined(collection: ea.Collection) -> set[str]:
    artifacts = collection.resources.artifacts
    found: set[str] = set()
    for asset in CollectionAssets.ASSETS:
        for key in artifacts.list_keys(f"{collection.name}/{asset}/", "quarantine.parquet"):
            with artifacts.reading(key) as path:
                found |= {*pq.read_table(path)["document_id"].to_pylist()}
    return found


def _wrong_with(archive: Archive, entry: Entry, rows: list[dict[str, Any]]) -> Iterator[str]:
    numbers = [row["chunk_number"] for row in rows]
    if numbers != [*range(len(rows))]:
        yield f"chunks {numbers}"
    end = 0
    for row in rows:
        span = slice(row["span_start"], row["span_end"])
        if row["text"] != entry.text[span]:
            yield f"chunk {row['chunk_number']} is not the text of its place"
        if entry.text[end : span.start].strip():
            yield f"text before chunk {row['chunk_number']} is in none"
        end = max(end, span.stop)
        if row["title"] != entry.title or not row["context"].startswith(entry.title):
            yield f"chunk {row['chunk_number']} has another title"
        if row["content_hash"] != content_hash(row["context"] + row["text"]):
            yield f"chunk {row['chunk_number']} has another key than its text"
        if json.loads(row["metadata"]) != {"tag": entry.tag}:
            yield f"chunk {row['chunk_number']} has other metadata: {row['metadata']}"
        if row["partition"] not in archive.partitions_of(entry):
            yield f"chunk {row['chunk_number']} is in partition {row['partition']}"
    if entry.text[end:].strip():
        yield "the end of its text is in no chunk"
    if len({row["partition"] for row in rows}) > 1:
        yield "it is in two partitions"


def audit_against_fresh(archive: Archive, fresh: Path) -> Iterator[str]:
    """Where the index differs from one that was built in one go in the folder `fresh`."""
    here = stored_rows(ea.open(archive.name))
    before = os.environ["EMBEDDING_DATA_DIR"]
    os.environ["EMBEDDING_DATA_DIR"] = str(fresh)
    there = stored_rows(ea.open(archive.name))
    os.environ["EMBEDDING_DATA_DIR"] = before
    if [row["chunk_id"] for row in here] != [row["chunk_id"] for row in there]:
        yield f"{archive.name} has other chunks than a fresh build"
        return
    for own, other in zip(here, there, strict=True):
        if {**own, "vector": None} != {**other, "vector": None}:
            yield f"{archive.name}: {own['document_id']} differs from a fresh build"


def audit_disk(place: Place, fresh: Path) -> Iterator[str]:
    """What takes much more room than a fresh build, or, in the cache, than the vectors in it."""
    used, needed = disk_use(place.data), disk_use(fresh)
    cached = ea.open("tickets").resources.cache.statistics()
    needed["cache"] = sum(one.bytes for one in cached)
    for name, room in used.items():
        if room > _DISK_TIMES * needed[name] + _DISK_SPARE:
            yield f"{name} takes {room:,} bytes, a fresh build {needed[name]:,}"
