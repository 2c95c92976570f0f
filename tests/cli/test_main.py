"""A mistake of the user ends in one sentence, a bug of ours in its traceback."""

import errno
import json
import os
from datetime import datetime, timezone
from importlib.metadata import version as version_of
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embedding_assets import project
from embedding_assets.cli.main import app
from embedding_assets.cli.terminal import print_rows
from resources.errors import EmbedderUnavailableError, NotFoundError


@pytest.mark.parametrize("error", [NotFoundError, EmbedderUnavailableError, ValueError, OSError])
def test_only_errors_of_this_project_are_said_in_one_sentence(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error("this and that")

    monkeypatch.setattr(project, "load_collections", fails)
    result = CliRunner().invoke(app, ["collections"])
    assert result.exit_code == 1
    if error in (ValueError, OSError):
        assert isinstance(result.exception, error)
    else:
        assert isinstance(result.exception, SystemExit)
        assert result.output == "Error: this and that\n"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_data_folder_that_is_read_only_is_one_sentence(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number), "/data/cache.duckdb.lock")

    monkeypatch.setattr(project, "load_collections", fails)
    result = CliRunner().invoke(app, ["collections"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: Access to /data/cache.duckdb.lock is not permitted (")
    assert "EMBEDDING_DATA_DIR" in result.output
    assert len(result.output.splitlines()) == 1


def test_what_was_asked_for_is_shown_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        pytest.fail("it was loaded")

    monkeypatch.setattr(project, "load_collections", fails)
    runner = CliRunner()
    version = version_of("embedding-assets")
    assert runner.invoke(app, ["--version"]).output == f"embedding-assets {version}\n"
    for arguments in ([], ["--help"]):
        output = runner.invoke(app, arguments).output
        assert "embedding-assets new FOLDER" in output
        assert all(name in output for name in ("build", "search", "check", "plan", "cache"))
    empty = runner.invoke(app, ["search", " "])
    assert (empty.exit_code, empty.output) == (1, "Error: The text to search for is empty.\n")
    for wrong in (["search", "x", "-k", "0"], ["evaluate", "x", "--queries", "nowhere"], ["nope"]):
        assert runner.invoke(app, wrong).exit_code == 2


def test_times_in_json_are_iso_8601(capsys: pytest.CaptureFixture[str]) -> None:
    moment = datetime(2020, 3, 4, 5, 6, 7, tzinfo=timezone.utc)
    print_rows([{"time": moment, "day": moment.date(), "text": "ü"}], True)
    expected = {"time": "2020-03-04T05:06:07+00:00", "day": "2020-03-04", "text": "ü"}
    assert json.loads(capsys.readouterr().out) == [expected]


def test_mistakes_end_in_one_sentence_before_anything_heavy_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDING_DATA_DIR", str(tmp_path))
    for arguments, said in (
        (["hello", "-c", "nowhere"], "Error: There is no collection 'nowhere'. Collections: "),
        ([" ", "-c", "peps"], "The text to search for is empty"),
        (["hi", "-c", "peps"], "Build it first: `embedding-assets build peps`"),
    ):
        done = CliRunner().invoke(app, ["search", *arguments])
        assert done.exit_code == 1
        assert said in done.output
        assert "Traceback" not in done.output
    assert not list(tmp_path.rglob("*.xml"))  # no model was compiled to find that out
