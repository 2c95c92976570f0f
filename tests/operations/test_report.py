"""The report of a collection, from real runs in a real Dagster instance."""

import base64
import re
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import dagster as dg
import numpy as np
import pytest

from embedding_assets.collection.settings import CheckSettings
from embedding_assets.operations.report.clusters import (
    characteristic_words,
    cluster,
    layout,
    principal_components,
)
from embedding_assets.operations.report.neighbours import neighbours
from embedding_assets.operations.report.plots import Group, Panel, apart, history_plot, map_plot
from embedding_assets.operations.report.repeated_text import RepeatedText
from embedding_assets.operations.report.run_sections import history_panels
from embedding_assets.operations.report.sample import IndexCounts, VectorSample
from embedding_assets.operations.report.svg import STYLE
from embedding_assets.operations.report.ticks import number_ticks, short_number, time_ticks
from embedding_assets.runs.history import RunNumbers, by_run, latest_materializations
from tests.support.browser import launched
from tests.support.fakes import POISON
from tests.support.instance import instance_in_memory
from tests.support.pipeline import ASSETS, Pipeline, write_jsonl

ASSET = dg.AssetKey(["corpus", "embeddings"])
REPORT = dg.AssetKey(["corpus", "report"])
NOTICE = "All rights of this text are reserved by whoever wrote it in 2001."
HOSTILE = 'On *{n}* | <b>$x$</b> ]]> </svg><script src="//e.vil/x.js"></script>\x0b\x1b\u202e'
MAX_BYTES = 150_000
"""Dagster keeps metadata in its event log, twice."""


@pytest.fixture(scope="module")
def instance() -> Any:
    with instance_in_memory() as instance:
        yield instance


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, instance: dg.DagsterInstance) -> Pipeline:
    """Two runs over three partitions, and the report."""
    folder = tmp_path_factory.mktemp("report")
    pipeline = Pipeline(
        folder,
        str(folder / "a.jsonl"),
        settings={
            "partitions": {"by": "bucket", "count": 3},
            "source": {"fields": {"timestamp": "at"}},
        },
    )
    documents = [
        {
            "id": f"d{n}",
            "title": HOSTILE.format(n=n),
            "text": f"Chapter {n} tells of {n}.{HOSTILE}",
            "at": f"{1980 + n}-05-01",
        }
        for n in range(40)
    ]
    notices = [
        {"id": f"n{n}", "title": "Notice", "text": NOTICE, "at": "1999-01-01"} for n in range(6)
    ]
    refused = [{"id": "bad", "text": POISON, "at": "1999"}, {"id": "empty", "text": ""}]
    write_jsonl(folder / "a.jsonl", documents + notices + refused)
    pipeline.run(instance=instance)
    write_jsonl(folder / "a.jsonl", documents[5:] + notices + refused)
    pipeline.run(instance=instance, assets=[*ASSETS, "report"])
    return pipeline


@pytest.fixture(scope="module")
def metadata(pipeline: Pipeline, instance: dg.DagsterInstance) -> dict[str, Any]:
    del pipeline  # it has run
    event = instance.get_latest_materialization_event(REPORT)
    assert event is not None
    assert event.asset_materialization is not None
    return dict(event.asset_materialization.metadata)


@pytest.fixture(scope="module")
def markdown(metadata: dict[str, Any]) -> str:
    return metadata["report"].value


@pytest.fixture(scope="module")
def html(pipeline: Pipeline, metadata: dict[str, Any]) -> str:
    with pipeline.artifacts.reading(metadata["artifact"].value) as path:
        return path.read_text(encoding="utf-8")


def _sections(markdown: str) -> dict[str, str]:
    sections = re.findall(r"^## (.*?)\n\n(.*?)(?=\n\n## |\Z)", markdown, re.DOTALL | re.MULTILINE)
    return dict(sections)


def test_the_report_is_materialised_with_the_partitions_in_one_run(
    metadata: dict[str, Any],
) -> None:
    assert metadata["rows_in_index"].value == 41
    assert metadata["vectors_in_map"].value == 41
    assert metadata["quarantined"].value == 2


