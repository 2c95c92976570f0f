"""What a run would do, and what it would cost, before it is started; nothing is changed."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import dagster as dg

from embedding_assets.artifacts.keys import plan_key
from embedding_assets.artifacts.quarantine import QuarantineReason
from embedding_assets.artifacts.schemas import PLAN
from embedding_assets.artifacts.scratch import Scratch, scratch
from embedding_assets.collection.collection import CollectionAssets, CollectionResources
from embedding_assets.collection.settings import CollectionSettings
from embedding_assets.deduplicated_chunks.cache_lookup import Planner
from embedding_assets.deduplicated_chunks.chunks import Splitter, split_partition
from embedding_assets.documents.ingest import Ingest
from embedding_assets.runs.progress import Progress
from embedding_assets.runs.trends import last_throughputs
from resources.artifact_stores.base import ArtifactStore
from resources.artifact_stores.overlay import temporary_overlay


@dataclass(frozen=True)
class Plan:
    """What materialising some partitions would do now.

    Attributes:
        partitions: the numbers of the assets `documents` and `deduplicated_chunks`, by partition.
        unplaced: how many of the refused records belong to no partition.
        texts: distinct texts that would be embedded.
        tokens: theirs.
        dollars: what they would cost; 0 where nobody asks for money.
        withheld: which deletions would be withheld, why, and how to agree; "" if none would.
        seconds: how long embedding would take at the median speed of the last runs; None if there
            was none.
        refused: the records that would be in quarantine, by reason and with an example, those
            included that are there already.
    """

    partitions: dict[str, dict[str, Any]]
    unplaced: int
    texts: int
    tokens: int
    dollars: float
    seconds: float | None
    withheld: str = ""
    refused: list[QuarantineReason] = field(default_factory=list)


def plan(
    settings: CollectionSettings,
    resources: CollectionResources,
    partitions: Sequence[str],
    instance: dg.DagsterInstance | None,
    log: logging.Logger,
) -> Plan:
    """Reads the source, splits and asks the cache, as the first two assets do, and forgets it.

    Args:
        settings: the collection's.
        resources: its source, embedder, cache and artifacts.
        partitions: those that would be materialised.
        instance: tells the speed of the last runs.
        log: progress goes here.
    """
    collection = CollectionAssets(settings)
    numbers: dict[str, dict[str, Any]] = {partition: {} for partition in partitions}

    def record(finished: dict[str, dict[str, Any]]) -> None:
        for partition, some in finished.items():
            numbers[partition] |= some

    with temporary_overlay(resources.artifacts) as artifacts:
        ingest = Ingest(collection, resources.source, artifacts, partitions, record, log)
        ingested = ingest.run()
        with (
            scratch() as database,
            Progress(log, "documents", partitions=len(partitions)) as progress,
        ):
            with progress.doing("loading the tokenizer"):
                splitter = Splitter(settings.name, settings.chunking, resources.embedder)
                planner = Planner(
                    settings.name,
                    resources.embedder.space,
                    artifacts,
                    resources.cache,
                    database,
                    record,
                )
            for partition in partitions:
                planner.add(
                    partition, split_partition(splitter, artifacts, database, partition, progress)
                )
            planner.flush()
            texts, tokens = _to_embed(settings.name, artifacts, database, partitions)
    speeds = last_throughputs(instance, collection.asset_key("embeddings")) if instance else []
    return Plan(
        numbers,
        ingested.of_no_partition,
        texts,
        tokens,
        resources.embedder.price.dollars(tokens),
        tokens / median(speeds) if speeds else None,
        ingested.withheld.sentence,
        ingested.reasons,
    )


def _to_embed(
    collection: str, artifacts: ArtifactStore, database: Scratch, partitions: Sequence[str]
) -> tuple[int, int]:
    """Texts and tokens that no cache holds; what several partitions lack is embedded once."""
    database.create("missing_texts", PLAN)
    for partition in partitions:
        with artifacts.reading(plan_key(collection, partition)) as path:
            database.execute(
                "INSERT INTO missing_texts FROM read_parquet($path) WHERE NOT cached",
                path=str(path),
            )
    return database.row(
        "SELECT count(*), coalesce(sum(tokens), 0)::BIGINT FROM "
        "(SELECT min(tokens) AS tokens FROM missing_texts GROUP BY content_hash)"
    )
