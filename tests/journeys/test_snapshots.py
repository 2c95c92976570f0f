"""Real edits: the PEPs as they stood on three days, in turn as one collection."""

import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from tests.support.data import PEPS
from tests.support.data import snapshot as records_of
from tests.support.pipeline import Pipeline, checks, numbers

SNAPSHOTS = ["2020-01-01", "2025-01-01", "2026-08-22"]
SETTINGS = {
    "source": {"fields": {"timestamp": "created"}},
    "partitions": {"by": "year", "start": "1989-01-01"},
}


def _canonical(text: str | None) -> str:
    lines = (text or "").replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "")
    return unicodedata.normalize("NFC", lines).strip()


def _versions(snapshot: str) -> tuple[dict[tuple[str, str], Any], set[str]]:
    """What is to be stored, by (year, id), and the ids without a day; straight from the file."""
    dated, undated = {}, set()
    for record in records_of(snapshot):
        created = record.pop("created", None)
        if not created:
            undated.add(record["id"])
            continue
        version = {
            **record,
            "title": _canonical(record.get("title")),
            "text": _canonical(record["text"]),
            "created": created,
        }
        assert (created[:4], record["id"]) not in dated
        dated[created[:4], record["id"]] = version
    return dated, undated


@pytest.mark.slow
def test_three_snapshots_in_turn_are_counted_exactly_and_equal_a_build_of_the_last_alone(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source" / "peps.jsonl.gz"
    source.parent.mkdir()
    pipeline = Pipeline(tmp_path / "turn", str(source), settings=dict(SETTINGS))
    before: dict[tuple[str, str], Any] = {}
    shares: list[float] = []
    for snapshot in SNAPSHOTS:
        shutil.copy(PEPS / f"{snapshot}.jsonl.gz", source)
        now, undated = _versions(snapshot)
        result = pipeline.run()
        assert all(checks(result).values())
        counted = numbers(result, "documents")
        assert {name: counted[name] for name in ("added", "changed", "unchanged", "deleted")} == {
            "added": len(now.keys() - before.keys()),
            "changed": sum(now[key] != before[key] for key in now.keys() & before.keys()),
            "unchanged": sum(now[key] == before[key] for key in now.keys() & before.keys()),
            "deleted": len(before.keys() - now.keys()),
        }
        assert counted["documents"] == len(now)
        refused = pipeline.quarantine()
        assert {q["document_id"] for q in refused} == undated
        assert all(q["reason"] == "no_timestamp" and q["line"] for q in refused)
        stored = {(d["timestamp"].strftime("%Y"), d["id"]): d for d in pipeline.documents()}
        assert stored.keys() == now.keys()
        assert all(stored[key]["text"] == now[key]["text"] for key in now)
        outcome = numbers(result, "embeddings")
        assert outcome["cache_hits"] + outcome["cache_misses"] == outcome["distinct_chunks"]
        shares.append(outcome["embedded"] / outcome["distinct_chunks"])
        before = now
    assert shares[0] == 1
    assert shares[2] < 0.5

    alone = Pipeline(tmp_path / "alone", str(source), settings=dict(SETTINGS))
    alone.run()
    assert {row["document_id"] for row in alone.rows()} == {key[1] for key in before}
    assert pipeline.rows() == alone.rows()  # all columns, vectors too