def test_dagster_shows_sharp_pictures_for_light_and_dark_pages_and_keeps_little(
    markdown: str,
) -> None:
    pictures = re.findall(r"!\[[^]]*\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", markdown)
    assert len(pictures) == 4
    for encoded in pictures:
        picture = ElementTree.fromstring(base64.b64decode(encoded))
        style = picture.findtext("{http://www.w3.org/2000/svg}style") or ""
        assert "prefers-color-scheme:dark" in style
        assert len(list(picture.iter())) > 10  # it is not blank
    assert len(markdown) < MAX_BYTES


def test_the_file_needs_nothing_from_elsewhere(html: str) -> None:
    assert "default-src 'none'" in html
    tags = _Tags(html)
    assert html.count("<svg ") == 4
    assert not {"script", "img", "link", "iframe", "a", "object"} & tags.names
    assert not {"src", "href", "xlink:href", "srcset"} & tags.attributes
    assert "url(" not in html
    assert "@import" not in html


def test_texts_of_documents_cannot_change_the_page(html: str, markdown: str) -> None:
    assert "&lt;script" in html
    tags = _Tags(html)
    assert tags.names <= {*_PAGE.split()}
    assert tags.balanced
    assert not re.search(r"(?<!\\)<", markdown)
    table = _sections(markdown)["Near in meaning"].splitlines()[2:]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in table)
    for text in (html, markdown):
        assert "\x1b" not in text
        assert "\x0b" not in text


def test_what_is_in_the_index_is_counted(markdown: str) -> None:
    figures = dict(re.findall(r"^\| ([a-z ,]+) \| (.*?) \|$", markdown, re.MULTILINE))
    assert figures["documents"] == "41"
    assert figures["chunks"] == "41"
    assert figures["partitions"] == "3"
    assert figures["oldest document"] == "1985-05-01"
    assert figures["newest document"] == "2019-05-01"
    assert figures["last run"] == "just now"
    assert all(figures[f].endswith(" MB") for f in ("index", "artifacts", "cache, all collections"))
    assert figures["repeated chunks"] == "14.6%"


def test_reasons_and_slow_partitions_are_told(markdown: str) -> None:
    sections = _sections(markdown)
    assert "| embedding\\_failed | 1 | " in sections["Refused"]
    assert re.search(r"\| empty\\_text \| 1 \| a\.jsonl line 43: ", sections["Refused"])
    assert sections["Slowest partitions"].count("| bucket\\_") == 3
    assert sections["Runs"].count(":") >= 2


def test_neighbours_are_of_other_documents_and_no_pair_is_told_twice(markdown: str) -> None:
    rows = re.findall(r"Chapter (\d+).*?Chapter (\d+)", _sections(markdown)["Near in meaning"])
    assert rows
    assert all(chunk != neighbour for chunk, neighbour in rows)
    assert len({frozenset(pair) for pair in rows}) == len(rows)


def test_repeated_text_is_named_and_is_nobodys_neighbour(pipeline: Pipeline, markdown: str) -> None:
    assert f"| {NOTICE} | 6 | 15% |" in _sections(markdown)["Repeated text"]
    resources: Any = SimpleNamespace(store=pipeline.store, embedder=pipeline.embedder)
    sample = VectorSample.draw("corpus", resources, IndexCounts.of("corpus", resources), 100)
    notice = sample.texts.index(NOTICE)

    def near_the_notice(repeated: RepeatedText) -> list[str]:
        found = neighbours("corpus", resources, sample, [notice], repeated)
        return [pair.near_text for pair in found]

    assert NOTICE in near_the_notice(RepeatedText([], []))  # the same text in five documents
    found = near_the_notice(RepeatedText(sample.texts, sample.documents))
    assert len(found) == 2
    assert NOTICE not in found


def test_an_empty_collection_has_a_report_that_says_so(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path, str(tmp_path / "*.jsonl"))
    assert pipeline.run("bucket_00", assets=["report"]).success
    with pipeline.artifacts.reading("corpus/report/report.html") as path:
        text = path.read_text()
    assert "No materialisation of `embeddings` is recorded yet." in text
    assert "Nothing is in quarantine." in text
    assert "There are not enough vectors in the index." in text
    assert "<svg" not in text


