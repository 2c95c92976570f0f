"""`embedding-assets new`: data are looked at, and what a person agrees to is written."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import embedding_assets as ea
from embedding_assets.cli.main import app
from resources.document_sources import Document
from tests.support.project import Project

TEXT = "The library is open from nine to five and closed on public holidays."


@pytest.fixture
def hours(project: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CSV file in the project, which is the working directory."""
    monkeypatch.chdir(project.folder)
    file = project.folder / "opening hours.csv"
    file.write_text(f"key,title,body\n1,Zoo [bold],{TEXT}\n2,Library,{TEXT}\n3,Museum,\n")
    project.beside.rmdir()
    return file


def run(*arguments: str, answer: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["new", *arguments], input=answer)
    return result.exit_code, result.output


def test_after_a_yes_the_collection_is_there_and_the_next_commands_are_said(
    hours: Path, project: Project
) -> None:
    status, output = run(hours.name, answer="y\n")
    assert status == 0
    for part in (
        "Zoo [bold]",
        "key",
        "1 of 3 records would be refused",
        "empty_text",
        "hours.csv:4",
    ):
        assert part in output
    assert "embedding-assets build opening_hours" in output
    assert "embedding-assets search 'Zoo [bold]' -c opening_hours" in output
    file = project.beside.parent / "opening_hours" / "defs.yaml"
    assert f"Write {file.relative_to(project.folder)}?" in output
    assert "path: opening hours.csv" in file.read_text()
    collection = ea.open("opening_hours")
    documents = [one for one in collection.resources.source.read() if isinstance(one, Document)]
    assert [one.title for one in documents] == ["Zoo [bold]", "Library"]


def test_nothing_is_written_after_a_no_or_over_what_is_there(hours: Path, project: Project) -> None:
    status, output = run(hours.name, answer="n\n")
    assert status == 0
    assert "Nothing was written." in output
    assert not (project.beside.parent / "opening_hours").exists()
    assert run(hours.name, "--yes", "--name", "mine")[0] == 0
    for arguments in (["--name", "mine"], []):
        if not arguments:
            (project.beside.parent / "other").mkdir()
            (project.beside.parent / "mine").rename(project.beside.parent / "opening_hours")
        status, output = run(hours.name, "--yes", *arguments)
        assert status == 1
        assert "There is a collection" in output
        assert "--name" in output


def test_a_collection_of_that_name_in_another_folder_is_found_before_data_are_looked_at(
    hours: Path, project: Project
) -> None:
    project.write({"name": "mine", "source": {"path": "x"}}, "elsewhere")
    status, output = run("nowhere.csv", "--yes", "--name", "mine")
    assert status == 1
    assert "elsewhere/defs.yaml" in output
    status, output = run("nowhere.csv", "--name", "not a name")
    assert status == 1
    assert "letters, digits and underscores; got 'not a name'" in output
    assert hours.exists()


def test_machines_get_one_object_and_only_yes_writes(hours: Path) -> None:
    status, output = run(hours.name, "--json")
    assert status == 0
    found = json.loads(output)
    assert found["fields"]["id"] == "key"
    assert found["example"]["title"] == "Zoo [bold]"
    assert (found["records"], found["records_are_estimated"]) == (3, False)
    assert [(one["reason"], one["records"]) for one in found["refused"]] == [("empty_text", 1)]
    assert not found["written"]
    assert not Path(found["file"]).exists()
    assert json.loads(run(hours.name, "--json", "--yes")[1])["written"]
    assert list(ea.collections()) == ["opening_hours"]


def test_what_cannot_be_a_collection_is_one_error(hours: Path) -> None:
    hours.write_text("")
    status, output = run(hours.name)
    assert status == 1
    assert output == f"Error: {hours} is empty: there is nothing to look at.\n"
    hours = hours.rename("nul.jsonl")
    hours.write_text('{"id": 1, "text": "binary \\u0000"}\n')
    status, output = run(hours.name, "--yes")
    assert status == 1
    assert "nul_character" in output
    assert "None of these records would be stored." in output
