"""A sensor that compares source, artifacts, quarantine and store, and requests what differs.

A sensor beside the source sensor, for that one sees changes only: a run that failed, an asset that
was materialised without those after it, a store restored from a backup leave the source unchanged.
Automation conditions know of failed and missing partitions, but not of what is in files and store.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import dagster as dg
import pyarrow.parquet as pq
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus
from pydantic import Field

from embedding_assets.artifacts.keys import documents_key, embeddings_quarantine_key
from embedding_assets.artifacts.withheld import (
    Withheld,
    accepting_job,
    told,
    withheld_deletions,
    withheld_ids,
)
from embedding_assets.automation.inventory import (
    EVERY_PARTITION,
    Inventory,
    update,
)
from embedding_assets.automation.run_requests import AssetJob, SensorCursor, partition_runs
from embedding_assets.automation.source_sensor import is_still_requesting
from embedding_assets.collection.collection import CollectionAssets, CollectionResources
from embedding_assets.collection.partitions import partition_for
from embedding_assets.documents.source_state import from_bytes
from embedding_assets.documents.unchanged import ingested_digest
from resources.identity.content_hash import fingerprint

_PARTITIONS_PER_SCAN = 200
_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


class ReconcileCursor(SensorCursor):
    """How far the comparison is, and what was tried against the differences that it found."""

    position: str = ""
    """The last partition that was compared; empty: begin with the first."""
    asked: dict[str, int] = Field(default_factory=dict)
    """How often a run was requested for exactly the differences that are still there."""


@dataclass
class Differences:
    """What is not as it ought to be, by partition."""

    reasons: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    """A digest of the difference: while it stays the same, runs do not help."""

    def add(self, partition: str, reason: str, *state: object) -> None:
        self.reasons[partition] = reason
        self.states[partition] = fingerprint(repr(state), 8).hex()


def reconcile_sensor(collection: CollectionAssets, job: AssetJob) -> dg.SensorDefinition:
    settings = collection.settings.automation

    @dg.sensor(
        name=f"{collection.name}_reconcile",
        job=job,
        minimum_interval_seconds=settings.reconcile_sensor.every_seconds,
        default_status=settings.default_sensor_status,
        required_resource_keys=collection.resource_keys,
        description="Requests partitions in which source, artifacts, quarantine and store differ.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        busy = _unfinished_work(context.instance, collection, job.name)
        if busy:
            return dg.SkipReason(f"Waits until {busy} is finished, and compares then.")
        resources = collection.resources(context)
        if is_still_requesting(context.instance, collection, resources.artifacts):
            return dg.SkipReason(
                "Waits until the source sensor, which is on, has requested what it finds: both "
                "would ask for the same."
            )
        tick = ReconcileTick(collection, resources)
        return tick.evaluate(context.cursor)

    return sensor


@dataclass
class ReconcileTick:
    """One comparison, of as many partitions as there is time for."""

    collection: CollectionAssets
    resources: CollectionResources

    def evaluate(self, written_cursor: str | None) -> dg.SensorResult | dg.SkipReason:
        settings = self.collection.settings.automation.reconcile_sensor
        cursor = ReconcileCursor.model_validate_json(written_cursor or "{}")
        try:
            expected, unread = self._source_digests(settings.seconds_per_tick)
        except FileNotFoundError as error:
            return dg.SkipReason(str(error))
        if unread:
            return dg.SkipReason(
                f"Still looking into the source: {unread:,} files are left for the next ticks."
            )
        known = self.collection.partitions.get_partition_keys()
        begin = known.index(cursor.position) + 1 if cursor.position in known else 0
        differences = Differences()
        compared = begin
        deadline = time.monotonic() + settings.seconds_per_tick
        for group in _groups(known[begin:], _PARTITIONS_PER_SCAN):
            self._compare(group, expected, differences)
            compared += len(group)
            if time.monotonic() > deadline:
                break
        finished = compared >= len(known)
        homeless = self._compare_strays(known, differences) if begin == 0 else 0

        cursor.generation += 1
        cursor.position = "" if finished else known[compared - 1]
        wanted = {p: n for p in differences.reasons if (n := self._attempt(cursor, differences, p))}
        runs, left = partition_runs(
            [p for p, attempt in wanted.items() if attempt <= settings.max_attempts],
            known,
            self.collection.settings.partitions_per_run,
            settings.max_runs_per_tick,
        )
        asked = {p: wanted[p] for run in runs for p in run.partitions}
        hopeless = [p for p, attempt in wanted.items() if attempt > settings.max_attempts]
        self._remember(cursor, known[begin:compared], differences, asked)
        requests = [
            run.request(
                cursor.name,
                differences.states,
                {"embedding_assets/reason": differences.reasons[run.partitions[0]][:200]},
            )
            for run in runs
        ]
        found = f"{compared:,} of {len(known):,} partitions compared"
        summary = self._summary(found, differences, left, hopeless, homeless)
        return dg.SensorResult(
            run_requests=requests or None,
            skip_reason=None if requests else summary,
            cursor=cursor.model_dump_json(),
        )

    def _summary(
        self,
        found: str,
        differences: Differences,
        left: Sequence[str],
        hopeless: Sequence[str],
        homeless: int,
    ) -> str:
        """What a tick says that requests nothing."""
        attempts = self.collection.settings.automation.reconcile_sensor.max_attempts
        withheld = told(self._withheld().values(), self.collection.name)
        summary = [
            found,
            f"{len(differences.reasons) - len(hopeless):,} differ",
        ]
        if left:
            summary.append(f"{len(left):,} of them wait for the next tick")
        if hopeless:
            summary.append(
                f"{len(hopeless):,} still differ after {attempts} runs: "
                f"{hopeless[0]} ({differences.reasons[hopeless[0]]}); look at the checks of "
                f"{self.collection.name}/vector_index"
            )
        if homeless:
            summary.append(
                f"{homeless:,} documents without a time are in the index under partitions that no "
                "longer exist: those still in the source move when their new partition runs"
            )
        return " ".join(filter(None, ["; ".join(summary) + ".", withheld]))

    def _source_digests(self, seconds: float) -> tuple[Mapping[str, int], int]:
        """What the source holds of each partition, and the number of files not looked into yet."""
        artifacts, name = self.resources.artifacts, self.collection.name
        own = f"{name}/automation/reconcile_sensor/inventory.parquet"
        inventory = Inventory.load(artifacts, own)
        if inventory is None:
            others = artifacts.list_keys(f"{name}/automation/source_sensor/", ".parquet")
            inventory = next((i for k in others if (i := Inventory.load(artifacts, k))), None)
        inventory = inventory or Inventory()
        source = self.resources.source
        changes = update(inventory, source, source.files(), self.collection.settings, seconds)
        if changes.files:
            inventory.save(artifacts, own)
        return inventory.partitions(), changes.unread

    def _compare(
        self, partitions: Sequence[str], expected: Mapping[str, int], differences: Differences
    ) -> None:
        stored, kept = self._stored(partitions), self._withheld()
        not_there: dict[str, set[tuple[str, bytes]]] = {}
        surplus: dict[str, set[tuple[str, bytes]]] = {}
        for partition in partitions:
            held = ingested_digest(self.resources.artifacts, self.collection.name, partition)
            now = expected.get(partition, 0)
            rows = stored.get(partition, set())
            if held is None:
                if now or rows:
                    differences.add(partition, "its documents were never ingested", now, len(rows))
                continue
            if held != now and EVERY_PARTITION not in expected:
                differences.add(partition, "the source holds something else", now, held)
                continue
            if partition in kept and (why := _why_withheld_no_more(kept[partition], held)):
                differences.add(partition, why, kept[partition])
                continue
            documents, withheld = self._documents(partition)
            not_there[partition] = {d for d in documents - rows if d[0] not in withheld}
            surplus[partition] = rows - documents
        last = self._last_partitions({d for some in not_there.values() for d, _ in some})
        for partition, documents in not_there.items():
            if partition in kept and (moved := self._moved(partition, documents, last)):
                some = f"{len(moved):,} documents that it was to keep are in other partitions now"
                differences.add(partition, some, moved)
                continue
            missing = {d for d in documents if last.get(d[0], "") <= partition}
            if missing or surplus[partition]:
                differences.add(
                    partition,
                    f"{len(missing):,} documents are missing in the index and "
                    f"{len(surplus[partition]):,} should not be there",
                    sorted(missing),
                    sorted(surplus[partition]),
                )

    def _withheld(self) -> dict[str, Withheld]:
        found = withheld_deletions(self.resources.artifacts, self.collection.name)
        return {one.partition: one for one in found}

    def _moved(
        self, partition: str, missing: set[tuple[str, bytes]], last: Mapping[str, str]
    ) -> list[str]:
        """Documents whose deletion is withheld in one partition, and that another has."""
        ids = withheld_ids(self.resources.artifacts, self.collection.name, partition)
        return sorted(id for id, _ in missing if id in ids and last.get(id, partition) != partition)

    def _stored(self, partitions: Sequence[str]) -> dict[str, set[tuple[str, bytes]]]:
        """Id and version of the documents in the index, by partition."""
        found: dict[str, set[tuple[str, bytes]]] = {}
        for batch in self.resources.store.scan(
            self.collection.name,
            self.resources.embedder.space,
            ["partition", "document_id", "document_version", "chunk_number"],
            partitions=partitions,
        ):
            for partition, document, version, number in zip(
                batch["partition"].to_pylist(),
                batch["document_id"].to_pylist(),
                batch["document_version"].to_pylist(),
                batch["chunk_number"].to_pylist(),
                strict=True,
            ):
                if number == 0:
                    found.setdefault(partition, set()).add((document, version))
        return found

    def _last_partitions(self, documents: set[str]) -> dict[str, str]:
        """The last partition in which the index has each of some documents.

        Several may hold a document if they read different files: the index has that of the last.
        """
        last: dict[str, str] = {}
        if not documents:
            return last
        for batch in self.resources.store.scan(
            self.collection.name, self.resources.embedder.space, ["document_id", "partition"]
        ):
            for document, partition in zip(
                batch["document_id"].to_pylist(), batch["partition"].to_pylist(), strict=True
            ):
                if document in documents:
                    last[document] = max(partition, last.get(document, ""))
        return last

    def _documents(self, partition: str) -> tuple[set[tuple[str, bytes]], set[str]]:
        """Id and version of the ingested documents, and the ids of those that were refused."""
        artifacts, name = self.resources.artifacts, self.collection.name
        with artifacts.reading(documents_key(name, partition)) as path:
            table = pq.read_table(path, columns=["id", "version"])
        documents = set(zip(table["id"].to_pylist(), table["version"].to_pylist(), strict=True))
        quarantine = embeddings_quarantine_key(name, partition)
        if not artifacts.exists(quarantine):
            return documents, set()
        with artifacts.reading(quarantine) as path:
            refused = pq.read_table(path, columns=["document_id"])["document_id"].to_pylist()
        return documents, set(refused)

    def _compare_strays(self, known: Sequence[str], differences: Differences) -> int:
        """Adds partitions whose runs remove rows of partitions that the collection had before.

        Returns:
            The number of documents of which nobody knows the partition.
        """
        home = partition_for(self.collection.settings.partitions)
        homes = set(known)
        strays: dict[str, list[str]] = {}
        homeless = 0
        for batch in self.resources.store.scan(
            self.collection.name,
            self.resources.embedder.space,
            ["document_id", "timestamp", "chunk_number"],
            not_partitions=known,
        ):
            for document, timestamp, number in zip(
                batch["document_id"].to_pylist(),
                batch["timestamp"].to_pylist(),
                batch["chunk_number"].to_pylist(),
                strict=True,
            ):
                if number == 0:
                    partition = home(document, timestamp)
                    if partition is None:
                        homeless += 1
                    elif known:
                        partition = partition if partition in homes else known[-1]
                        strays.setdefault(partition, []).append(document)
        for partition, documents in strays.items():
            if partition not in differences.reasons:
                differences.add(
                    partition,
                    f"{len(documents):,} documents are in the index under partitions that no "
                    "longer exist",
                    sorted(documents),
                )
        return homeless

    @staticmethod
    def _attempt(cursor: ReconcileCursor, differences: Differences, partition: str) -> int:
        """How often a run will have been requested for this difference, the next one included."""
        return cursor.asked.get(f"{partition} {differences.states[partition]}", 0) + 1

    def _remember(
        self,
        cursor: ReconcileCursor,
        compared: Sequence[str],
        differences: Differences,
        asked: Mapping[str, int],
    ) -> None:
        """Forgets counts of differences that are gone; the cursor is a row in a database.

        What was not compared at this tick, or waits for the next, is as it was.
        """
        settled = set(compared)
        there = {f"{p} {state}" for p, state in differences.states.items()}
        counts = {
            key: count
            for key, count in cursor.asked.items()
            if key in there or key.partition(" ")[0] not in settled
        }
        counts |= {f"{p} {differences.states[p]}": attempt for p, attempt in asked.items()}
        cursor.asked = dict(islice(counts.items(), _MOST_COUNTS))


_MOST_COUNTS = 2_000


def _why_withheld_no_more(withheld: Withheld, ingested: int) -> str | None:
    """What a run would do about deletions that are withheld; None: nothing."""
    if withheld.accepted:
        return f"somebody agreed to the deletion of {withheld.documents:,} documents"
    if from_bytes(bytes.fromhex(withheld.source)) != ingested:
        return "a run was broken off before it forgot which deletions were withheld"
    return None


def _groups(partitions: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(partitions), size):
        yield partitions[start : start + size]


def _unfinished_work(
    instance: dg.DagsterInstance, collection: CollectionAssets, job_name: str
) -> str | None:
    """A run or backfill of the collection that is under way: what it leaves is not known yet."""
    own = {collection.asset_key(asset) for asset in collection.ASSETS}
    jobs = (job_name, accepting_job(collection.name))
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=_UNFINISHED)):
        if run.job_name in jobs or own & set(run.asset_selection or ()):
            return f"run {run.run_id[:8]}"
    requested = BulkActionsFilter(statuses=[BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING])
    for backfill in instance.get_backfills(filters=requested):
        if own & set(backfill.asset_selection or ()):
            return f"backfill {backfill.backfill_id}"
    return None
