"""Which partition a document belongs to, and which period a partition is."""

from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta, timezone

import dagster as dg

from embedding_assets.collection.settings import PartitionSettings, period_start
from resources.document_sources import Document
from resources.identity.content_hash import fingerprint

LONGEST_DAYS = {"day": 1, "week": 7, "month": 31, "year": 366}
"""The longest that a period can be."""
_FORMATS = {"day": "%Y-%m-%d", "week": "%Y-%m-%d", "month": "%Y-%m", "year": "%Y"}
_SCHEDULES = {
    "day": "0 0 * * *",
    "week": "0 0 * * 1",  # ISO 8601 weeks begin on Monday
    "month": "0 0 1 * *",
    "year": "0 0 1 1 *",
}


def partitions_definition(settings: PartitionSettings) -> dg.PartitionsDefinition:
    """Time partitions include the current, unfinished period: today's documents count too."""
    if settings.by == "bucket":
        return dg.StaticPartitionsDefinition([_bucket(i, settings) for i in range(settings.count)])
    first_day = date.fromisoformat(settings.start or "")
    return dg.TimeWindowPartitionsDefinition(
        start=period_start(first_day, settings.by).strftime(_FORMATS[settings.by]),
        fmt=_FORMATS[settings.by],
        cron_schedule=_SCHEDULES[settings.by],
        end_offset=1,
    )


def partition_of(settings: PartitionSettings) -> Callable[[Document], str]:
    """Returns the function from a document to its partition key."""
    home = partition_for(settings)

    def of_document(document: Document) -> str:
        partition = home(document.id, document.timestamp)
        if partition is None:
            raise ValueError("a source with a timestamp field yields only documents with a time")
        return partition

    return of_document


def partition_for(settings: PartitionSettings) -> Callable[[str, datetime | None], str | None]:
    """Returns the function from a document's id and time to its partition key.

    Its answer is None where documents are partitioned by time and this one has none.
    """
    if settings.by == "bucket":
        return lambda document_id, _: _bucket(_id_hash(document_id) % settings.count, settings)
    form, by = _FORMATS[settings.by], settings.by

    def by_time(_: str, timestamp: datetime | None) -> str | None:
        if timestamp is None:
            return None
        return period_start(timestamp.astimezone(timezone.utc).date(), by).strftime(form)

    return by_time


def periods(
    definition: dg.PartitionsDefinition, partition_keys: Sequence[str]
) -> list[tuple[datetime, datetime]] | None:
    """The half-open UTC periods of time partitions; None for buckets, which have no period."""
    if not isinstance(definition, dg.TimeWindowPartitionsDefinition):
        return None
    windows = [definition.time_window_for_partition_key(key) for key in partition_keys]
    return [(window.start, window.end) for window in windows]


def period_of_key(settings: PartitionSettings) -> Callable[[str], tuple[datetime, datetime]]:
    """Returns the function from a time partition's key to its half-open UTC period."""
    by = settings.by

    def period(partition: str) -> tuple[datetime, datetime]:
        start = datetime.strptime(partition, _FORMATS[by]).replace(tzinfo=timezone.utc)
        end = period_start((start + timedelta(days=LONGEST_DAYS[by])).date(), by)
        return start, datetime(end.year, end.month, end.day, tzinfo=timezone.utc)

    return period


def closed_partition(settings: PartitionSettings, moment: datetime) -> str:
    """The last time partition that has ended at a moment."""
    begun = period_start(moment.astimezone(timezone.utc).date(), settings.by)
    return period_start(begun - timedelta(days=1), settings.by).strftime(_FORMATS[settings.by])


def _bucket(number: int, settings: PartitionSettings) -> str:
    return f"bucket_{number:0{len(str(settings.count - 1))}d}"


def _id_hash(document_id: str) -> int:
    return int.from_bytes(fingerprint(document_id, 8), "little")
