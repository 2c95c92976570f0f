"""`embedding-assets check`: what would fail later, told before anything is run."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from embedding_assets.cli.main import app
from embedding_assets.project import project_definitions
from tests.support.pipeline import write_jsonl
from tests.support.project import Project
from tests.support.redis_server import RedisServer


@pytest.fixture
def good(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The settings of a collection with which nothing is wrong; its data folder is new."""
    monkeypatch.setenv("EMBEDDING_DATA_DIR", str(tmp_path / "data"))
    records = [{"id": f"{number}", "text": "A cat sleeps."} for number in range(10)]
    source = write_jsonl(project.folder / "docs.jsonl", records)
    settings = {"name": "docs", "source": {"path": str(source)}}
    project.write(settings)
    return settings


def check(*arguments: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """The exit status, and by subject the status and the sentence."""
    result = CliRunner().invoke(app, ["check", *arguments, "--json"])
    found = json.loads(result.stdout)
    return result.exit_code, {one["subject"]: (one["status"], one["sentence"]) for one in found}


def test_where_all_is_well_each_line_says_so_and_nothing_is_made(
    good: dict[str, Any], tmp_path: Path
) -> None:
    status, found = check()
    assert status == 0
    assert {status for status, _ in found.values()} == {"ok"}
    assert found["source"][1].startswith("1 files at ")
    assert found["records"][1] == "10 of the first 10 records become documents"
    assert found["embedder"][1].endswith("all-MiniLM-L6-v2 is on this machine")
    assert not (tmp_path / "data" / "vectors").exists()
    output = CliRunner().invoke(app, ["check", good["name"]]).output
    lines = output.splitlines()
    assert lines[0] == "docs"
    assert lines[1].startswith("  ✓ settings ")
    assert "all collections" in lines


@pytest.mark.parametrize(
    ("changes", "subject", "status", "said"),
    [
        ({"source": {"path": "nowhere/*.jsonl"}}, "source", "error", "does not exist"),
        (
            {"source": {"path": "docs.jsonl", "fields": {"text": "body"}}},
            "records",
            "error",
            "0 of the first 10 records become documents; refused: empty_text 10, such as",
        ),
        (
            {"source": {"path": "docs.jsonl", "fields": {"id": "uuid"}}},
            "records",
            "error",
            "no_id 10, such as docs.jsonl:1: no field 'uuid'",
        ),
        ({"embedder": {"model": "./models/mine"}}, "embedder", "error", "models/mine' does not"),
        ({"embedder": {"model": "acme/none"}}, "embedder", "warning", "is not on this machine"),
        (
            {"embedder": {"provider": "openai", "model": "text-embedding-3-small"}},
            "embedder",
            "error",
            "OPENAI_API_KEY is not set",
        ),
        (
            {"fallback": {"provider": "openai", "model": "text-embedding-3-small"}},
            "fallback",
            "error",
            "OPENAI_API_KEY is not set",
        ),
        (
            {"evaluation": {"queries": "q.jsonl", "qrels": "r.tsv"}},
            "evaluation",
            "error",
            "evaluation.queries: there is nothing at",
        ),
    ],
    ids=str,
)
def test_what_would_fail_is_told_with_what_to_do(
    project: Project,
    good: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    subject: str,
    status: str,
    said: str,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("HF_HOME", str(project.folder))
    project.write({**good, **changes})
    exit_code, found = check("docs")
    assert exit_code == (1 if status == "error" else 0)
    assert found[subject][0] == status
    assert said in found[subject][1]
    assert {name for name, one in found.items() if one[0] != "ok"} == {subject}


def test_a_key_is_looked_for_but_not_shown_and_a_broken_file_is_an_error(
    project: Project, good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    openai = {"provider": "openai", "model": "text-embedding-3-small"}
    project.write({**good, "embedder": openai})
    status, found = check()
    assert status == 0
    assert found["embedder"][1].endswith("its key is in OPENAI_API_KEY; the server was not asked")
    assert "secret" not in str(found)
    project.write({**good, "embedder": {**openai, "modle": "x"}})
    status, found = check()
    assert status == 1
    assert "embedder.modle is no setting" in found["settings"][1]


def test_stores_that_cannot_be_reached_are_told_without_their_password(
    good: dict[str, Any], monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer
) -> None:
    monkeypatch.setenv("EMBEDDING_CACHE", redis_server.url)
    monkeypatch.setenv("EMBEDDING_RATE_LIMITER", redis_server.url)
    status, found = check()
    assert status == 0
    assert found["rate limiter"][0] == found["cache"][0] == "ok"
    for variable in ("EMBEDDING_CACHE", "EMBEDDING_RATE_LIMITER"):
        monkeypatch.setenv(variable, "redis://:secret@127.0.0.1:1/0")
    status, found = check()
    assert status == 1
    assert {name for name, one in found.items() if one[0] == "error"} == {"cache", "rate limiter"}
    assert "secret" not in str(found)
    monkeypatch.setenv("EMBEDDING_CACHE", "gopher://x")
    status, found = check()
    assert (status, found["environment"][0]) == (1, "error")
    assert good["name"] == "docs"


def test_a_data_folder_that_cannot_be_written_is_told(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EMBEDDING_DATA_DIR", str(tmp_path / "file" / "data"))
    status, found = check(good["name"])
    assert status == 1
    assert found["data folder"] == (
        "error", f"{tmp_path / 'file'} is no folder: name another one."
    )  # fmt: skip


def test_a_path_that_is_not_there_yet_is_warned_of_and_stops_only_commands_that_look_for_mistakes(
    project: Project,
    good: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    templated = {"path": "{{ env.ARCHIVE }}/*.jsonl"}
    project.write({**good, "source": templated})
    unset = "source.path: the environment variable ARCHIVE is not set; it may stand in"
    assert unset in check(good["name"])[1]["source"][1]
    project_definitions()
    assert unset in caplog.text
    monkeypatch.setenv("ARCHIVE", "/mnt/archive")
    project.write({**good, "name": "later", "source": {"path": "later/"}}, "later")
    said = f"later/defs.yaml:4: source.path: there is nothing at {project.folder}/later"
    keys = {key.path[0] for key in project_definitions().resolve_asset_graph().get_all_asset_keys()}
    assert keys == {"docs", "docs_source", "later", "later_source"}
    assert said in caplog.text
    assert "there is nothing at /mnt/archive" in caplog.text
    monkeypatch.setenv("DAGSTER_IS_DEFS_VALIDATION_CLI", "1")
    with pytest.raises(ValueError, match=said):
        project_definitions()
