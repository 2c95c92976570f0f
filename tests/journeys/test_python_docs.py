"""The examples of `docs/python.md` and the cells of the notebook, from top to bottom."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import embedding_assets as ea
from tests.support.checkout import PROJECT
from tests.support.instance import dagster_home

pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def _sample_of_two_years(  # pyright: ignore[reportUnusedFunction]
    tmp_path_factory: pytest.TempPathFactory, model_cache: Path
) -> Any:
    data = tmp_path_factory.mktemp("data")
    (data / "models").symlink_to(model_cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)
        patch.setenv("EMBEDDING_DATA_DIR", str(data))
        patch.delenv("EMBEDDING_PROJECT", raising=False)
        patch.setenv("DAGSTER_HOME", str(dagster_home(data / "home")))
        built = ea.open("peps").build("2019...2020")
        # Of two years alone the check of retrieval quality fails.
        assert [check.check for check in built.failed_checks("ERROR")] == ["retrieval_quality"]
        yield


def _run(examples: list[str]) -> dict[str, Any]:
    """What the names mean at the end."""
    names: dict[str, Any] = {}
    for number, example in enumerate(examples, start=1):
        exec(compile(example, f"example {number}", "exec"), names)
    return names


@pytest.mark.usefixtures("_sample_of_two_years")
def test_the_examples_of_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = (PROJECT / "docs" / "python.md").read_text()
    names = _run(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    assert names["hits"][0].document_id == "pep-0604"
    assert names["everything"].num_rows == 8
    assert names["plan"].texts == 0
    assert names["built"].numbers["embeddings"]["cache_misses"] == 0
    assert "There is no collection 'nowhere'." in capsys.readouterr().out


@pytest.mark.usefixtures("_sample_of_two_years")
def test_the_cells_of_the_notebook_run() -> None:
    notebook = json.loads((PROJECT / "docs" / "first_look.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in code), "clear the outputs before you commit"
    names = _run(["".join(cell["source"]) for cell in code])
    assert names["frame"]["document_id"][0] == "pep-0604"
    assert not names["neighbours"].empty
    assert names["documents"]["partition"].unique().tolist() == ["2019", "2020"]
