"""The benchmark assets through Dagster, with a fake embedder, and the functions of the figures."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from benchmarks import engine, scale
from benchmarks.__main__ import summary
from benchmarks.assets import EMBEDDER_KEY, benchmark_definitions
from benchmarks.batch_size import ENGINE
from benchmarks.cache import (
    BATCHED,
    COLD,
    ONE_AT_A_TIME,
    WARM,
    embed_through_cache,
    measure_cache,
    with_repeats,
)
from benchmarks.engine import ModelShape
from benchmarks.measure import (
    Line,
    in_turn,
    machine,
    markdown_table,
    padding_waste,
    percentile,
    read_lines,
    speedup,
    spread,
    write_results,
)
from benchmarks.plots import figure, png
from benchmarks.texts import KINDS, sentences, some_sentences, texts_of_kind
from resources.artifact_stores.files import FileArtifactStore
from resources.caches.duckdb import DuckDBEmbeddingCache
from tests.support.fakes import CountingEmbedder, fake_vector, word_piece_tokenizer
from tests.support.instance import instance_in_memory
from tests.support.pipeline import Pipeline, numbers

PNG = b"\x89PNG\r\n\x1a\n"


def materialize(
    name: str, folder: Path, config: dict[str, Any]
) -> tuple[dict[str, dg.MetadataValue[Any]], CountingEmbedder]:
    embedder = CountingEmbedder()
    definitions = benchmark_definitions(str(folder / "models"))
    result = dg.materialize(
        [a for a in definitions.assets or [] if isinstance(a, dg.AssetsDefinition)],
        selection=[dg.AssetKey(["benchmarks", name])],
        resources={
            EMBEDDER_KEY: embedder,
            "artifact_store": FileArtifactStore(url=str(folder / "artifacts")),
        },
        run_config={
            "ops": {f"benchmarks__{name}": {"config": config}},
            "loggers": {"console": {"config": {"log_level": "ERROR"}}},
        },
        instance=instance_in_memory(),
    )
    (materialization,) = result.asset_materializations_for_node(f"benchmarks__{name}")
    return dict(materialization.metadata), embedder


def table(metadata: dict[str, dg.MetadataValue[Any]]) -> list[dict[str, Any]]:
    value = metadata["table"]
    assert isinstance(value, dg.TableMetadataValue)
    return [dict(record.data) for record in value.records]


def assert_plot_is_shown_and_kept(
    metadata: dict[str, dg.MetadataValue[Any]], folder: Path, name: str
) -> None:
    kept = (folder / "artifacts" / "benchmarks" / name / f"{name}.png").read_bytes()
    assert kept.startswith(PNG)
    assert len(kept) < 100_000
    assert base64.b64encode(kept).decode() in str(metadata["plot"].value)


def test_the_batch_size_asset_shows_table_plot_and_the_best(tmp_path: Path) -> None:
    config = {"sentences": 40, "batch_sizes": [1, 8, 32], "window": 16, "repeats": 2}
    metadata, embedder = materialize("batch_size", tmp_path, config)
    rows = table(metadata)
    assert [(row["batch_size"], row["calls"]) for row in rows] == [
        ("1", 40),
        ("8", 5),
        ("32", 2),
        (ENGINE, 3),
    ]
    assert [row["batch_size"] for row in rows if row["best"]] == [metadata["best_batch_size"].value]
    fastest = max(rows, key=lambda row: row["texts_per_second"])
    assert fastest["best"]
    assert all(0 < row["p50_ms"] <= row["p95_ms"] for row in rows)
    one_round = [1] * 40 + [8] * 5 + [32, 8] + [16, 16, 8]
    assert embedder.batch_sizes == [1, 40, *one_round, *one_round]  # the first two: warm-up
    assert_plot_is_shown_and_kept(metadata, tmp_path, "batch_size")


def test_the_cache_asset_shows_what_each_share_of_repeats_saves(tmp_path: Path) -> None:
    config = {"sentences": 50, "flush_size": 16, "one_at_a_time": 5, "repeats": 1}
    metadata, _ = materialize("cache", tmp_path, config)
    embedded = {row["way"]: row["embedded"] for row in table(metadata)}
    assert embedded == {
        ONE_AT_A_TIME: 50,
        BATCHED: 50,
        COLD: 50,
        WARM: 0,
        "20 % repeats within the run, empty cache": 40,
        "80 % repeats within the run, empty cache": 10,
        "100 % repeats within the run, empty cache": 1,
        "0 % of the texts in the cache": 50,
        "20 % of the texts in the cache": 40,
        "80 % of the texts in the cache": 10,
    }
    by_way = {row["way"]: row for row in table(metadata)}
    assert by_way[ONE_AT_A_TIME]["against_one_at_a_time"] == 1
    assert by_way[BATCHED]["against_batched"] == 1
    assert_plot_is_shown_and_kept(metadata, tmp_path, "cache")


def test_the_benchmark_assets_are_a_code_location_of_their_own_and_run_with_their_defaults() -> (
    None
):
    from benchmarks.assets import defs
    from embedding_assets.definitions import defs as users_defs

    definitions = defs()
    users = {*users_defs().resolve_all_asset_keys()}
    assert users
    assert not users.intersection(definitions.resolve_all_asset_keys())
    for name in ("batch_size", "cache"):
        asset = definitions.resolve_assets_def(dg.AssetKey(["benchmarks", name]))
        assert asset.partitions_def is None
        assert set(asset.group_names_by_key.values()) == {"benchmarks"}
    job = definitions.resolve_implicit_global_asset_job_def()
    assert dg.validate_run_config(job)


def test_the_cached_way_returns_the_models_vectors_in_the_order_of_the_texts(
    tmp_path: Path,
) -> None:
    embedder = CountingEmbedder()
    cache = DuckDBEmbeddingCache(path=str(tmp_path / "cache.duckdb"))
    embed_through_cache(embedder, cache, ["b"], 2)
    texts = ["a", "b", "a", "c", "d", "c", "b"]
    vectors, embedded = embed_through_cache(embedder, cache, texts, 2)
    assert embedded == 3
    assert embedder.texts == ["b", "a", "c", "d"]
    assert vectors.tolist() == [fake_vector(text, embedder.dimension).tolist() for text in texts]


def test_every_way_of_the_cache_benchmark_starts_from_its_own_cache() -> None:
    embedder = CountingEmbedder()
    texts = some_sentences(10)
    rows = measure_cache(embedder, texts, [20], 4, 2, 3, progress=lambda _line: None)
    assert {row.way: row.embedded for row in rows}[COLD] == 10
    assert embedder.batch_sizes[0] == 10  # the warm-up


@pytest.mark.parametrize(("share", "distinct"), [(0, 100), (20, 80), (80, 20), (100, 1)])
def test_repeats_have_the_share_asked_for(share: int, distinct: int) -> None:
    texts = [str(number) for number in range(100)]
    repeated = with_repeats(texts, share)
    assert len(repeated) == 100
    assert len(set(repeated)) == distinct


def test_a_plot_is_drawn_smaller_until_the_ui_can_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plot = figure()
    plot.subplots().plot([1, 3, 2])
    large = len(png(plot))
    monkeypatch.setattr("benchmarks.plots.MAX_PNG_BYTES", large)
    assert len(png(plot)) < large
    monkeypatch.setattr("benchmarks.plots.MAX_PNG_BYTES", 100)
    with pytest.raises(ValueError, match="at most 100 may be shown"):
        png(plot)


def test_turns_alternate_and_keep_the_order_of_rounds() -> None:
    calls: list[str] = []
    numbers: Iterator[int] = iter(range(6))

    def called(name: str) -> float:
        calls.append(name)
        return next(numbers)

    times = in_turn({"a": lambda: called("a"), "b": lambda: called("b")}, 3)
    assert calls == ["a", "b"] * 3
    assert times == {"a": [0, 2, 4], "b": [1, 3, 5]}


def test_a_speedup_is_the_median_of_the_ratios_of_each_round() -> None:
    # A machine that is busy for a round hits both; the ratio of medians would be 4 / 2.
    assert speedup([1, 10, 2], [4, 40, 2]) == 4
    assert spread([1, 2, 4]) == 1.5
    assert percentile([1, 2, 3, 4], 50) == 2.5
    assert percentile(range(101), 95) == 95


def test_padding_waste_is_the_share_of_padding() -> None:
    assert padding_waste([10, 10, 5], [[0, 1], [2]]) == 0
    assert padding_waste([10, 5], [[0, 1]]) == 0.25
    assert padding_waste([], []) == 0


@pytest.mark.parametrize(
    ("line", "kept", "measured"),
    [
        (Line("faster", 3.0, 3.0), True, "3.00 ×"),
        (Line("faster", 3.0, 2.9), False, "2.90 ×"),
        (Line("smaller", 1_500, 1_501, "MB", at_most=True), False, "1,501 MB"),
        (Line("smaller", 1_500, 1_500, "MB", at_most=True), True, "1,500 MB"),
        (Line("elsewhere", 1, None), None, "not measured"),
    ],
)
def test_a_promise_says_whether_it_was_kept(line: Line, kept: bool | None, measured: str) -> None:
    assert line.kept is kept
    assert line.row()["measured"] == measured
    assert line.row()["kept"] == {True: "yes", False: "NO", None: "–"}[kept]


def test_results_carry_machine_versions_and_date_and_their_promises_are_read_back(
    tmp_path: Path,
) -> None:
    lines = [Line("faster", 3.0, 2.0, note="profiled: the tokenizer")]
    write_results("one", "One", {"Table": [{"a": 1.5, "b": "x"}]}, lines, tmp_path)
    found = json.loads((tmp_path / "one.json").read_text())
    assert {"date", "processor", "cores", "python", "dagster"} <= set(found["machine"])
    assert read_lines(tmp_path) == {"one": lines}
    page = (tmp_path / "one.md").read_text()
    assert "| 1.500 | x |" in page
    assert "| faster | ≥ 3.00 × | 2.00 × | NO | profiled: the tokenizer |" in page
    assert machine()["dagster"] in page
    assert markdown_table([]) == "nothing\n"


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
def test_texts_are_distinct_real_and_of_their_length(kind: str) -> None:
    tokenizer = word_piece_tokenizer()
    texts = texts_of_kind(kind, 6_000, tokenizer)
    lengths = [len(tokenizer.encode(text)) for text in texts]
    least, most = KINDS.get(kind, (8, 250))
    assert len(set(texts)) == len(texts)
    assert min(lengths) >= least
    assert max(lengths) <= most
    assert 5_700 <= sum(lengths) <= 6_300


def test_sentences_are_those_of_the_sample() -> None:
    assert len(set(sentences())) == len(sentences()) > 5_000
    assert "Now is better than never." in sentences()
    assert len(some_sentences(1_000)) == 1_000


def test_operations_of_the_model_are_those_of_its_matrix_products() -> None:
    import numpy as np

    tokens, hidden, inner = 3, 4, 5
    rows, shapes = np.ones((tokens, hidden)), [(hidden, hidden)] * 4
    counted = sum(2 * rows.shape[0] * n * m for n, m in [*shapes, (hidden, inner), (inner, hidden)])
    counted += 2 * (2 * tokens * hidden * tokens)  # queries with keys, weights with values
    assert ModelShape(layers=2, hidden=hidden, intermediate=inner).flops(tokens) == 2 * counted


def test_the_scale_benchmark_judges_time_per_chunk_peak_and_the_unchanged_run() -> None:
    def cost(run: str, seconds: float, peak: float) -> dict[str, Any]:
        return {"run": run, "asset": "a", "seconds": seconds, "peak_mb": peak, "written_mb": 1.0}

    costs = {
        10_000: [cost("first", 10, 900), cost("first", 10, 500), cost("unchanged", 0.1, 400)],
        1_000_000: [cost("first", 2_500, 1_600), cost("unchanged", 40, 900)],
    }
    slower, peak, unchanged = scale.judge(scale.tables(costs)["Whole graph"])
    assert (slower.measured, slower.kept) == (1.25, False)
    assert (peak.measured, peak.kept) == (1_600, False)
    assert (unchanged.measured, unchanged.kept) == (25_000, True)


def test_the_corpus_of_the_scale_benchmark_has_one_chunk_of_a_kilobyte_a_document(
    tmp_path: Path,
) -> None:
    scale.write_corpus(tmp_path / "corpus.jsonl", 50)
    pipeline = Pipeline(
        tmp_path,
        str(tmp_path / "corpus.jsonl"),
        embedder=scale.fake_embedder(),
        settings={"partitions": {"by": "bucket", "count": 1}},
    )
    pipeline.run(assets=["documents", "deduplicated_chunks", "embeddings"])
    sizes = [len(document["text"]) for document in pipeline.documents()]
    assert 900 < sum(sizes) / len(sizes) < 1_200
    assert numbers(pipeline.run(assets=["embeddings"]), "embeddings")["chunks"] == 50


def test_the_cold_promises_are_judged_end_to_end() -> None:
    def row(kind: str, contestant: str, **values: float) -> dict[str, Any]:
        figures = {"× encode": 1.0, "share of oracle": 1.0, "share of matrix peak": 0.5}
        return {"texts": kind, "contestant": contestant, "seconds": 61.0, **figures, **values}

    rows = [
        row("short", engine.ASSETS, **{"× encode": 3.1}),
        row("short", engine.EMBED, **{"× encode": 9.0}),
        row("short", engine.ASSETS_FP32, **{"× encode": 2.4, "1 − cosine": 2e-7}),
        row("long", engine.ASSETS, **{"× encode": 2.6, "share of matrix peak": 0.8}),
        row("long", engine.ORACLE),
        row(engine.MINUTE, engine.ASSETS, **{"share of oracle": 0.84}),
    ]
    kept = {line.promise: line.kept for line in engine.judge_cold(rows)}
    assert kept == {
        "cold, end to end, short texts, against encode (batch 32, fp32)": True,
        "cold, end to end, long texts, against encode (batch 32, fp32)": False,
        "the same in fp32, short texts": False,
        "deviation in fp32 (1 − cosine, in 10⁻⁶)": True,
        "share of the oracle, end to end, a partition of a minute": False,
        "share of the matrix peak, end to end, long texts": True,
    }


def test_a_large_partition_is_judged_where_one_was_measured() -> None:
    def row(kind: str, seconds: float, ratio: float, share: float) -> dict[str, Any]:
        figures = {"× encode": ratio, "share of matrix peak": share, "seconds": seconds}
        return {"texts": kind, "contestant": engine.ASSETS, **figures}

    rows = [row("long", 7, 2.6, 0.7), row(engine.MINUTE_OF_LONG, 70, 2.8, 0.76)]
    cold, peak = engine.judge_cold(rows)
    assert (cold.measured, cold.note) == (2.8, "the run took 70 s; one of 7 s 2.60 ×")
    assert peak.measured == 0.76


def test_the_table_at_the_end_holds_the_promises_of_every_result(tmp_path: Path) -> None:
    write_results("one", "One", {}, [Line("faster", 3.0, 2.0)], tmp_path)
    write_results("two", "Two", {}, [Line("smaller", 3.0, 2.0, "MB", at_most=True)], tmp_path)
    assert [(row["benchmark"], row["promise"], row["kept"]) for row in summary(tmp_path)] == [
        ("one", "faster", "NO"),
        ("two", "smaller", "yes"),
    ]
