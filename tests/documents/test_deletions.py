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
from embedding_assets.component import collection_definitions
from embedding_assets.documents.ingest import Ingest
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


def _load(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes it the project's one collection."""
    opened = pipeline.opened
    loaded = project.LoadedCollections([(opened.settings, opened.resources)], [])
    monkeypatch.setattr(project, "load_collections", lambda *_: loaded)


def _accept(pipeline: Pipeline, partitions: str, monkeypatch: pytest.MonkeyPatch) -> str:
    _load(pipeline, monkeypatch)
    listed = CliRunner().invoke(app, ["accept", pipeline.name]).output
    assert f"accept {pipeline.name} --partition {partitions}" in " ".join(listed.split())
    result = CliRunner().invoke(app, ["accept", pipeline.name, "--partition", partitions])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def _export(source: Path) -> None:
    write_jsonl(source / "export.jsonl", _records(0, 60))


def _few(source: Path) -> None:
    write_jsonl(source / "export.jsonl", _records(0, 3))


def _cut(source: Path) -> None:
    (source / "export.jsonl").write_bytes(b"")


def _error_page(source: Path) -> None:
    (source / "export.jsonl").write_text('{"error": "quota exceeded"}\n')


def _one_of_sixty(source: Path) -> None:
    write_jsonl(source / "export.jsonl", _records(0, 1))


def _cut_in_a_record(source: Path) -> None:
    whole = (source / "export.jsonl").read_bytes()
    (source / "export.jsonl").write_bytes(whole[: whole.index(b"number 55")])


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
    "cut to 0 bytes": (_export, _cut, 60, "export.jsonl is there, but holds nothing any more"),
    "few, cut to 0 bytes": (_few, _cut, 3, "export.jsonl is there, but holds nothing any more"),
    "few, with an error instead": (_few, _error_page, 3, "1 of 1 records were refused"),
    "an error instead": (_export, _error_page, 60, "of export.jsonl 1 of 1 records were refused"),
    "one of sixty left": (_export, _one_of_sixty, 59, "59 of the 60 known documents of export"),
    "cut in a record": (_export, _cut_in_a_record, 5, "export.jsonl was not read to its end"),
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


TO_THE_END = ("most notes gone", "an open quote")
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
    assert "`embedding-assets accept corpus --partition bucket_" in (found.description or "")
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


@pytest.mark.parametrize("write", [_export, _notes])
def test_runs_over_one_partition_after_the_other_lose_nothing_either(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    """Each sees four documents go, and what all files held when it was read last."""
    source, settings = tmp_path / "source", {"partitions": {"by": "bucket", "count": 16}}
    write_jsonl(source / "other.jsonl", _records(900, 903))
    write(source)
    pipeline = Pipeline(tmp_path, str(source), settings=settings)
    pipeline.run()
    before = _rows(pipeline)
    for path in source.iterdir():
        if path.name not in ("other.jsonl", "note0.md"):
            path.unlink()
    for bucket in ("bucket_03", "bucket_04", "bucket_03"):
        result = pipeline.run(bucket, assets=["documents"])
        assert not _accounting(result).passed
        assert numbers(result, "documents")["deleted"] == 0
    assert pipeline.run(assets=["vector_index"]).success
    assert _rows(pipeline) == before


def test_of_a_source_with_dates_a_folder_that_is_gone_deletes_nothing(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    for year in (2024, 2025):
        write_jsonl(
            archive / f"{year}" / "a.jsonl",
            _records(100 * (year - 2024), 100 * (year - 2024) + 30, year),
        )
    pipeline = Pipeline(tmp_path, f"{archive}/%Y/*.jsonl", settings=dict(YEARS))
    pipeline.run()
    whole = _rows(pipeline)
    shutil.rmtree(archive / "2024")
    result = pipeline.run("2024", "2025")
    assert "30 of the 30 known documents of 2024/a.jsonl" in str(_accounting(result).description)
    assert "--partition 2024`" in str(_accounting(result).description)
    assert _rows(pipeline) == whole
    result = pipeline.run("2024", config={"documents": {"accept_deletions": True}})
    assert all(checks(result).values())
    assert numbers(result, "documents")["deleted"] == 30
    assert {row[1] for row in _rows(pipeline)} == {"2025"}
    assert pipeline.opened.withheld() == {}


def _after_30_of_40_went_and_300_came(folder: Path) -> tuple[Path, Pipeline]:
    """The source, and the pipeline, which has read only what was there before."""
    source = folder / "source"
    write_jsonl(source / "a.jsonl", _records(0, 40))
    pipeline = Pipeline(folder, str(source), settings=dict(BUCKETS))
    pipeline.run(assets=["documents"])
    write_jsonl(source / "a.jsonl", [*_records(0, 10), *_records(100, 400)])
    return source, pipeline


def test_what_is_withheld_stays_so_however_much_is_added_and_nothing_else_does(
    tmp_path: Path,
) -> None:
    source, pipeline = _after_30_of_40_went_and_300_came(tmp_path)
    pipeline.run(assets=["documents"])
    assert sum(pipeline.opened.withheld().values()) == 30

    # Of 340 documents 30 are few; and of those that go now, more are not asked about.
    write_jsonl(source / "a.jsonl", [*_records(5, 10), *_records(100, 400)])
    result = pipeline.run(assets=["documents"])
    assert numbers(result, "documents")["deleted"] == 5
    assert "30 documents of a.jsonl were withheld before" in str(_accounting(result).description)

    # Half of them come back; the agreement is to the others alone.
    pipeline.opened.accept_deletions(None)
    write_jsonl(source / "a.jsonl", [*_records(5, 25), *_records(300, 400)])
    result = pipeline.run(assets=["documents"])
    assert numbers(result, "documents")["deleted"] == 15
    assert sum(pipeline.opened.withheld().values()) == 200
    found = {document["id"] for document in pipeline.documents()}
    assert found == {record["id"] for record in [*_records(5, 25), *_records(100, 400)]}


def test_few_deletions_and_small_shares_need_no_agreement_and_settings_say_how_many(
    tmp_path: Path,
) -> None:
    one_bucket = {"partitions": {"by": "bucket", "count": 1}}

    def deleted(before: int, after: int, **deletions: float) -> int:
        source, folder = tmp_path / "source", tmp_path / f"{before}-{after}-{len(deletions)}"
        write_jsonl(source / "a.jsonl", _records(0, before))
        pipeline = Pipeline(folder, str(source), settings={**one_bucket, "deletions": deletions})
        pipeline.run(assets=["documents"])
        write_jsonl(source / "a.jsonl", _records(0, after))
        return numbers(pipeline.run(assets=["documents"]), "documents")["deleted"]

    assert deleted(20, 10) == 10
    assert deleted(20, 9) == 0
    assert deleted(100, 70) == 30
    assert deleted(100, 69) == 0
    assert deleted(20, 0, max_share=1, max_refused_share=1) == 20
    assert deleted(20, 17, max_documents=2, max_share=0.1) == 0


@pytest.mark.parametrize("path", ["{}", "{}/%Y*"])
def test_documents_that_are_in_another_partition_now_are_not_gone(
    tmp_path: Path, path: str
) -> None:
    archive, staying = tmp_path / "archive", _records(500, 503, 2024)
    write_jsonl(archive / "2024.jsonl", [*staying, *_records(0, 30, 2024)])
    write_jsonl(archive / "2025.jsonl", _records(900, 903, 2025))
    pipeline = Pipeline(tmp_path, path.format(archive), settings=dict(YEARS))
    pipeline.run("2024", "2025")
    write_jsonl(archive / "2024.jsonl", staying)
    write_jsonl(archive / "2025.jsonl", [*_records(900, 903, 2025), *_records(0, 30, 2025)])
    for year in ("2024", "2025", "2024"):
        result = pipeline.run(year)
    assert all(checks(result).values())
    assert pipeline.opened.withheld() == {}
    fresh = Pipeline(tmp_path / "fresh", path.format(archive), settings=dict(YEARS))
    fresh.run("2024", "2025")
    assert _rows(pipeline) == _rows(fresh)


def test_a_document_that_is_only_withheld_belongs_to_the_partition_that_has_it(
    tmp_path: Path,
) -> None:
    """Also to an earlier one, which else would not own it."""
    archive = tmp_path / "archive"
    write_jsonl(archive / "2025.jsonl", _records(0, 30, 2025))
    write_jsonl(archive / "2024.jsonl", _records(900, 903, 2024))
    pipeline = Pipeline(tmp_path, f"{archive}/%Y.jsonl", settings=dict(YEARS))
    pipeline.run("2024", "2025")
    write_jsonl(archive / "2025.jsonl", [])
    pipeline.run("2025")
    assert pipeline.opened.withheld() == {"2025": 30}
    write_jsonl(archive / "2024.jsonl", _records(0, 30, 2024))
    pipeline.run("2024")
    assert {row[1] for row in _rows(pipeline)} == {"2024"}
    assert checks(pipeline.run("2025", assets=["vector_index"]))["completeness"]
    assert {row[1] for row in _rows(pipeline)} == {"2024"}
    assert all(checks(pipeline.run("2025")).values())
    assert pipeline.opened.withheld() == {}
    assert {row[1] for row in _rows(pipeline)} == {"2024"}


def test_a_folder_of_notes_that_is_renamed_loses_nothing_and_needs_no_agreement(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    (source / "old").mkdir(parents=True)
    _notes(source / "old")
    pipeline = Pipeline(tmp_path, str(source), settings=dict(BUCKETS))
    pipeline.run()
    embedded = len(pipeline.embedder.texts)
    (source / "old").rename(source / "new")
    result = pipeline.run()
    assert all(checks(result).values())
    assert {row[0].partition("/")[0] for row in _rows(pipeline)} == {"new"}
    assert len(pipeline.embedder.texts) == embedded


def test_a_run_that_is_broken_off_forgets_no_deletion_that_it_withheld(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it added would else make the share of what goes a small one."""
    _, pipeline = _after_30_of_40_went_and_300_came(tmp_path)
    replace = Ingest._replace_documents

    def broken_off(self: Ingest, database: Any, partition: str, *rest: Any) -> dict[str, int]:
        numbers = replace(self, database, partition, *rest)
        if partition == "bucket_3":
            raise OSError("the disk is full")
        return numbers

    with monkeypatch.context() as patch:
        patch.setattr(Ingest, "_replace_documents", broken_off)
        assert not pipeline.run(assets=["documents"], raise_on_error=False).success
    result = pipeline.run(assets=["documents"])
    assert sum(pipeline.opened.withheld().values()) == 30
    assert numbers(result, "documents")["deleted"] == 0


def test_the_job_that_accepts_deletions_removes_them(tmp_path: Path) -> None:
    source = tmp_path / "source"
    _export(source)
    write_jsonl(source / "other.jsonl", _records(900, 903))
    one_bucket = {"partitions": {"by": "bucket", "count": 1}}
    pipeline = Pipeline(tmp_path, str(source), settings=one_bucket)
    pipeline.run()
    _cut(source)
    pipeline.run(assets=["documents"])
    assert pipeline.opened.withheld() == {"bucket_0": 60}
    own = collection_definitions(pipeline.collection)
    definitions = dg.Definitions(
        assets=own.assets,
        jobs=own.jobs,
        resources=pipeline.resources,
        executor=dg.in_process_executor,
    )
    job = definitions.resolve_job_def("corpus_accept_deletions")
    assert all(checks(job.execute_in_process(partition_key="bucket_0")).values())
    assert pipeline.opened.withheld() == {}
    assert {row[0] for row in _rows(pipeline)} == {"d900", "d901", "d902"}


def test_to_accept_where_nothing_is_withheld_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "a.jsonl", _records(0, 3))
    pipeline = Pipeline(tmp_path, str(tmp_path / "a.jsonl"), settings=dict(BUCKETS))
    _load(pipeline, monkeypatch)
    assert (
        "No deletions of 'corpus' are withheld."
        in CliRunner().invoke(app, ["accept", "corpus"]).output
    )
    refused = CliRunner().invoke(app, ["accept", "corpus", "--partition", "bucket_1"])
    assert refused.exit_code == 1
    assert "No deletions of 'corpus' are withheld there" in refused.output
    wrong = CliRunner().invoke(app, ["accept", "corpus", "--partition", "bucket_7"])
    assert "no partition 'bucket_7'" in wrong.output
