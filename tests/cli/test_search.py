"""`embedding-assets search`: documents with their best passages, for people and for machines."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from embedding_assets import project
from embedding_assets.cli.main import app
from resources.embedders.local import LocalEmbedder
from tests.support.pipeline import Pipeline, write_jsonl

MENAGERIE = (
    "The lion eats meat. " * 12 + "Visitors may feed the goats at noon. " + "It rains. " * 12
)
ZOO: list[dict[str, object]] = [
    {
        "id": "hours",
        "title": "Opening hours",
        "text": "We are open from nine to five.",
        "day": "2020-03-04",
        "floor": 2,
    },
    {
        "id": "rules",
        "title": "House rules",
        "text": f"{MENAGERIE}\n\nReferences\n\n[1] https://example.org/feeding-goats-at-noon",
        "day": "2020-03-05T12:30:00Z",
    },
]
FARM: list[dict[str, object]] = [{"id": "hours", "text": "The farm shop is open from ten to four."}]
GOATS = "When can I feed the goats?"


@pytest.fixture(scope="module")
def _built(  # pyright: ignore[reportUnusedFunction]
    tmp_path_factory: pytest.TempPathFactory, model_cache: Path
) -> Iterator[None]:
    """Two collections, and one of which nothing is built."""
    folder = tmp_path_factory.mktemp("search")
    embedder = LocalEmbedder(model_cache=str(model_cache), device="cpu", precision="fp32")

    def pipeline(name: str, records: list[dict[str, object]], **settings: object) -> Pipeline:
        source = str(write_jsonl(folder / name / "file.jsonl", records))
        chunks = {"max_tokens": 64, "context": "none"}
        return Pipeline(folder, source, name, embedder, {"chunking": chunks, **settings})

    by_year = {"by": "year", "start": "2020-01-01"}
    zoo = pipeline("zoo", ZOO, partitions=by_year, source={"fields": {"timestamp": "day"}})
    farm = pipeline("farm", FARM, partitions={"by": "bucket", "count": 1})
    assert zoo.run("2020").success
    assert farm.run().success
    both = [
        (one.opened.settings, one.opened.resources) for one in (farm, pipeline("ruin", []), zoo)
    ]

    def load(name: str | None = None) -> project.LoadedCollections:
        return project.LoadedCollections(
            [one for one in both if name in (None, one[0].name)], ["x/defs.yaml: broken"]
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(project, "load_collections", load)
        patch.chdir(folder)
        yield


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["search", *arguments])


def shown(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


pytestmark = pytest.mark.usefixtures("_built")


def test_a_document_is_shown_once_with_date_place_and_its_best_sentences() -> None:
    output = shown(GOATS, "-c", "zoo", "-k", "1")
    lines = output.splitlines()
    assert lines[:2] == [f"zoo: {GOATS}", ""]
    assert lines[2].endswith("  House rules  2020-03-05 12:30")
    assert lines[3] == "      rules · zoo/file.jsonl:2"
    assert output.count("House rules") == 1
    assert "Visitors may feed the goats at noon." in " ".join(output.split())
    assert "References" not in output
    assert len(output.splitlines()) < 12
    assert not any(line.endswith(" ") for line in lines)
    hours = shown("When do you close?", "-c", "zoo", "-k", "1").splitlines()
    assert hours[2:5] == [
        f"{hours[2][:4]}  Opening hours  2020-03-04",
        "      hours · zoo/file.jsonl:1",
        "      We are open from nine to five.",
    ]


def test_full_shows_whole_chunks_and_context_those_around_them() -> None:
    full = " ".join(shown(GOATS, "-c", "zoo", "-k", "1", "--full").split())
    assert "Visitors may feed the goats at noon. It rains. It rains." in full
    assert MENAGERIE.strip() not in full
    around = " ".join(shown(GOATS, "-c", "zoo", "-k", "1", "--context", "9").split())
    assert MENAGERIE.strip() in around
    assert "[1] https://example.org" in around


def test_json_has_all_passages_and_times_in_iso_8601() -> None:
    (found,) = json.loads(shown(GOATS, "-c", "zoo", "-k", "1", "--json"))
    passages = found.pop("passages")
    assert found.pop("score") == passages[0]["score"]
    assert found == {
        "collection": "zoo",
        "document_id": "rules",
        "title": "House rules",
        "timestamp": "2020-03-05T12:30:00+00:00",
        "location": "zoo/file.jsonl:2",
        "partition": "2020",
        "metadata": {},
    }
    assert len({one["chunk_number"] for one in passages}) == len(passages) > 2
    assert passages[-1]["text"].startswith("References")
    (found,) = json.loads(shown(GOATS, "-c", "zoo", "-k", "1", "--json", "--context", "1"))
    assert passages[0]["text"] in found["context"]


def test_several_collections_are_searched_and_each_hit_says_which() -> None:
    opening = "At what time do you open?"
    output = shown(opening, "-c", "zoo", "-c", "farm", "-k", "2")
    assert output.startswith(f"zoo, farm: {opening}\n")
    assert "      zoo · hours · zoo/file.jsonl:1\n" in output
    assert "  hours\n      farm · farm/file.jsonl:1\n" in output, "without a title the id is one"
    by_default = run(opening, "-k", "2", "--json")
    assert by_default.exit_code == 0
    found = [(one["collection"], one["document_id"]) for one in json.loads(by_default.stdout)]
    assert {*found} == {("zoo", "hours"), ("farm", "hours")}
    assert "Not searched: x/defs.yaml: broken" in by_default.stderr
    assert "Not searched, for nothing is built there yet: ruin." in by_default.stderr


def test_a_collection_that_is_named_must_be_built() -> None:
    result = run("anything", "-c", "zoo", "-c", "ruin")
    assert result.exit_code == 1
    assert "'ruin' has no index" in result.stderr