def test_the_report_is_due_once_a_week_and_only_if_something_ran(pipeline: Pipeline) -> None:
    def due(now: datetime, cursor: Any) -> Any:
        result = dg.evaluate_automation_conditions(
            defs=pipeline.definitions, instance=instance, cursor=cursor, evaluation_time=now
        )
        return result.total_requested, result.cursor

    def happened(asset: dg.AssetKey, partition: str | None) -> None:
        event = dg.AssetMaterialization(asset, partition=partition)
        instance.report_runless_asset_event(event)

    index = dg.AssetKey(["corpus", "vector_index"])
    now = datetime.now(timezone.utc)
    monday = now.replace(hour=0) + timedelta(days=7 - now.weekday())
    with instance_in_memory() as instance:
        happened(REPORT, None)
        _, cursor = due(now, None)
        requested, cursor = due(monday + timedelta(hours=7), cursor)
        assert requested == 0  # nothing ran
        happened(index, "bucket_1")
        requested, cursor = due(monday + timedelta(hours=8), cursor)
        assert requested == 1
        requested, cursor = due(monday + timedelta(hours=9), cursor)
        assert requested == 0
        happened(index, "bucket_2")
        requested, cursor = due(monday + timedelta(days=6), cursor)
        assert requested == 0  # the week is not over


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
    assert list(runs.values()) == [41, 0]
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
    with instance_in_memory() as instance:
        for number in range(30):
            instance.report_runless_asset_event(
                dg.AssetMaterialization(ASSET, partition=f"{number}", metadata={"embedded": number})
            )
        found = latest_materializations(instance, ASSET, 20)
        assert [entry.partition for entry in found] == [f"{n}" for n in range(29, 9, -1)]


def test_a_long_run_is_several_points_by_time() -> None:
    from embedding_assets.runs.history import PartitionNumbers

    hour = [PartitionNumbers("long", f"{n}", 1e9 + n, {"embedded": 1.0}) for n in range(3600)]
    points = by_run([PartitionNumbers("next", "a", 2e9, {"embedded": 5.0}), *reversed(hour)])
    assert [(p.run_id, p.sums["embedded"]) for p in points] == [("long", 3600.0), ("next", 5.0)]
    points = by_run(hour[::-1])
    assert len(points) == 60
    assert {point.partitions for point in points} == {60}


def test_a_sample_does_not_depend_on_the_order_of_rows_and_is_of_the_asked_size(
    pipeline: Pipeline,
) -> None:
    resources: Any = SimpleNamespace(store=pipeline.store, embedder=pipeline.embedder)
    counts = IndexCounts.of("corpus", resources)
    sample = VectorSample.draw("corpus", resources, counts, 10)
    assert len(sample) == 10
    assert sample.texts == VectorSample.draw("corpus", resources, counts, 10).texts
    by_text = {row["text"]: row for row in pipeline.rows() if row["document_id"].startswith("d")}
    for row, text in enumerate(sample.texts):
        if text in by_text:
            assert sample.vectors[row].tolist() == by_text[text]["vector"]
            assert sample.documents[row] == by_text[text]["document_id"]


def test_principal_components_find_the_plane_of_the_data() -> None:
    random = np.random.default_rng(0)
    plane = random.standard_normal((2, 50)).astype(np.float32)
    flat = random.standard_normal((200, 2)).astype(np.float32) * [5, 1] @ plane
    points = principal_components(flat.astype(np.float32), 2)
    distances = np.linalg.norm(flat[:20, None] - flat[None, :20], axis=2)
    drawn = np.linalg.norm(points[:20, None] - points[None, :20], axis=2)
    np.testing.assert_allclose(drawn, distances, atol=1e-3)


def test_clusters_are_found_named_and_lie_apart_on_the_map() -> None:
    random = np.random.default_rng(0)
    subjects = ("the whale and the sea", "die Birne und der Apfel", "鯨魚住在海裡")
    middles = random.standard_normal((3, 64)) * 3
    truth = np.repeat([0, 1, 2], [80, 60, 40])
    vectors = (middles[truth] + random.standard_normal((180, 64))).astype(np.float32)
    points = principal_components(vectors)
    groups = cluster(points, 3)
    assert groups.tolist() == truth.tolist()
    words = characteristic_words([f"{subjects[n]} of all" for n in truth], groups)
    assert "whale" in words[0]
    assert "birne" in words[1]
    assert "鯨魚" in words[2]
    assert not any("all" in own for own in words)  # it is everywhere
    places = layout(points, groups)
    own = [places[groups == group] for group in range(3)]
    inner = max(np.linalg.norm(p - p.mean(axis=0), axis=1).mean() for p in own)
    outer = [np.linalg.norm(own[a].mean(axis=0) - own[b].mean(axis=0)) for a, b in _PAIRS]
    assert min(outer) > 2 * inner


