"""Backfills launched as the UI does: real webserver, daemon and runs, killed on the way."""

import json
from collections import Counter
from pathlib import Path

import dagster as dg
import pytest
import yaml

from embedding_assets.collection.collection import CollectionAssets
from tests.support.backfill_project import VARIABLE, partition_keys, pipeline, write_corpus
from tests.support.checkout import PROJECT
from tests.support.dagster_server import dagster_server
from tests.support.instance import shipped_instance

PARTITIONS, DOCUMENTS, PER_RUN = 40, 3, 2  # many runs, so that a cancel finds some undone


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_backfill_that_is_cancelled_resumed_and_killed_loses_and_repeats_nothing(
    tmp_path: Path,
) -> None:
    write_corpus(tmp_path / "corpus.jsonl", PARTITIONS, DOCUMENTS)
    orders = json.dumps({"folder": str(tmp_path), "partitions_per_run": PER_RUN})
    assets = [dg.AssetKey(["corpus", name]) for name in CollectionAssets.ASSETS]
    home = tmp_path / "home"
    with dagster_server(home, "tests.support.backfill_project", {VARIABLE: orders}) as server:

        def states(backfill: str) -> list[str]:
            return [run["status"] for run in server.backfill(backfill)["runs"]]

        first = server.launch_backfill(assets, partition_keys(PARTITIONS))
        server.until(lambda: "SUCCESS" in states(first), "a run has succeeded")
        server.cancel_backfill(first)
        server.until(lambda: server.backfill(first)["status"] == "CANCELED", "it is cancelled")
        assert states(first).count("SUCCESS") < PARTITIONS // PER_RUN

        resumed = server.resume_backfill(first)
        server.until(
            lambda: {"STARTED", "SUCCESS"} & {*states(resumed)},
            "a run of the resumed backfill is under way",
        )
        server.kill_daemon()
        server.start_daemon()
        server.until(
            lambda: server.backfill(resumed)["status"].startswith(("COMPLETED", "FAILED")),
            "the resumed backfill ends",
        )
        assert server.backfill(resumed)["status"] == "COMPLETED_SUCCESS"

    with shipped_instance(home) as instance:
        for asset in assets:
            keys = partition_keys(PARTITIONS)
            assert instance.get_materialized_partitions(asset) == set(keys)
            for key in keys:
                records = instance.fetch_materializations(
                    dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[key]), limit=1
                ).records
                materialization = records[0].asset_materialization
                assert materialization is not None
                assert len(materialization.metadata) > 2, "numbers of each partition"
        unfinished = dg.RunsFilter(
            statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING]
        )
        assert instance.get_runs(unfinished) == []
    embedded = Counter((tmp_path / "journal").read_text().split())
    assert len(embedded) == PARTITIONS * DOCUMENTS
    assert embedded.total() - len(embedded) <= PER_RUN * DOCUMENTS  # the flush under way
    rows = pipeline(tmp_path, PER_RUN).rows()
    assert len({row["document_id"] for row in rows}) == len(rows) == PARTITIONS * DOCUMENTS


def test_the_instance_limits_runs_and_pools_retries_killed_runs_and_sends_nothing(
    tmp_path: Path,
) -> None:
    with shipped_instance(tmp_path) as instance:
        assert not instance.telemetry_enabled
        assert instance.global_op_concurrency_default_limit == 1
        assert instance.run_retries_enabled
        assert instance.run_retries_max_retries == 2
        assert not instance.run_retries_retry_on_asset_or_op_failure
        assert instance.run_monitoring_enabled
        assert instance.get_settings("retention")
    settings = yaml.safe_load((PROJECT / "dagster_home" / "dagster.yaml").read_text())
    assert settings["concurrency"]["runs"]["max_concurrent_runs"] <= 4  # SQLite
