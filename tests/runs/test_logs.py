"""What resources log while a run uses them stands among the lines of that run."""

import shutil
from pathlib import Path

import dagster as dg
import pytest

from tests.support.checkout import PROJECT
from tests.support.pipeline import Pipeline, write_jsonl


def test_what_a_resource_warns_of_is_shown_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(PROJECT / "dagster_home" / "dagster.yaml", home)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    source = write_jsonl(tmp_path / "documents.jsonl", [{"id": "one", "text": "A text."}])
    pipeline = Pipeline(
        tmp_path, str(source), settings={"partitions": {"by": "bucket", "count": 1}}
    )
    (tmp_path / "cache.duckdb").write_bytes(b"no database at all" * 1000)
    with dg.DagsterInstance.get() as instance:
        run = pipeline.run(instance=instance)
        entries = instance.all_logs(run.run_id)
    (warning,) = (entry for entry in entries if "is damaged" in entry.user_message)
    assert "cache.duckdb" in warning.user_message
    assert warning.step_key is not None
    started = [e for e in entries if e.is_dagster_event and e.get_dagster_event().is_step_start]
    assert len(started) == 4, "the level of the lines hides none of Dagster's events"
