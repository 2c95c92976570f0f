"""What comes from outside is printed as it is: no markup, nothing that steers a terminal."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embedding_assets import project
from embedding_assets.cli import terminal
from embedding_assets.cli.main import app
from tests.support.pipeline import Pipeline, write_jsonl

RECORDS = [
    {"id": "notes[draft].md", "title": "Draft [bold]title[/bold]", "text": "Sharpen a scythe."},
    {"id": "[/docs]/setup.md", "title": "ends with a backslash\\", "text": "[/] is lit."},
    {
        "id": "a[red]b:smile:",
        "title": ":warning: [link=x]y",
        "text": "[/INST] tokens :bomb: [@x",
    },
    {
        "id": "esc\x1b[31mred",
        "title": "Esc \x1b[31mred",
        "text": "\x1b]0;title\x07 \u202e.",
    },
    {"id": "nl\nid", "title": "two\nlines", "text": "A newline\r\nwithin a text."},
    {"id": "Ünïcode　東京 🤦🏽‍♂️", "title": "नमस्ते", "text": "می‌خواهم and \u00a0 others."},
    {"id": "long/" * 60 + "end.md", "title": "", "text": "An id longer than the terminal."},
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder = tmp_path_factory.mktemp("hostile")
    source = write_jsonl(folder / "a[b].jsonl", RECORDS)
    pipeline = Pipeline(folder, str(source), settings={"partitions": {"by": "bucket", "count": 1}})
    pipeline.run()
    with pytest.MonkeyPatch.context() as patch:
        one = (pipeline.opened.settings, pipeline.opened.resources)
        patch.setattr(project, "load_collections", lambda *_: project.LoadedCollections([one], []))
        yield pipeline


def shown(width: int, *arguments: str) -> str:
    """The output on a terminal of so many columns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terminal.console, "_width", width)
        result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    assert not {"\x1b", "\x07", "\u202e", "\r"} & set(result.output)
    return result.output


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("question", ["[/INST] chat", "[bold]", "\\[/x]\\", ":smile:", "a\x1b[2J"])
def test_questions_ids_and_texts_are_shown_as_they_are(question: str) -> None:
    output = shown(500, "search", question, "-k", "9")
    assert f"corpus: {question}".replace("\x1b", "\\x1b") in output
    for part in (
        "notes[draft].md", "Draft [bold]title[/bold]", "[/docs]/setup.md", "with a backslash\\\n",
        "[/] is lit", "a[red]b:smile:", ":warning: [link=x]y", "[/INST] tokens :bomb: [@x",
        "esc\\x1b[31mred", "Esc \\x1b[31mred", "\\x1b]0;title\\x07 \\u202e", "nl\\nid", "two lines",
        "Ünïcode　東京", "नमस्ते", "می‌خواهم", "long/" * 60 + "end.md",
    ):  # fmt: skip
        assert part in output
    found = CliRunner().invoke(app, ["search", question, "--json", "-k", "9"]).stdout
    assert {hit["document_id"] for hit in json.loads(found)} == {one["id"] for one in RECORDS}


@pytest.mark.usefixtures("hostile")
def test_an_id_is_whole_however_narrow_the_terminal() -> None:
    lines = shown(60, "search", "x", "-k", "9").splitlines()
    assert all(len(line) <= 60 for line in lines[1:])
    assert "long/" * 60 + "end.md" in "".join(line[6:] for line in lines)


def test_names_of_sources_and_models_are_shown_as_they_are(hostile: Pipeline) -> None:
    assert str(Path(hostile.source)) in shown(500, "collections")


@pytest.mark.usefixtures("hostile")
def test_an_error_does_not_steer_the_terminal() -> None:
    result = CliRunner().invoke(app, ["search", "x", "-c", "\x1b[2Jno[/x]\udc80"])
    assert result.exit_code == 1
    assert "There is no collection '\\x1b[2Jno[/x]\\udc80'." in result.output
