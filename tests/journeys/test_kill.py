"""Processes are killed on the way; the same command again leaves everything in order."""

import shutil
import signal
import tempfile
from collections import Counter
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest
from pydantic import PrivateAttr

from embedding_assets.embeddings.canaries import CANARIES
from tests.support.fakes import CountingEmbedder
from tests.support.instance import shipped_instance
from tests.support.kill_runner import (
    FIRST,
    FLUSH_SIZE,
    INTERRUPTED,
    LAST,
    Orders,
    pipeline,
    run_all,
    run_killed,
)
from tests.support.pipeline import Pipeline, checks, numbers, write_jsonl

YEARS = ("2020", "2021", "2022", "2023")


def _record(year: str, number: int, edition: int = 1) -> dict[str, str]:
    paragraphs = [
        f"Paragraph {i} of document {number} in {year}. {'It goes on for a while. ' * 25}"
        for i in range(3)
    ]
    paragraphs[0] += f"Edition {edition}."
    return {
        "id": f"{year}-{number}",
        "title": f"Title {year} {number}",
        "text": "\n\n".join(paragraphs),
        "created": f"{year}-03-0{number + 1}T12:00:00Z",
    }


def _first_snapshot() -> list[dict[str, str]]:
    return [_record(year, number) for year in YEARS for number in range(5)]


def _second_snapshot() -> list[dict[str, str]]:
    """In each year two documents more, one edited, one gone, and one moved to the next year."""
    records = []
    for place, year in enumerate(YEARS):
        following = YEARS[(place + 1) % len(YEARS)]
        records += [_record(year, 0), _record(year, 1, edition=2), _record(year, 4)]
        records += [_record(year, 5), _record(year, 6)]
        records += [_record(year, 2) | {"created": f"{following}-06-01"}]
    return records


@dataclass
class World:
    """A source, the state before its last change, and what undisturbed runs make of it."""

    source: Path
    before: Path
    expected: list[dict[str, Any]]
    texts: int

    def copy(self, folder: Path) -> Path:
        shutil.copytree(self.before, folder / "state")
        return folder / "state"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    forkserver.ensure_running()  # before `folder` changes where temporary files go
    folder = tmp_path_factory.mktemp("undisturbed")
    source = write_jsonl(folder / "source.jsonl", _first_snapshot())
    state = pipeline(folder / "state", source)
    assert all(checks(state.run(FIRST, LAST)).values())
    shutil.copytree(folder / "state", folder / "before")
    write_jsonl(source, _second_snapshot())
    result = state.run(FIRST, LAST)
    assert all(checks(result).values())
    # Each kill point below must be reached.
    assert numbers(result, "embeddings")["embedded"] >= 4 * 2 * FLUSH_SIZE
    assert numbers(result, "vector_index")["rows_removed"] > 0
    return World(source, folder / "before", state.rows(), len(journal(folder / "state")))


def journal(folder: Path) -> list[str]:
    return (folder / "journal").read_text().split()


def run_and_kill(
    folder: Path,
    source: Path,
    point: list[Any],
    number: signal.Signals = signal.SIGKILL,
    *,
    small: bool = False,
) -> int:
    """Runs all assets in a process that signals itself; returns its exit status."""
    status = run_killed(Orders(folder, source, point, number, small))
    if status not in (INTERRUPTED, -signal.SIGKILL):
        pytest.fail((folder / "output").read_text()[-3000:])
    return status


def recorded(folder: Path, asset: str) -> set[str]:
    with shipped_instance(folder / "dagster") as instance:
        return instance.get_materialized_partitions(dg.AssetKey(["corpus", asset]))


def temporary_files(folder: Path) -> list[Path]:
    artifacts = [p for p in (folder / "artifacts").rglob("*") if p.is_file()]
    # LanceDB leaves an empty folder with a random name, which nobody may remove for it.
    scratch = [p for p in (folder / "tmp").iterdir() if p.is_file() or any(p.iterdir())]
    return [p for p in artifacts if p.suffix != ".parquet"] + scratch


def assert_cache_has_no_duplicates(folder: Path, entries: int) -> None:
    with duckdb.connect(str(folder / "cache.duckdb"), read_only=True) as database:
        tables = database.sql(
            "SELECT table_name FROM duckdb_tables() WHERE starts_with(table_name, 'vectors_')"
        ).fetchall()
        ((table,),) = tables
        (counts,) = database.sql(
            f'SELECT count(*), count(DISTINCT content_hash) FROM "{table}"'
        ).fetchall()
    entries += len(CANARIES)
    assert counts == (entries, entries)


@dataclass
class Case:
    """Kills in one asset, one after the other, each in a run that resumes the one before.

    `recorded` is how many partitions of the asset Dagster knows as finished after each of them.
    """

    asset: str
    points: list[list[Any]]
    recorded: list[int]
    small: bool = False

    @property
    def name(self) -> str:
        return f"{self.asset} of small partitions" if self.small else self.asset


