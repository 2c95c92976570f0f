"""The examples of `docs/python.md` and the cells of the notebook, from top to bottom."""

import json
import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from embedding_assets.definitions import defs
from tests.support.checkout import PROJECT

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
        patch.delenv("DAGSTER_HOME", raising=False)
        definitions = defs()
        assets = [one for one in definitions.assets or () if isinstance(one, dg.AssetsDefinition)]
        stages = ("documents", "deduplicated_chunks", "embeddings", "vector_index")
        dg.materialize(
            assets,
            selection=[dg.AssetKey(["peps", stage]) for stage in stages],
            resources=definitions.resources,
            tags={
                "dagster/asset_partition_range_start": "2019",
                "dagster/asset_partition_range_end": "2020",
            },
            raise_on_error=False,  # of two years alone the check of retrieval quality fails
        )
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
