"""A code location for real backfills: a collection with a fake embedder, and four empty assets.

Where it is and how many partitions it has is told by the environment variable BACKFILL_PROJECT.
"""

import json
import os
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg

from embedding_assets.collection.collection import CollectionAssets
from resources.dagster_instance.executor import one_process_executor
from tests.support.fakes import CountingEmbedder
from tests.support.pipeline import Pipeline

START = date(2000, 1, 1)
VARIABLE = "BACKFILL_PROJECT"
EMPTY = "empty"


def partition_keys(count: int) -> list[str]:
    return [(START + timedelta(days=day)).isoformat() for day in range(count)]


def write_corpus(path: Path, partitions: int, documents: int) -> None:
    with path.open("w") as file:
        for key in partition_keys(partitions):
            for number in range(documents):
                name = f"{key}/{number}"
                text = f"Minutes of the meeting {name}. " * 5
                record = {"id": name, "title": f"Meeting {name}", "text": text, "created": key}
                file.write(json.dumps(record) + "\n")


class ForgetfulEmbedder(CountingEmbedder):
    """Counts in its journal only."""

    def embed(self, *arguments: Any, **options: Any) -> Any:
        result = super().embed(*arguments, **options)
        self.texts.clear()
        self.batch_sizes.clear()
        return result


def pipeline(folder: Path, partitions_per_run: int) -> Pipeline:
    return Pipeline(
        folder,
        str(folder / "corpus.jsonl"),
        embedder=ForgetfulEmbedder(journal=str(folder / "journal"), memory="backfill"),
        settings={
            "source": {"fields": {"timestamp": "created"}},
            "partitions": {"by": "day", "start": START.isoformat()},
            "backfill": {"partitions_per_run": partitions_per_run},
        },
    )


def empty_assets(own: Pipeline) -> list[dg.AssetsDefinition]:
    """What Dagster itself costs: the same partitions, and nothing done for them."""
    settings = own.collection
    after: list[dg.AssetKey] = []
    assets = []
    for name in CollectionAssets.ASSETS:

        @dg.asset(
            key=[EMPTY, name],
            deps=after,
            partitions_def=own.partitions,
            backfill_policy=dg.BackfillPolicy.multi_run(settings.partitions_per_run or 1),
            # The same pools: waiting for a place is not what is compared.
            pool={"embeddings": "embedding_device", "vector_index": "vector_store_writer"}.get(
                name
            ),
        )
        def nothing() -> None: ...

        after = [dg.AssetKey([EMPTY, name])]
        assets.append(nothing)
    return assets


def definitions() -> dg.Definitions:
    orders = json.loads(os.environ[VARIABLE])
    own = pipeline(Path(orders["folder"]), orders["partitions_per_run"])
    return dg.Definitions(
        assets=[*(own.definitions.assets or []), *empty_assets(own)],
        resources=own.resources,
        executor=one_process_executor,
    )


if VARIABLE in os.environ:
    defs = definitions()
