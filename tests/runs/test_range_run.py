"""A run over a range of partitions does something, or says why not."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from resources.artifact_stores.files import FileArtifactStore
from tests.support.pipeline import ASSETS, Pipeline, write_jsonl


@pytest.mark.parametrize(
    "settings",
    [
        {"partitions": {"by": "bucket", "count": 4}},
        {
            "source": {"fields": {"timestamp": "created"}},
            "partitions": {"by": "year", "start": "2020-01-01"},
        },
    ],
    ids=["buckets", "time"],
)
def test_a_reversed_range_fails_in_each_asset_and_says_how_to_write_it(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    records = [{"id": "a", "text": "A text.", "created": "2020-02-02"}]
    pipeline = Pipeline(
        tmp_path, str(write_jsonl(tmp_path / "a.jsonl", records)), settings=settings
    )
    assert pipeline.partitions is not None
    first, last = pipeline.partitions.get_partition_keys()[1:3]
    assert pipeline.run(first, last).success
    for asset in ASSETS:
        run = pipeline.run(last, first, assets=[asset], raise_on_error=False)
        assert not run.success
        (failure,) = [e for e in run.all_events if e.is_step_failure]
        assert f"Turn it round: {first}...{last}." in str(failure.step_failure_data)


def test_a_folder_that_is_read_only_fails_the_step_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/data/documents.parquet")

    records = [{"id": "a", "text": "A text."}]
    pipeline = Pipeline(
        tmp_path,
        str(write_jsonl(tmp_path / "a.jsonl", records)),
        settings={"partitions": {"by": "bucket", "count": 1}},
    )
    monkeypatch.setattr(FileArtifactStore, "writing", refused)
    run = pipeline.run(assets=["documents"], raise_on_error=False)
    (failure,) = [e for e in run.all_events if e.is_step_failure]
    error = failure.step_failure_data.error
    assert error is not None
    assert "Access to /data/documents.parquet is not permitted" in error.message
    assert "EMBEDDING_DATA_DIR" in error.message
