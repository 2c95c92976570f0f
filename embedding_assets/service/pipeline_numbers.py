"""The pipeline's last numbers for Prometheus, beside those of the service."""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import dagster as dg
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from embedding_assets.api import Collection
from embedding_assets.component import collection_definitions
from embedding_assets.runs.history import RunNumbers, latest_materializations, total
from resources.dagster_instance.home import open_home

_log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 15.0
_PARTITIONS_OF_A_RUN = 200
"""Of a larger run the numbers are those of its last partitions."""


class PipelineNumbers(Collector):
    """Looks into Dagster's instance and the stores, at most every 15 seconds.

    What it costs grows with the number of collections, not with what they hold.
    """

    def __init__(self, collections: Sequence[Collection], home: Path) -> None:
        """Looks at nothing yet.

        Args:
            collections: those that are served.
            home: Dagster's; where there is none, only the stores are asked.
        """
        self.collections = list(collections)
        self._home = home
        self._looked_at = -math.inf
        self._found: list[Metric] = []

    def collect(self) -> Iterable[Metric]:
        return self._found

    def describe(self) -> Iterable[Metric]:
        return []  # else it would be asked for all of them when it is registered

    @property
    def is_due(self) -> bool:
        """Whether what is known is old."""
        return time.monotonic() - self._looked_at > SECONDS_BETWEEN_LOOKS

    def look(self) -> None:
        """Asks anew; takes up to some hundred milliseconds."""
        self._looked_at = time.monotonic()
        try:
            self._found = list(self._families())
        except Exception as error:
            _log.warning("The pipeline's numbers cannot be read: %s", error)

    def _families(self) -> Iterator[Metric]:
        chunks = _gauge("chunks", "In the index, of all spaces.")
        for one in self.collections:
            store, embedders = one.resources.store, one.resources.embedders
            chunks.add_metric([one.name], sum(store.count(one.name, e.space) for e in embedders))
        yield chunks
        if not self._home.exists():
            return
        with open_home(self._home) as instance:
            yield from self._of_runs(instance)
            yield self._of_checks(instance)

    def _of_runs(self, instance: dg.DagsterInstance) -> Iterator[Metric]:
        runs = {}
        for one in self.collections:
            if run := _last_run(instance, dg.AssetKey([one.name, "embeddings"])):
                runs[one.name] = run
        for name, text, value in (
            ("timestamp_seconds", "When the last run embedded.", lambda run: run.time),
            ("hit_rate", "Of its chunks.", lambda run: run.ratio("cache_hits", "distinct_chunks")),
            ("error_rate", "Of its misses.", lambda run: run.ratio("errors", "cache_misses")),
            (
                "chunks_per_second",
                "While it embedded.",
                lambda run: run.ratio("embedded", "seconds_embedding"),
            ),
        ):
            family = _gauge(f"last_run_{name}", text)
            for collection, run in runs.items():
                family.add_metric([collection], value(run))
            yield family

    def _of_checks(self, instance: dg.DagsterInstance) -> Metric:
        family = _gauge("check_passed", "Its last result.", "asset", "check", "severity")
        for one in self.collections:
            assets = collection_definitions(one.settings).assets or ()
            keys = [
                spec.key
                for asset in assets
                if isinstance(asset, dg.AssetsDefinition)
                for spec in asset.check_specs
            ]
            known = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
            for key, record in known.items():
                evaluation = record.evaluation
                if isinstance(evaluation, dg.AssetCheckEvaluation):
                    labels = [one.name, key.asset_key.path[-1], key.name, evaluation.severity.value]
                    family.add_metric(labels, float(evaluation.passed))
        return family


def _last_run(instance: dg.DagsterInstance, asset: dg.AssetKey) -> RunNumbers | None:
    found = latest_materializations(instance, asset, _PARTITIONS_OF_A_RUN)
    return total([one for one in found if one.run_id == found[0].run_id]) if found else None


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    family = f"embedding_collection_{name}"
    return GaugeMetricFamily(family, text, labels=["collection", *labels])
