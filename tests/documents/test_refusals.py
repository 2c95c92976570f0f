"""What is refused is seen at once: in the plan, the log, the metadata, the check and a command."""

import json
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from typer.testing import CliRunner

from embedding_assets import project
from embedding_assets.cli import terminal
from embedding_assets.cli.main import app
from embedding_assets.documents import unchanged
from tests.support.fakes import POISON
from tests.support.instance import instance_in_memory
from tests.support.pipeline import Pipeline, per_partition, write_jsonl

DOCUMENTS = ["documents"]
BUCKETS = {"partitions": {"by": "bucket", "count": 4}}
EXAMPLE = (
    "export.csv line 2: no field 'id' (did you mean 'Id'? set source.fields.id); "
    "the record has: 'Id', 'Title'"
)


@pytest.fixture(autouse=True)
def _alone_and_trusting(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setattr(unchanged, "_CLOCK_TICK", timedelta(0))
    monkeypatch.setattr(terminal.console, "_width", 500)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)


def _pipeline(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Pipeline:
    """The project's one collection, which reads what changed in `folder/source`."""
    settings = {**BUCKETS, **settings}
    settings["source"] = {"read_unchanged_files": False, **settings.get("source", {})}
    pipeline = Pipeline(folder, str(folder / "source"), settings=settings)
    opened = pipeline.opened
    loaded = project.LoadedCollections([(opened.settings, opened.resources)], [])
    monkeypatch.setattr(project, "load_collections", lambda *_: loaded)
    return pipeline


def _accounting(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    (found,) = [e for e in result.get_asset_check_evaluations() if e.check_name == "accounting"]
    return found


def _command(*arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result


def test_a_wrong_field_name_is_seen_wherever_somebody_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    rows = "".join(f"{n},Title {n},Body {n}\n" for n in range(200))
    (tmp_path / "source" / "export.csv").write_text(f"Id,Title,text\n{rows}")
    pipeline = _pipeline(tmp_path, monkeypatch)

    planned = _command("plan").stdout
    assert EXAMPLE in planned
    assert "200 records are refused, 200 of them belong to no partition" in planned
    assert "0 documents are there" in planned
    (reason,) = json.loads(_command("plan", "--json").stdout)["refused"]
    assert (reason["reason"], reason["records"], reason["file"]) == ("no_id", 200, "export.csv")

    for _ in range(2):  # and not only in the run that read it first
        with instance_in_memory() as instance:
            result = pipeline.run(assets=DOCUMENTS, instance=instance)
            told = [e for e in instance.all_logs(result.run_id) if e.level == logging.WARNING]
        (line,) = [entry.user_message for entry in told if "no_id" in entry.user_message]
        assert line.startswith(f"Refused as no_id (200), such as {EXAMPLE}")
        assert "`embedding-assets quarantine corpus --reason no_id`" in line
        accounting = _accounting(result)
        assert not accounting.passed
        assert accounting.severity is dg.AssetCheckSeverity.ERROR
        assert str(accounting.description).startswith("All 200 records that were read were refused")
        assert EXAMPLE in str(accounting.description)
        for own in per_partition(result, "documents").values():
            assert own["quarantined_of_no_partition"] == 200
            (record,) = own["refused"].records
            assert (record.data["reason"], record.data["records"]) == ("no_id", 200)
            assert (record.data["file"], record.data["line"]) == ("export.csv", 2)

    listed = _command("quarantine", "corpus").stdout
    assert EXAMPLE in listed
    assert "20 of 200 entries are listed; --limit 200 lists all" in listed
    found = json.loads(_command("quarantine", "--json").stdout)
    assert len(found["entries"]) == 200
    assert found["entries"][0] == {
        "stage": "documents", "partition": None, "reason": "no_id", "document_id": None,
        "file": "export.csv", "line": 2, "attempts": 2,
        "detail": f"{EXAMPLE.partition(': ')[2]}, 'text'",
    }  # fmt: skip
    assert found["reasons"][0]["records"] == 200


@pytest.mark.parametrize(("bad", "passed"), [(2, True), (3, False)])
def test_the_check_warns_from_a_share_on_and_duplicates_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int, passed: bool
) -> None:
    records = [{"id": str(n), "text": f"Text {n}."} for n in range(14)]
    twice = [{"id": "0", "text": f"Text {n}."} for n in range(20 - len(records) - bad)]
    write_jsonl(tmp_path / "source" / "a.jsonl", [*records, *twice, *[{"id": "x"}] * bad])
    pipeline = _pipeline(tmp_path, monkeypatch)
    accounting = _accounting(pipeline.run(assets=DOCUMENTS))
    assert accounting.passed is passed
    assert accounting.severity is dg.AssetCheckSeverity.WARN
    told = str(accounting.description)
    assert ("3 of 20 records (15%) were refused, more than 10%" in told) is not passed
    assert f"empty_text ({bad}), such as a.jsonl line" in told, "also if the check passes"
    # What a green check passed over need not be read again.
    again = _accounting(pipeline.run(assets=DOCUMENTS))
    assert again.metadata["partitions_not_read_again"].value == (4 if passed else 0)
    assert again.passed is passed
    assert f"empty_text ({bad}), such as a.jsonl line" in str(again.description)


def test_of_files_with_dates_a_range_has_what_its_own_files_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for year in (2024, 2025):
        good = {"id": f"good {year}", "text": "A text.", "created": f"{year}-05-01"}
        bad = {"id": f"bad {year}", "text": " ", "created": f"{year}-05-01"}
        write_jsonl(tmp_path / "source" / f"{year}.jsonl", [good, dict(good, text="B"), bad])
    fields = {"timestamp": "created"}
    pipeline = _pipeline(
        tmp_path,
        monkeypatch,
        source={"path": str(tmp_path / "source" / "%Y.jsonl"), "fields": fields},
        partitions={"by": "year", "start": "2024-01-01"},
    )
    pipeline.run(assets=DOCUMENTS)
    everything = pipeline.opened.quarantine().read_all().to_pylist()
    assert [(e["partition"], e["reason"], e["file"]) for e in everything] == [
        (None, "empty_text", "2024.jsonl"),
        (None, "empty_text", "2025.jsonl"),
        ("2024", "duplicate_id", "2024.jsonl"),
        ("2025", "duplicate_id", "2025.jsonl"),
    ]
    of_one = pipeline.opened.quarantine("2025").read_all()
    assert set(of_one["file"].to_pylist()) == {"2025.jsonl"}
    (empty,) = pipeline.opened.quarantine("2025", "empty_text").read_all().to_pylist()
    assert empty["document_id"] == "bad 2025"
    reasons = pipeline.opened.quarantine_reasons("2024...2025")
    assert [(one.reason, one.records) for one in reasons] == [
        ("duplicate_id", 2), ("empty_text", 2),
    ]  # fmt: skip
    table = per_partition(pipeline.run("2025", assets=DOCUMENTS), "documents")["2025"]
    assert table["quarantined_of_no_partition"] == 1
    assert "Nothing of 'corpus' is refused as 'no_id'. Refused as: duplicate_id (2)" in (
        _command("quarantine", "corpus", "--reason", "no_id").stdout
    )


def test_chunks_that_could_not_be_embedded_are_listed_with_their_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [{"id": str(n), "text": f"Text {n}."} for n in range(20)]
    write_jsonl(tmp_path / "source" / "a.jsonl", [*good, {"id": "poison", "text": POISON}])
    pipeline = _pipeline(tmp_path, monkeypatch)
    with instance_in_memory() as instance:
        result = pipeline.run(instance=instance)
        told = [e.user_message for e in instance.all_logs(result.run_id) if e.level == 30]
    assert any(line.startswith("Refused as embedding_failed (1), such as a.jsonl") for line in told)
    (reason,) = pipeline.opened.quarantine_reasons()
    assert (reason.stage, reason.reason, reason.line) == ("embeddings", "embedding_failed", 21)
    (row,) = json.loads(_command("quarantine", "--json").stdout)["entries"]
    assert (row["stage"], row["document_id"]) == ("embeddings", "poison")
    assert row["partition"].startswith("bucket_")


def test_an_example_neither_steers_the_terminal_nor_holds_a_whole_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    line = '{"id": 1, "text": "\x1b]0;title\x07 \u202e' + "secret " * 100
    (tmp_path / "source" / "a\x1b[2J.jsonl").write_text(f"{line}\n")
    pipeline = _pipeline(tmp_path, monkeypatch)
    shown = _command("plan").stdout
    described = str(_accounting(pipeline.run(assets=DOCUMENTS)).description)
    shown += described + _command("quarantine").stdout
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert "a\\x1b[2J.jsonl line 1" in shown
    assert described.count("secret") < 20


def test_before_the_first_run_the_command_says_what_shows_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "source" / "a.jsonl", [{"id": "1", "text": "A text."}])
    pipeline = _pipeline(tmp_path, monkeypatch)
    result = CliRunner().invoke(app, ["quarantine"])
    assert result.exit_code == 1
    assert "`embedding-assets plan corpus` shows what a run would refuse" in result.output
    pipeline.run(assets=DOCUMENTS)
    assert _command("quarantine").stdout == "Nothing of 'corpus' is refused.\n"
