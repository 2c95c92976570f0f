"""`embedding-assets keys`: the secret is shown once, and nowhere else."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from embedding_assets.cli.main import app
from embedding_assets.service.keys import KeyRing


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That of the keys, in a data folder which is not there yet."""
    monkeypatch.setenv("EMBEDDING_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data" / "api_keys.json"


def run(*arguments: str, exit_code: int = 0, answer: str | None = None) -> Result:
    result = CliRunner().invoke(app, ["keys", *arguments], input=answer)
    assert result.exit_code == exit_code, result.output
    return result


def listed() -> list[dict[str, Any]]:
    return json.loads(run("list", "--json").stdout)


def test_a_key_is_printed_alone_once_and_what_it_is_beside_it(file: Path) -> None:
    created = run("create", "web", "--scope", "search:peps", "--scope", "embed")
    presented = created.stdout.removesuffix("\n")
    key = KeyRing(file).find(presented)
    assert key is not None
    assert key.scopes == {"search:peps", "embed"}
    secret = presented.removeprefix(f"ea_{key.id}_")
    assert f"'web' ({key.id}) is good for embed, search:peps, with no limits" in created.stderr
    assert "shown this once" in created.stderr
    outputs = [
        created.stderr,
        run("list").output,
        run("list", "--json").output,
        run("create", "web", exit_code=1).output,
        run("revoke", presented[:-1], exit_code=1).output,
        run("revoke", presented, answer="n\n", exit_code=1).output,
        run("revoke", presented, "--yes").output,
        file.read_text(),
    ]
    assert not [output for output in outputs if secret[:-1] in output]


def test_limits_and_expiry_are_kept_and_listed() -> None:
    run("create", "plain")
    limits = ("--requests", "60", "--texts", "1000", "--tokens", "500000")
    created = run("create", "limited", *limits, "--expires", "2099-12-31")
    assert "60 requests, 1,000 texts, 500,000 tokens a minute" in created.stderr
    assert "expires at 2099-12-31T00:00:00+00:00" in created.stderr
    plain, limited = listed()
    assert plain == {
        "name": "plain",
        "id": plain["id"],
        "scopes": ["embed", "search"],
        "limits": {"requests": None, "texts": None, "tokens": None},
        "created": plain["created"],
        "expires": None,
        "state": "active",
    }
    assert limited["limits"] == {"requests": 60, "texts": 1000, "tokens": 500_000}
    assert limited["expires"] == "2099-12-31T00:00:00+00:00"
    table = run("list").stdout
    assert all(word in table for word in ("plain", "limited", "active"))


def test_who_has_no_key_is_told_how_to_make_one(file: Path) -> None:
    assert "`embedding-assets keys create NAME`" in run("list").stderr
    assert listed() == []
    assert not file.parent.exists(), "to look writes nothing"


def test_to_revoke_asks_unless_told_not_to() -> None:
    run("create", "a")
    refused = run("revoke", "a", answer="n\n", exit_code=1)
    assert "Revoke the API key 'a'" in refused.stderr
    run("revoke", "a", answer="", exit_code=1)
    assert listed()[0]["state"] == "active"
    run("revoke", "a", answer="y\n")
    run("create", "b")
    assert "Revoked the API key 'b'" in run("revoke", listed()[1]["id"], "--yes").stderr
    assert [key["state"] for key in listed()] == ["revoked", "revoked"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "a", "--scope", "serach"), "A scope is embed, search, search:COLLECTION"),
        (("create", "a", "--expires", "soon"), "An expiry looks like 12h, 90d or 8w from now"),
        (("create", "a", "--expires", "2001-01-01"), "A key expires in the future"),
        (("create", "taken"), "There is an API key 'taken' already. Choose another name"),
        (("create", ""), "The name of an API key has 1 to 64 printable characters"),
        (("revoke", "nobody", "--yes"), "There is no API key 'nobody'"),
        (("revoke", "nobody"), "There is no API key 'nobody'"),
        (("revoke", "gone"), "The API key 'gone' ("),
    ],
)
def test_a_mistake_is_one_sentence_and_changes_nothing(
    arguments: tuple[str, ...], said: str, file: Path
) -> None:
    run("create", "taken")
    run("create", "gone")
    run("revoke", "gone", "--yes")
    before = file.read_text()
    result = run(*arguments, exit_code=1)
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {said}")
    assert len(result.stderr.splitlines()) == 1
    assert file.read_text() == before


def test_a_limit_of_nothing_is_refused(file: Path) -> None:
    run("create", "a", "--tokens", "0", exit_code=2)
    assert not file.exists()


def test_a_file_that_is_broken_is_one_sentence(file: Path) -> None:
    run("create", "a")
    file.write_text("{")
    for arguments in (("list",), ("create", "b"), ("revoke", "a", "--yes")):
        assert run(*arguments, exit_code=1).stderr.startswith(f"Error: {file} should hold API keys")
    assert file.read_text() == "{"
