"""The report of a collection, from real runs in a real Dagster instance."""

import base64
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from embedding_assets.operations.report import quarantine_reasons
from embedding_assets.operations.report_plots import COST, MAX_PNG_BYTES, history_png, map_png
from embedding_assets.operations.vector_sample import VectorSample, principal_components, spread
from embedding_assets.runs.history import by_run, latest_materializations
from tests.support.fakes import POISON
from tests.support.instance import instance_in_memory
from tests.support.pipeline import ASSETS, Pipeline, write_jsonl

ASSET = dg.AssetKey(["corpus", "embeddings"])


@pytest.fixture(scope="module")
def instance() -> Any:
    with instance_in_memory() as instance:
        yield instance


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, instance: dg.DagsterInstance) -> Pipeline:
    """Two runs over three partitions, and the report."""
    folder = tmp_path_factory.mktemp("report")
    pipeline = Pipeline(
        folder, str(folder / "a.jsonl"), settings={"partitions": {"by": "bucket", "count": 3}}
    )
    documents = [
        {"id": f"d{n}", "title": f"On *{n}* | <b>$x$", "text": f"Chapter {n} tells of {n}."}
        for n in range(40)
    ]
    refused = [{"id": "bad", "text": POISON}, {"id": "empty", "text": ""}]
    write_jsonl(folder / "a.jsonl", documents + refused)
    pipeline.run(instance=instance)
    write_jsonl(folder / "a.jsonl", documents[5:] + refused)
    pipeline.run(instance=instance, assets=[*ASSETS, "report"])
    return pipeline


@pytest.fixture(scope="module")
def metadata(pipeline: Pipeline, instance: dg.DagsterInstance) -> dict[str, Any]:
    del pipeline  # it has run
    event = instance.get_latest_materialization_event(dg.AssetKey(["corpus", "report"]))
    assert event is not None
    assert event.asset_materialization is not None
    return dict(event.asset_materialization.metadata)


def _artifact(pipeline: Pipeline, name: str) -> bytes:
    with pipeline.artifacts.reading(f"corpus/report/{name}") as path:
        return path.read_bytes()


def test_the_report_is_materialised_with_the_partitions_in_one_run(
    metadata: dict[str, Any],
) -> None:
    assert metadata["rows_in_index"].value == 35
    assert metadata["vectors_in_map"].value == 35
    assert metadata["quarantined"].value == 2


def test_the_plots_are_small_pictures_in_the_metadata_and_files_in_the_store(
    metadata: dict[str, Any], pipeline: Pipeline
) -> None:
    text = metadata["report"].value
    pictures = re.findall(r"!\[[^]]*\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", text)
    assert len(pictures) == 2
    for name, encoded in zip(("history.png", "map.png"), pictures, strict=True):
        picture = base64.b64decode(encoded)
        assert len(picture) < MAX_PNG_BYTES
        assert picture == _artifact(pipeline, name)
        shown = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
        assert (shown < 128).sum() > 500  # it is not blank


def test_the_stored_report_names_the_plots_beside_it(
    metadata: dict[str, Any], pipeline: Pipeline
) -> None:
    assert metadata["artifact"].value == "corpus/report/report.md"
    text = _artifact(pipeline, "report.md").decode()
    assert "](history.png)" in text
    assert "](map.png)" in text
    assert "base64" not in text


def test_reasons_neighbours_and_slow_partitions_are_told(pipeline: Pipeline) -> None:
    text = _artifact(pipeline, "report.md").decode()
    sections = dict(re.findall(r"^## (.*?)\n\n(.*?)(?=\n\n## |\Z)", text, re.DOTALL | re.MULTILINE))
    assert "| embedding\\_failed | 1 |" in sections["Quarantine"]
    assert "| empty\\_text | 1 |" in sections["Quarantine"]
    assert sections["Slowest partitions"].count("| bucket\\_") == 3
    assert sections["Nearest neighbours"].count("\n| ") == 5 * 3
    assert "runs: 2," in sections["Runs"]


def test_texts_of_documents_cannot_change_the_page(pipeline: Pipeline) -> None:
    text = _artifact(pipeline, "report.md").decode()
    assert "On \\*" in text
    assert "\\| \\<b\\>\\$x\\$" in text
    assert not re.search(r"(?<!\\)<b>", text)
    (table,) = re.findall(r"\| chunk \|.*?(?=\n\n)", text, re.DOTALL)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in table.splitlines())


def test_neighbours_are_of_other_documents(pipeline: Pipeline) -> None:
    (table,) = re.findall(
        r"\| chunk \|.*?(?=\n\n)", _artifact(pipeline, "report.md").decode(), re.S
    )
    for line in table.splitlines()[2:]:
        chunk, neighbour = re.findall(r"Chapter (\d+)", line)
        assert chunk != neighbour


