"""A source that suddenly holds much less deletes nothing until somebody agrees."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from typer.testing import CliRunner

from embedding_assets import project
from embedding_assets.cli.main import app
from tests.support.data import FIELD
from tests.support.pipeline import Pipeline, checks, numbers, write_jsonl

BUCKETS = {"partitions": {"by": "bucket", "count": 4}}
YEARS = {
    "source": {"fields": {"timestamp": "created"}},
    "partitions": {"by": "year", "start": "2024-01-01"},
}


def _records(first: int, last: int, year: int | None = None) -> list[dict[str, Any]]:
    created = {"created": f"{year}-06-01"} if year else {}
    return [
        {"id": f"d{i}", "text": f"The lantern number {i} hangs in the mill.", **created}
        for i in range(first, last)
    ]


def _accounting(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    (found,) = [e for e in result.get_asset_check_evaluations() if e.check_name == "accounting"]
    return found


def _rows(pipeline: Pipeline) -> list[tuple[Any, ...]]:
    """What of the index follows from the source alone."""
    return [(row["document_id"], row["partition"], row["text"]) for row in pipeline.rows()]


def _accept(pipeline: Pipeline, partitions: str, monkeypatch: pytest.MonkeyPatch) -> str:
    opened = pipeline.opened
    loaded = project.LoadedCollections([(opened.settings, opened.resources)], [])
    monkeypatch.setattr(project, "load_collections", lambda: loaded)
    result = CliRunner().invoke(app, ["accept", pipeline.name, "--partition", partitions])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def _export(source: Path) -> None:
    write_jsonl(source / "export.jsonl", _records(0, 60))


def _cut(source: Path) -> None:
    (source / "export.jsonl").write_bytes(b"")


def _error_page(source: Path) -> None:
    (source / "export.jsonl").write_text('{"error": "quota exceeded"}\n')


def _one_of_sixty(source: Path) -> None:
    write_jsonl(source / "export.jsonl", _records(0, 1))


def _removed(source: Path) -> None:
    (source / "export.jsonl").unlink()


def _notes(source: Path) -> None:
    for i in range(60):
        (source / f"note{i}.md").write_text(f"# Note {i}\n\nThe lantern hangs in the mill {i}.\n")


def _most_notes_gone(source: Path) -> None:
    for i in range(1, 60):
        (source / f"note{i}.md").unlink()


def _copied(name: str, to: str) -> Callable[[Path], None]:
    def copy(source: Path) -> None:
        shutil.copy(FIELD / name, source / to)

    copy.__name__ = name
    return copy


CSV, RESAVED = "01-csv-open-quote", "02-resaved-jsonl"
CASES = {
    "cut to 0 bytes": (_export, _cut, 60, "60 of the 60 known documents of export.jsonl"),
    "an error instead": (_export, _error_page, 60, "of export.jsonl 1 of 1 records were refused"),
    "one of sixty left": (_export, _one_of_sixty, 59, "59 of the 60 known documents of export"),
    "the file is gone": (_export, _removed, 60, "60 of the 60 known documents of export.jsonl"),
    "most notes gone": (_notes, _most_notes_gone, 59, "59 of the 61 known documents of these"),
    "an open quote": (
        _copied(f"{CSV}/before.csv", "a.csv"), _copied(f"{CSV}/after.csv", "a.csv"),
        58, "a.csv was not read to its end",
    ),
    "a renamed field": (
        _copied(f"{RESAVED}/before.jsonl", "a.jsonl"),
        _copied(f"{RESAVED}/renamed-field.jsonl", "a.jsonl"),
        30, "of a.jsonl 30 of 30 records were refused",
    ),
}  # fmt: skip


TO_THE_END = ("an error instead", "most notes gone", "an open quote")
"""After the others are withheld, what follows is the same."""


@pytest.mark.parametrize("case", CASES)
def test_a_source_that_suddenly_holds_less_deletes_nothing_until_somebody_agrees(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after, lost, sentence = CASES[case]
    source = tmp_path / "source"
    write_jsonl(source / "other.jsonl", [{"id": "kept", "text": "As it was."}])
    before(source)
    pipeline = Pipeline(tmp_path, str(source), settings=dict(BUCKETS))
    assert all(checks(pipeline.run()).values())
    whole = _rows(pipeline)

    # Withheld: what was known stays, and additions and changes go on.
    after(source)
    changed = [{"id": "kept", "text": "Now changed."}, {"id": "new", "text": "Now added."}]
    write_jsonl(source / "other.jsonl", changed)
    result = pipeline.run()
    found = _accounting(result)
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert sentence in (found.description or "")
    assert "`embedding-assets accept corpus --partition bucket_0...bucket_3`" in str(
        found.description
    )
    assert found.metadata["deletions_withheld"].value == lost
    assert numbers(result, "documents")["deletions_withheld"] == lost
    assert {name for name, passed in checks(result).items() if not passed} == {"accounting"}
    withheld = _rows(pipeline)
    assert {row for row in withheld if row[0] not in ("kept", "new")} == {
        row for row in whole if row[0] != "kept"
    }
    assert {row[2] for row in withheld if row[0] in ("kept", "new")} == {
        "Now changed.", "Now added.",
    }  # fmt: skip
    if case not in TO_THE_END:
        return
    again = pipeline.run()
    assert _accounting(again).metadata["deletions_withheld"].value == lost
    assert _rows(pipeline) == withheld

    # Restored: nothing is embedded anew.
    before(source)
    embedded = len(pipeline.embedder.texts)
    assert all(checks(pipeline.run()).values())
    assert (_rows(pipeline), len(pipeline.embedder.texts)) == (withheld, embedded)

    # Agreed to: the index is what a fresh run makes of the source.
    after(source)
    pipeline.run()
    assert _rows(pipeline) == withheld
    told = _accept(pipeline, "bucket_0...bucket_3", monkeypatch)
    assert f"removes {lost} documents" in told
    assert _rows(pipeline) == withheld
    result = pipeline.run()
    assert numbers(result, "documents")["deleted"] == lost
    fresh = Pipeline(tmp_path / "fresh", str(source), settings=dict(BUCKETS))
    expected = checks(fresh.run())
    assert checks(result) == expected
    assert _rows(pipeline) == _rows(fresh)
    assert checks(pipeline.run()) == expected
    assert pipeline.opened.withheld() == {}
