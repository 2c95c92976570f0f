"""Disk stays bounded: old versions go by age and by size, and never one that somebody reads."""

import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import pytest

from resources.vector_stores import lancedb as lancedb_store
from resources.vector_stores import table_versions
from resources.vector_stores.from_url import vector_store_from_url
from resources.vector_stores.lancedb import LanceDBVectorStore
from tests.support.chunk_rows import NAME, SPACE, batch, ids, reader, rows
from tests.support.fakes import fake_vector

PROJECT = Path(__file__).parents[3]
LIVE = 2_000
"""Rows of the tables here."""


@pytest.fixture
def store(tmp_path: Path) -> LanceDBVectorStore:
    store = LanceDBVectorStore(uri=str(tmp_path / "vectors"), approximate_from_rows=1_000)
    store.replace(NAME, SPACE, reader(batch(ids(*range(LIVE)))))
    store.maintain(NAME, SPACE)
    return store


def table(store: LanceDBVectorStore) -> Any:
    """The store's table, as LanceDB itself opens it."""
    return lancedb.connect(store.uri).open_table(f"{NAME}__{SPACE.id}")


def readers_folder(store: LanceDBVectorStore) -> Path:
    return Path(store.uri) / f"{NAME}__{SPACE.id}.lance" / "_readers"


def bytes_of(store: LanceDBVectorStore) -> int:
    return sum(path.stat().st_size for path in Path(store.uri).rglob("*") if path.is_file())


def versions(store: LanceDBVectorStore) -> list[int]:
    return [version["version"] for version in table(store).list_versions()]


def edit(store: LanceDBVectorStore, number: int) -> None:
    """What a run does after one document was edited: a row comes, one is replaced, one goes."""
    new = batch(ids(5, LIVE + number), text=f"edit {number}")
    store.replace(NAME, SPACE, reader(new), remove_chunk_ids=ids(LIVE + number - 1))
    store.maintain(NAME, SPACE)


READ = """
import sys, threading
import numpy as np
from resources.vector_stores.lancedb import LanceDBVectorStore
from tests.support.chunk_rows import NAME, SPACE, ids
from tests.support.fakes import fake_vector

store = LanceDBVectorStore(uri=sys.argv[1])
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
rounds, last = 0, False
while not last:
    last = ended.is_set()  # so the last round begins after the last edit
    found = [row for b in store.scan(NAME, SPACE, ["chunk_id", "text"]) for row in b.to_pylist()]
    (edited,) = [row for row in found if row["chunk_id"] == "c00005"]
    assert len(found) == 2000, len(found)
    assert store.count(NAME, SPACE) == len(found)
    (hit,) = store.search(NAME, SPACE, fake_vector("c00007", 16), 1)
    assert hit.chunk_id == "c00007", hit
    rounds += 1
    if rounds == 1:
        print("reading", flush=True)
print(rounds, edited["text"])
"""


