"""A sensor that requests runs for exactly the partitions that new, changed and deleted files touch.

A sensor, and neither a schedule nor an automation condition: only a look at the storage tells which
of the partitions, however old, hold something else than before.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import dagster as dg
import pyarrow.parquet as pq
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import InstigatorStatus, SensorInstigatorData
from pydantic import Field

from embedding_assets.artifacts.quarantine import duplicate_winner
from embedding_assets.artifacts.withheld import Withheld, told, withheld_deletions
from embedding_assets.automation.inventory import (
    EVERY_PARTITION,
    Changes,
    Inventory,
    update,
)
from embedding_assets.automation.run_requests import AssetJob, SensorCursor, partition_runs
from embedding_assets.collection.collection import CollectionAssets
from embedding_assets.collection.partitions import period_of_key
from embedding_assets.documents.numbers import SourceFiles
from embedding_assets.documents.source_asset import observation
from embedding_assets.documents.source_state import UNPLACED
from embedding_assets.documents.unchanged import ingested_digest, listing_digest
from resources.artifact_stores.base import ArtifactStore
from resources.document_sources import DocumentSource, RefusalReason


class SourceCursor(SensorCursor):
    """What a tick has acted on. The inventory of that name is kept until the next tick is recorded,
    so a tick that was lost with the daemon finds what it compared with, and asks for the same runs.
    """

    listing: str = ""
    """Digest of the file list; empty if files are left to be looked into."""
    last_partition: str = ""
    observed: str = ""
    """Digest of the file list that was last told of as an observation of the source."""
    agreed: dict[str, str] = Field(default_factory=dict)
    """When somebody agreed to the deletions that were withheld of a partition, as far as the runs
    for it were requested."""

    def key(self, collection: CollectionAssets) -> str:
        """Of the inventory, in the artifact store."""
        return f"{_folder(collection)}{self.name}.parquet"


def _folder(collection: CollectionAssets) -> str:
    return f"{collection.name}/automation/source_sensor/"


def source_sensor(collection: CollectionAssets, job: AssetJob) -> dg.SensorDefinition:
    settings = collection.settings.automation.source_sensor

    @dg.sensor(
        name=_name(collection),
        job=job,
        minimum_interval_seconds=settings.every_seconds,
        default_status=collection.settings.automation.default_sensor_status,
        required_resource_keys={collection.source_key, "artifact_store"},
        description="Requests the partitions that new, changed and deleted documents touch.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        return SourceTick(
            collection,
            getattr(context.resources, collection.source_key),
            context.resources.artifact_store,
        ).evaluate(context.cursor)

    return sensor


def _name(collection: CollectionAssets) -> str:
    return f"{collection.name}_source"


def is_still_requesting(
    instance: dg.DagsterInstance, collection: CollectionAssets, artifacts: ArtifactStore
) -> bool:
    """Whether the sensor is on and has not yet looked at the source, or not yet requested all."""
    if instance.schedule_storage is None:  # in memory: no sensor is on
        return False
    by_default = collection.settings.automation.running
    states = [
        state
        for state in instance.all_instigator_state(instigator_type=InstigatorType.SENSOR)
        if state.instigator_name == _name(collection)
    ]
    if not states:
        return by_default
    for state in states:
        declared = state.status == InstigatorStatus.DECLARED_IN_CODE
        if by_default if declared else state.status == InstigatorStatus.RUNNING:
            data = state.instigator_data
            written = data.cursor if isinstance(data, SensorInstigatorData) else None
            if not written:
                return True
            key = SourceCursor.model_validate_json(written).key(collection)
            if (inventory := Inventory.load(artifacts, key)) and inventory.pending:
                return True
    return False


@dataclass
class SourceTick:
    """One look at the source."""

    collection: CollectionAssets
    source: DocumentSource
    artifacts: ArtifactStore

    def evaluate(self, written_cursor: str | None) -> dg.SensorResult | dg.SkipReason:
        settings = self.collection.settings
        cursor = SourceCursor.model_validate_json(written_cursor or "{}")
        try:
            listing = self.source.files()
        except FileNotFoundError as error:
            return dg.SkipReason(str(error))
        known_partitions = self.collection.partitions.get_partition_keys()
        last_partition = known_partitions[-1] if known_partitions else ""
        digest = listing_digest(listing, settings)
        withheld = withheld_deletions(self.artifacts, self.collection.name)
        agreed = {one.partition: one.accepted for one in withheld if one.accepted}
        newly_agreed = {p for p, when in agreed.items() if cursor.agreed.get(p) != when}
        same = digest == cursor.listing and last_partition == cursor.last_partition
        if same and not newly_agreed:
            return self._skip(f"All {len(listing):,} files are as they were.", withheld)

        before = cursor.key(self.collection)
        inventory = Inventory.load(self.artifacts, before) or Inventory()
        changes = update(
            inventory,
            self.source,
            listing,
            settings,
            settings.automation.source_sensor.seconds_per_tick,
        )
        is_known = set(known_partitions)
        touched = self._touched(inventory, changes, known_partitions) | newly_agreed
        touched |= self._begun(inventory, known_partitions, cursor.last_partition)
        waiting = sorted({*inventory.pending, *touched} & is_known)
        runs, left = partition_runs(
            waiting,
            known_partitions,
            settings.partitions_per_run,
            settings.automation.source_sensor.max_runs_per_tick,
        )
        inventory.pending = left
        totals = inventory.partitions()
        inventory.requested |= {p: totals.get(p, 0) for run in runs for p in run.partitions}
        unfinished = changes.unread or left
        following = SourceCursor(
            epoch=cursor.epoch,
            generation=cursor.generation + 1,
            listing="" if unfinished or inventory.has_unsure_files else digest,
            last_partition=last_partition,
            observed=digest,
            agreed=agreed,
        )
        self._save(inventory, following, keep=before)
        requests = [run.request(following.name, totals) for run in runs]
        return dg.SensorResult(
            run_requests=requests or None,
            skip_reason=None
            if requests
            else self._skip(_why_nothing(changes, len(listing)), withheld).skip_message,
            cursor=following.model_dump_json(),
            asset_events=[]
            if digest == cursor.observed
            else [observation(self.collection, SourceFiles.of(listing))],
        )

    def _begun(self, inventory: Inventory, known: Sequence[str], last: str) -> set[str]:
        """Partitions that were the future: their documents were refused when a file was read."""
        if not last or self.collection.settings.partitions.by == "bucket":
            return set()
        return {p for p in known if p > last} & set(inventory.partitions())

    def _skip(self, reason: str, withheld: Sequence[Withheld]) -> dg.SkipReason:
        return dg.SkipReason(" ".join(filter(None, [reason, told(withheld, self.collection.name)])))

    def _touched(
        self, inventory: Inventory, changes: Changes, known_partitions: Sequence[str]
    ) -> set[str]:
        placed = changes.partitions - {UNPLACED, EVERY_PARTITION}
        totals = inventory.partitions()
        everything_known = EVERY_PARTITION not in totals
        touched = {
            partition
            for partition in placed & set(known_partitions)
            if not everything_known
            or not self._is_ingested(partition, totals.get(partition, 0), inventory)
        }
        touched |= self._losers_to(changes.changed + changes.deleted)
        if EVERY_PARTITION in changes.partitions:
            touched |= set(known_partitions)
        # What is of no partition, because of its time, is refused by any run that reads its file.
        refused = UNPLACED in changes.partitions or (
            not placed <= set(known_partitions)
            and any(self.source.period_of(file) is None for file in changes.files)
        )
        if refused and not touched and known_partitions:
            touched.add(self._reader_of(changes, known_partitions))
        return touched

    def _is_ingested(self, partition: str, digest: int, inventory: Inventory) -> bool:
        """Whether a partition was ingested since it changed, by hand or by a backfill.

        If the last run requested for it has not left its documents yet, it may still do so, though
        the source has changed back to what is ingested now.
        """
        ingested = ingested_digest(self.artifacts, self.collection.name, partition)
        return ingested == digest == inventory.requested.get(partition, digest)

    def _losers_to(self, changed_files: Iterable[str]) -> set[str]:
        """Partitions that refused a document because a changed file held another of its id."""
        changed = set(changed_files)
        if not changed:
            return set()
        prefix = f"{self.collection.name}/documents/"
        found = set()
        for key in self.artifacts.list_keys(prefix, "quarantine.parquet"):
            partition, _, _ = key.removeprefix(prefix).rpartition("/")
            if not partition:
                continue
            with self.artifacts.reading(key) as path:
                for row in pq.read_table(path, columns=["reason", "detail"]).to_pylist():
                    if row["reason"] == RefusalReason.duplicate_id.value:
                        winner = duplicate_winner(row["detail"])
                        if winner in changed:
                            found.add(partition)
                            break
        return found

    def _reader_of(self, changes: Changes, known_partitions: Sequence[str]) -> str:
        """A partition whose run reads a changed file in which every record is refused."""
        settings = self.collection.settings.partitions
        for file in [*changes.new, *changes.changed] if settings.by != "bucket" else []:
            if (period := self.source.period_of(file)) is not None:
                period_of_partition = period_of_key(settings)
                for partition in known_partitions:
                    if period_of_partition(partition)[1] > period[0]:
                        return partition
        return known_partitions[-1]

    def _save(self, inventory: Inventory, cursor: SourceCursor, keep: str) -> None:
        inventory.save(self.artifacts, cursor.key(self.collection))
        for key in self.artifacts.list_keys(_folder(self.collection), ".parquet"):
            if key not in (keep, cursor.key(self.collection)):
                self.artifacts.remove(key)


def _why_nothing(changes: Changes, files_listed: int) -> str:
    left = f"; {changes.unread:,} files are left for the next tick" if changes.unread else ""
    if not changes.files:
        return f"Nothing to request: {files_listed:,} files hold what they held{left}."
    return f"Nothing to request: {changes}, but no partition holds anything else{left}."
