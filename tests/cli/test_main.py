"""A mistake of the user ends in one sentence, a bug of ours in its traceback."""

import errno
import os

import pytest
from typer.testing import CliRunner

from embedding_assets import project
from embedding_assets.cli.main import app
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