CASES = [
    Case(
        "documents",
        [["write", "documents", "documents.parquet", "before", 3]],
        recorded=[2],
    ),
    Case(
        "deduplicated_chunks",
        [
            ["write", "deduplicated_chunks", "chunks.parquet", "before", 2],
            ["write", "deduplicated_chunks", "plan.parquet", "after", 3],
        ],
        recorded=[1, 2],
    ),
    Case(
        "embeddings",
        [
            ["put", "before", 3],  # the first one is of the canaries
            ["put", "after", 5],
            ["write", "embeddings", "vectors.parquet", "before", 2],
        ],
        recorded=[0, 1, 1],
    ),
    Case(
        "vector_index",
        [["replace", "before", 2], ["replace", "during", 2], ["replace", "after", 1]],
        recorded=[1, 2, 2],
    ),
    # A killed process records nothing of what takes less than a second, and loses one flush.
    Case(
        "embeddings",
        [
            ["put", "before", 3],
            ["put", "after", 5],
            ["write", "embeddings", "vectors.parquet", "before", 2],
        ],
        recorded=[0, 0, 0],
        small=True,
    ),
    Case(
        "vector_index",
        [["replace", "before", 1], ["replace", "during", 1], ["replace", "after", 1]],
        recorded=[0, 0, 0],
        small=True,
    ),
]

SHORT = [case for case in CASES if case.asset == "embeddings" and not case.small]
"""Of the stage in which there is most to lose."""


@pytest.fixture
def folder(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the state before the last change, and a folder for temporary files."""
    folder = world.copy(tmp_path)
    (folder / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))
    return folder


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[] if case in SHORT else [pytest.mark.slow])
        for case in CASES
    ],
)
def test_after_kill_9_the_same_command_leaves_what_an_undisturbed_run_leaves(
    world: World, folder: Path, case: Case
) -> None:
    for point, finished in zip(case.points, case.recorded, strict=True):
        assert run_and_kill(folder, world.source, point, small=case.small) == -9, point
        assert len(recorded(folder, case.asset)) == finished, point

    state = pipeline(folder, world.source)
    with shipped_instance(folder / "dagster") as instance:
        assert all(checks(run_all(folder, world.source, instance)).values())
        assert all(run.is_finished for run in instance.get_runs())
    assert state.rows() == world.expected
    embedded = Counter(journal(folder))
    flushes_lost = sum(point[:2] == ["put", "before"] for point in case.points)
    assert len(embedded) == world.texts
    assert embedded.total() - len(embedded) == flushes_lost * FLUSH_SIZE
    assert temporary_files(folder) == []
    assert_cache_has_no_duplicates(folder, world.texts)
    assert recorded(folder, case.asset) == set(YEARS)

    again = state.run(FIRST, LAST)
    assert all(checks(again).values())
    assert numbers(again, "embeddings")["embedded"] == 0
    assert numbers(again, "vector_index")["rows_written"] == 0
    assert state.rows() == world.expected


def test_after_sigterm_finished_partitions_are_recorded_and_nothing_is_left_behind(
    world: World, folder: Path
) -> None:
    point = ["write", "embeddings", "vectors.parquet", "before", 3]
    assert run_and_kill(folder, world.source, point, signal.SIGTERM) == INTERRUPTED
    assert recorded(folder, "deduplicated_chunks") == set(YEARS)
    assert recorded(folder, "embeddings") == {"2020", "2021"}
    assert temporary_files(folder) == []
    with shipped_instance(folder / "dagster") as instance:
        assert all(run.is_finished for run in instance.get_runs())
    state = pipeline(folder, world.source)
    assert all(checks(state.run(FIRST, LAST)).values())
    assert state.rows() == world.expected
    assert len(journal(folder)) == world.texts


class BreakingEmbedder(CountingEmbedder):
    """Fails as a program does, not because of a text."""

    breaks_after: int = 0
    _calls: int = PrivateAttr(default=0)

    def embed(self, *arguments: Any, **options: Any) -> Any:
        self._calls += 1
        if self._calls > self.breaks_after:
            raise RuntimeError("the machine is on fire")
        return super().embed(*arguments, **options)


def test_after_a_failure_finished_partitions_are_recorded_and_what_was_embedded_is_kept(
    world: World, folder: Path
) -> None:
    whole = pipeline(folder, world.source)
    failing = Pipeline(
        folder,
        str(world.source),
        embedder=BreakingEmbedder(journal=str(folder / "journal"), breaks_after=6),
        settings=whole.collection.model_dump(include={"source", "partitions", "embedder"}),
    )
    with shipped_instance(folder / "dagster") as instance:
        assert not failing.run(FIRST, LAST, instance=instance, raise_on_error=False).success
    # The canaries and five calls: all that is sorted together with 2020, and half of all texts.
    assert "2020" in recorded(folder, "embeddings") < {"2020", "2021", "2022"}
    assert all(checks(whole.run(FIRST, LAST)).values())
    assert whole.rows() == world.expected
    assert len(journal(folder)) == world.texts