@pytest.mark.parametrize("count", [3, 5])
def test_equal_vectors_have_a_map_too(count: int) -> None:
    points = principal_components(np.ones((count, 8), np.float32))
    groups = cluster(points, 7)
    places = layout(points, groups)
    assert np.isfinite(places).all()
    ElementTree.fromstring(map_plot(places, groups.tolist(), {0: Group([HOSTILE], "&")}).image())


def test_repeated_text_is_whole_passages_whatever_their_lines_and_years() -> None:
    unlike = [f"Chapter {n} is about {'abcdefghij'[n]}{'klmnopqrst'[n]} alone." for n in range(10)]
    footer = (
        "Copyright {} by the authors of this book.\nNo part of it may be copied by anybody at all."
    )
    texts = [f"{text}\n\n{footer.format(2000 + n)}" for n, text in enumerate(unlike)]
    found = RepeatedText([*texts, footer.format(2021)], [*"abcdefghij", "k"])
    assert [(p.text, p.documents) for p in found.passages] == [
        (" ".join(footer.format(2000).split()), 11)
    ]
    assert found.is_most_of(footer.format(1999))
    assert not found.is_most_of(unlike[0])
    assert not RepeatedText(texts, ["one document"] * 10).passages


def test_labels_do_not_meet_and_are_seen_whole() -> None:
    widths = [100, 150, 80, 200]
    places = apart(widths, [(5, 5), (6, 5), (5, 6), (300, 5)], 400, 300)
    boxes = [
        (x - w / 2, x + w / 2, y - 10, y + 10) for (x, y), w in zip(places, widths, strict=True)
    ]
    for number, (left, right, top, bottom) in enumerate(boxes):
        assert left >= 0
        assert right <= 400
        assert top >= 0
        for other in boxes[:number]:
            apart_across = left >= other[1] or right <= other[0]
            assert apart_across or top >= other[3] or bottom <= other[2]


@pytest.mark.parametrize(
    "seconds", [5, 61, 600, 3600, 7200, 86_400, 3 * 86_400, 40 * 86_400, 4e7, 3e8, 3e9]
)
def test_ticks_of_time_are_round_few_and_all_different(seconds: float) -> None:
    start = 1_717_251_234.5
    ticks = time_ticks(start, start + seconds, 8)
    assert 2 <= len(ticks) <= 9
    whole, below = [], ""
    for time, name, new_below in ticks:
        assert start <= time <= start + seconds
        below = new_below or below
        whole.append((name, below))
    assert len(set(whole)) == len(whole)
    assert ticks == sorted(ticks)


def test_ticks_of_numbers_are_round_and_reach_beyond_the_highest() -> None:
    assert number_ticks(0, 4) == [0, 1]
    assert number_ticks(87, 4) == [0, 25, 50, 75, 100]
    assert number_ticks(0.012, 3) == pytest.approx([0, 0.005, 0.01, 0.015])
    assert [short_number(n) for n in (0.5, 9_999, 12_500, 3e6, 2.5e9)] == [
        "0.5", "9999", "12.5k", "3M", "2.5G",
    ]  # fmt: skip


def test_thresholds_of_the_checks_are_drawn_and_cost_where_there_is_any() -> None:
    def drawn(**sums: float) -> str:
        runs = [RunNumbers("r", 1e9 + day * 86_400, 1, sums) for day in range(3)]
        checks = CheckSettings(min_chunks_per_second=7, min_cache_hit_rate=0.4)
        return history_plot([run.time for run in runs], history_panels(runs, checks)).image()

    picture = drawn(embedded=80.0, seconds_embedding=10.0, tokens=5.0)
    for says in ("warns below 7", "warns below 40", "fails above 1", "Throughput [chunks/s]"):
        assert says in picture
    assert "Cost" not in picture
    assert "Cost [$]" in drawn(dollars=0.02)


