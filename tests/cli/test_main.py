"""A mistake of the user ends in one sentence, a bug of ours in its traceback."""

import pytest
from typer.testing import CliRunner

from embedding_assets import project
from embedding_assets.cli.main import app
from resources.errors import EmbedderUnavailableError, NotFoundError


@pytest.mark.parametrize("error", [NotFoundError, EmbedderUnavailableError, ValueError, OSError])
def test_only_errors_of_this_project_are_said_in_one_sentence(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise error("this and that")

    monkeypatch.setattr(project, "load_collections", fails)
    result = CliRunner().invoke(app, ["collections"])
    assert result.exit_code == 1
    if error in (ValueError, OSError):
        assert isinstance(result.exception, error)
    else:
        assert isinstance(result.exception, SystemExit)
        assert result.output == "Error: this and that\n"