def test_history_is_read_per_run_without_counting_a_partition_twice(
    pipeline: Pipeline, instance: dg.DagsterInstance
) -> None:
    del pipeline  # it has run
    history = latest_materializations(instance, ASSET, 1000)
    assert len(history) == 6
    for entry in history:  # a long partition is recorded once more, and its step records it again
        if entry.run_id == history[0].run_id:
            assert entry.numbers["cache_hit_rate"] > 0.9
    points = by_run(history)
    assert [point.time for point in points] == sorted(point.time for point in points)
    runs: dict[str, float] = {}
    for point in points:
        runs[point.run_id] = runs.get(point.run_id, 0) + point.sums["embedded"]
    assert list(runs.values()) == [40, 0]
    assert len(latest_materializations(instance, ASSET, 4)) == 4


def test_a_partition_recorded_twice_by_one_run_counts_once() -> None:
    with instance_in_memory() as instance:
        for embedded in (1, 2, 3):
            instance.report_runless_asset_event(
                dg.AssetMaterialization(ASSET, partition="a", metadata={"embedded": embedded})
            )
        (entry,) = latest_materializations(instance, ASSET, 10)
        assert entry.numbers == {"embedded": 3}


def test_long_histories_are_read_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedding_assets.runs.history._RECORDS_PER_QUERY", 7)
    monkeypatch.setattr("embedding_assets.runs.history._PIECES", 5)
    with instance_in_memory() as instance:
        for number in range(30):
            instance.report_runless_asset_event(
                dg.AssetMaterialization(ASSET, partition=f"{number}", metadata={"embedded": number})
            )
        found = latest_materializations(instance, ASSET, 20)
        assert [entry.partition for entry in found] == [f"{n}" for n in range(29, 9, -1)]
        points = by_run(found)
        assert [point.partitions for point in points] == [4] * 5
        assert sum(point.sums["embedded"] for point in points) == sum(range(10, 30))


def test_an_empty_collection_has_a_report_that_says_so(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path, str(tmp_path / "*.jsonl"))
    assert pipeline.run("bucket_00", assets=["report"]).success
    with pipeline.artifacts.reading("corpus/report/report.md") as path:
        text = path.read_text()
    assert "No materialisation of `embeddings` is recorded yet." in text
    assert "There are not enough vectors in the index." in text
    assert not pipeline.artifacts.exists("corpus/report/map.png")


def test_a_sample_does_not_depend_on_the_order_of_rows_and_is_of_the_asked_size(
    pipeline: Pipeline,
) -> None:
    resources: Any = SimpleNamespace(store=pipeline.store, embedder=pipeline.embedder)
    sample = VectorSample.draw("corpus", resources, 10)
    assert (len(sample), sample.of) == (10, 35)
    assert sample.chunks == VectorSample.draw("corpus", resources, 10).chunks
    by_id = {row["chunk_id"]: row for row in pipeline.rows()}
    for row, chunk in enumerate(sample.chunks):
        assert sample.vectors[row].tolist() == by_id[chunk]["vector"]
        assert sample.documents[row] == by_id[chunk]["document_id"]


def test_principal_components_find_the_plane_of_the_data() -> None:
    random = np.random.default_rng(0)
    plane = random.standard_normal((2, 50)).astype(np.float32)
    flat = random.standard_normal((200, 2)).astype(np.float32) * [5, 1] @ plane
    points, shares = principal_components(flat.astype(np.float32))
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    distances = np.linalg.norm(flat[:20, None] - flat[None, :20], axis=2)
    drawn = np.linalg.norm(points[:20, None] - points[None, :20], axis=2)
    np.testing.assert_allclose(drawn, distances, atol=1e-3)
    reversed_points, _ = principal_components(flat[::-1].astype(np.float32))
    np.testing.assert_allclose(reversed_points[::-1], points, atol=1e-2)


def test_equal_vectors_have_a_map_too() -> None:
    points, shares = principal_components(np.ones((5, 8), np.float32))
    assert np.isfinite(points).all()
    assert np.isfinite(shares).all()
    assert len(spread(points, 4)) == 1
    assert map_png(points, shares, [0] * 5, {0: "all the same"})


def test_labels_are_far_from_each_other() -> None:
    points = np.array([[0, 0], [0.1, 0], [10, 0], [0, 10], [10, 10]], np.float32)
    chosen = points[spread(points, 4)]
    distances = np.linalg.norm(chosen[:, None] - chosen[None], axis=2) + 99 * np.eye(4)
    assert distances.min() >= 5


def test_a_crowded_map_with_titles_in_any_script_stays_small() -> None:
    points = np.random.default_rng(0).standard_normal((20_000, 2)).astype(np.float32)
    labels = dict.fromkeys(range(16), "標題 $\\frac{1}$ العنوان")
    assert len(map_png(points, (0.1, 0.1), list(range(20_000)), labels)) <= MAX_PNG_BYTES


def test_cost_is_plotted_where_there_is_any() -> None:
    from embedding_assets.runs.history import RunNumbers

    def height(sums: dict[str, float]) -> int:
        return Image.open(io.BytesIO(history_png([RunNumbers("r", 0.0, 1, sums)] * 3))).height

    assert height({"tokens": 5.0, COST: 0.02}) > height({"tokens": 5.0, COST: 0.0})


def test_no_quarantine_is_no_reason(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path, str(tmp_path / "*.jsonl"))
    assert quarantine_reasons(pipeline.artifacts, "corpus") == ({}, 0)