def test_the_colours_can_be_told_apart_by_colour_blind_readers() -> None:
    light, dark = (dict(re.findall(r"--(c\d|paper):(#\w+)", part)) for part in STYLE.split("@"))
    for palette in (light, {**light, **dark}):
        colours = np.array([_rgb(palette[f"c{n}"]) for n in range(7)] + [_rgb(palette["paper"])])
        for seen in (np.eye(3), *_COLOUR_BLIND):
            lab = _lab(np.clip(colours @ seen.T, 0, 1))
            distances = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 99 * np.eye(8)
            assert distances.min() > 15, palette


def test_a_crowded_map_with_titles_in_any_script_stays_small() -> None:
    places = np.random.default_rng(0).standard_normal((5_000, 2))
    legend: dict[int | None, Group] = {
        n: Group(["標題" * 9, "العنوان", "donaudampfschifffahrt" * 3], "9,999 chunks, 14%")
        for n in range(7)
    }
    groups: list[int | None] = [n % 7 for n in range(5_000)]
    assert len(map_plot(places, groups, legend).image()) * 4 / 3 < MAX_BYTES  # as base64


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_no_texts_meet_and_none_is_cut_off(scheme: str, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    places = random.standard_normal((300, 2)) * [1, 0.05]  # a crowd along a line
    words = [
        ["flüssigkeit", "WWWWWWWW"],
        ["標題文字", "漢字仮名"],
        ["wömmelwörter", "mm"],
        ["iii", "l"],
    ]
    legend: dict[int | None, Group] = {
        n: Group([*words[n % 4], "more"], "9,999 chunks, 14%") for n in range(7)
    }
    panels = [
        Panel("Throughput [chunks/s]", (random.random(50) * 12_345).tolist(), 9_000, "warns"),
        Panel("Error rate [%]", [0.0] * 50, 1, "fails", above=True),
        Panel("Tokens embedded", (random.random(50) * 1e9).tolist(), sum=True),
    ]
    times = sorted(1.7e9 + random.random(50) * 2e7)
    pictures = [
        map_plot(places, [n % 7 for n in range(300)], legend).image(),
        history_plot(times, panels).image(),
    ]
    page = tmp_path / "page.html"
    page.write_text(f'<meta charset="utf-8"><body>{"".join(pictures)}', encoding="utf-8")
    with launched(color_scheme=scheme) as tab:
        tab.goto(page.as_uri())
        found = tab.evaluate(_TEXTS_THAT_MEET)
        assert found == []
        paper = tab.evaluate("getComputedStyle(document.querySelector('rect')).fill")
        assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


_PAIRS = ((0, 1), (0, 2), (1, 2))

_PAGE = """html head meta title style body header h1 h2 p dl div dt dd section table thead tbody
tr th td b svg rect path circle text"""

_TEXTS_THAT_MEET = """() => {
    const found = [];
    for (const svg of document.querySelectorAll("svg")) {
        const edge = svg.getBoundingClientRect();
        const texts = [...svg.querySelectorAll("text")].filter(text => text.textContent);
        const boxes = texts.map(text => text.getBoundingClientRect());
        boxes.forEach((a, i) => {
            if (a.left < edge.left || a.right > edge.right || a.top < edge.top ||
                a.bottom > edge.bottom) found.push([texts[i].textContent, "is cut off"]);
            boxes.slice(0, i).forEach((b, j) => {
                const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
                const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
                if (across > 0 && down > 3) // letters leave room above and below them
                    found.push([texts[i].textContent, texts[j].textContent]);
            });
        });
    }
    return found;
}"""

_COLOUR_BLIND = (
    # Machado, Oliveira, Fernandes 2009: no red, no green, no blue; for linear RGB.
    np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
    np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]]
    ),
)  # fmt: skip


def _rgb(colour: str) -> Sequence[float]:
    """Linear, from 0 to 1."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    values = np.array([int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4).tolist()


def _lab(rgb: np.ndarray) -> np.ndarray:
    """Colours such that their distance is how different they look (CIELAB, D65)."""
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = rgb @ to_xyz.T / [0.9505, 1, 1.089]
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = root.T
    return np.column_stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


class _Tags(HTMLParser):
    """The tags and attributes of a page, as a browser would find them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.balanced = True
        self._open: list[str] = []
        self.feed(page)
        self.balanced &= not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        self.balanced &= bool(self._open) and self._open.pop() == tag
