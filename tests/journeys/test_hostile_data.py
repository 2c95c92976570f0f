"""Nothing is lost: every input of a hostile source is stored, or quarantined with its reason."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg

from tests.support.data import HOSTILE
from tests.support.pipeline import Pipeline, checks

BUCKETS = {"partitions": {"by": "bucket", "count": 2}}


def _run(pipeline: Pipeline) -> dict[str, Any]:
    """Runs all assets; returns the numbers of the check `accounting`."""
    result = pipeline.run()
    assert result.success
    assert {name for name, passed in checks(result).items() if not passed} <= {"accounting"}
    (accounting,) = [
        e for e in result.get_asset_check_evaluations() if e.check_name == "accounting"
    ]
    if not accounting.passed:
        assert accounting.severity == dg.AssetCheckSeverity.WARN
    found: dict[str, Any] = {key: value.value for key, value in accounting.metadata.items()}
    assert found["read"] == found["stored"] + found["quarantined"] + found["other_partitions"]
    documents, quarantine = pipeline.documents(), pipeline.quarantine()
    assert len(documents) == found["stored"]
    assert len(quarantine) == found["quarantined"]
    assert all(q["reason"] and q["file"] and q["attempts"] == 1 for q in quarantine)
    assert {row["document_id"] for row in pipeline.rows()} == {d["id"] for d in documents}
    return found


def test_all_hostile_data_in_one_source_are_stored_or_quarantined(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(HOSTILE, source)
    pipeline = Pipeline(tmp_path, str(source), settings=dict(BUCKETS))
    _run(pipeline)
    files = {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()}
    seen = {d["file"] for d in pipeline.documents()} | {q["file"] for q in pipeline.quarantine()}
    assert seen == files


def test_every_naughty_string_is_stored_unaltered_or_quarantined(tmp_path: Path) -> None:
    strings = json.loads((HOSTILE / "blns.json").read_text(encoding="utf-8"))
    assert len(strings) == 515
    source = tmp_path / "source"
    source.mkdir()
    records = [json.dumps({"id": f"n{i}", "title": s, "text": s}) for i, s in enumerate(strings)]
    (source / "texts.jsonl").write_text("\n".join(records))
    ids = [json.dumps({"id": s, "text": f"Number {i}.", s: s}) for i, s in enumerate(strings)]
    (source / "ids.jsonl").write_text("\n".join(ids))
    pipeline = Pipeline(tmp_path, str(source), settings=dict(BUCKETS))
    assert _run(pipeline)["read"] == 2 * 515
    positions = [(d["file"], d["line"]) for d in [*pipeline.documents(), *pipeline.quarantine()]]
    assert Counter(positions) == Counter(
        (name, line) for name in ("texts.jsonl", "ids.jsonl") for line in range(1, 516)
    )
    rows: dict[str, str] = {}
    for row in sorted(pipeline.rows(), key=lambda row: row["chunk_number"]):
        rows[row["document_id"]] = rows.get(row["document_id"], "") + row["text"]
    for document in pipeline.documents():
        assert rows[document["id"]].split() == document["text"].split()