@contextmanager
def reading_process(store: LanceDBVectorStore) -> Iterator[list[str]]:
    """Reads in another process until the block ends; yields the lines that it says then."""
    process = subprocess.Popen(
        [sys.executable, "-c", READ, store.uri],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    said: list[str] = []
    try:
        assert process.stdout.readline() == "reading\n"
        yield said
    finally:
        process.stdin.close()
        said += process.stdout.read().split(maxsplit=1)
        assert process.wait() == 0, "the reader failed"


@pytest.mark.parametrize("runs", [120, pytest.param(500, marks=pytest.mark.slow)])
def test_small_runs_take_a_small_multiple_of_what_is_live_and_no_reader_fails(
    store: LanceDBVectorStore, runs: int
) -> None:
    live, most = bytes_of(store), 0
    with reading_process(store) as said:
        for number in range(runs):
            edit(store, number)
            if number % 10 == 9:
                most = max(most, bytes_of(store))
    rounds, text = said
    assert (int(rounds) > 1, text.strip()) == (True, f"edit {runs - 1}")
    assert most < 3 * live + 3_000_000, "without removal of 500 runs: 70 MB"
    statistics = table(store).index_stats("vector_idx")
    assert statistics is not None, "the index is kept"
    assert statistics.num_indexed_rows >= 0.9 * LIVE
    assert statistics.num_indices <= lancedb_store._INDEX_PARTS + 1
    assert [path.name for path in readers_folder(store).iterdir()] == ["gate"]


def test_commits_alone_are_bounded_too(store: LanceDBVectorStore) -> None:
    """One run may commit many times before it comes to its housekeeping."""
    live = bytes_of(store)
    for number in range(60):
        store.replace(NAME, SPACE, reader(batch(ids(5), text=f"edit {number}")))
    assert bytes_of(store) < 3 * live + 2_000_000, "without removal: 4.5 MB"


def test_rows_that_were_replaced_do_not_pile_up_in_fragments(tmp_path: Path) -> None:
    """As in an archive that is small and changes much: few commits, each of many rows."""
    store = LanceDBVectorStore(uri=str(tmp_path / "vectors"))  # no index that has to keep up
    store.replace(NAME, SPACE, reader(batch(ids(*range(LIVE)))))
    live, chosen = bytes_of(store), random.Random(1)
    for number in range(40):
        some = chosen.sample(range(LIVE), LIVE // 4)
        store.replace(NAME, SPACE, reader(batch(ids(*some), text=f"edit {number}")))
        store.maintain(NAME, SPACE)
    assert bytes_of(store) < 2.5 * live + 1_000_000
    assert store.count(NAME, SPACE) == LIVE


def test_what_is_being_read_stays_as_long_as_it_is_read(store: LanceDBVectorStore) -> None:
    scan = iter(store.scan(NAME, SPACE, ["chunk_id", "text"]))
    read = next(scan).to_pylist()
    version = versions(store)[-1]
    for number in range(40):
        edit(store, number)
    assert version in versions(store)
    read += [row for batch in scan for row in batch.to_pylist()]
    assert sorted(row["chunk_id"] for row in read) == ids(*range(LIVE))
    assert {row["text"] for row in read} == {"text"}, "as it was when the scan began"
    for number in range(40, 60):
        edit(store, number)
    assert version not in versions(store)


def test_who_was_killed_while_reading_keeps_nothing(store: LanceDBVectorStore) -> None:
    command = [sys.executable, "-c", READ_AND_DIE, store.uri]
    done = subprocess.run(command, cwd=PROJECT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len([*readers_folder(store).glob("*-*")]) == 1
    before = versions(store)[-1]
    for number in range(40):
        edit(store, number)
    assert versions(store)[0] > before
    assert [path.name for path in readers_folder(store).iterdir()] == ["gate"]


READ_AND_DIE = """
import os, signal, sys
from resources.vector_stores.lancedb import LanceDBVectorStore
from tests.support.chunk_rows import NAME, SPACE

scan = iter(LanceDBVectorStore(uri=sys.argv[1]).scan(NAME, SPACE, ["chunk_id"]))
next(scan)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_versions_are_kept_for_an_hour_unless_they_take_too_much(
    store: LanceDBVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lancedb_store, "_SMALL_FRAGMENTS", 0)  # housekeeping is due each time
    assert store.keep_seconds == 3600
    first = versions(store)[0]
    edit(store, 0)
    assert versions(store)[0] == first
    brief = vector_store_from_url(f"{store.uri}?keep=0s")
    edit(brief, 1)  # type: ignore[reportArgumentType]
    assert len(versions(store)) == 1
    monkeypatch.setattr(table_versions, "_SPARE_BYTES", -10_000_000)
    edit(store, 2)
    assert len(versions(store)) == 1


def test_where_nothing_can_be_written_one_can_read(store: LanceDBVectorStore) -> None:
    shutil.rmtree(readers_folder(store))
    readers_folder(store).write_text("no folder can be made here")
    assert len(rows(store)) == LIVE
    assert store.count(NAME, SPACE) == LIVE
    assert len(store.search(NAME, SPACE, fake_vector("x", 16), 3)) == 3


def test_an_answer_is_asked_for_again_if_another_machine_removed_the_version(
    store: LanceDBVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    open_newest = store._open

    def open_first_what_was_opened_before(*_: Any) -> Any:
        return opened.pop() if opened else open_newest(NAME, SPACE)

    monkeypatch.setattr(LanceDBVectorStore, "_open", open_first_what_was_opened_before)
    for ask in (
        lambda: store.count(NAME, SPACE) == LIVE,
        lambda: store.search(NAME, SPACE, fake_vector("c00007", 16), 1)[0].chunk_id == "c00007",
    ):
        old = open_newest(NAME, SPACE)
        store.replace(NAME, SPACE, reader(batch(ids(*range(LIVE)), text="new")))
        table(store).optimize(cleanup_older_than=timedelta(milliseconds=1))
        with pytest.raises(Exception, match="Not found"):
            old.search(fake_vector("c00007", 16)).to_arrow()
        opened.append(old)
        assert ask()
        assert not opened
