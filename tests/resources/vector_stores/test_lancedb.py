"""The LanceDB store: one commit a replacement, never a duplicate, the best hit first."""

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from resources.identity.embedding_space import EmbeddingSpace
from resources.vector_stores import lancedb as lancedb_store
from resources.vector_stores.lancedb import LanceDBVectorStore
from tests.support.checkout import PROJECT
from tests.support.chunk_rows import (
    LONG,
    NAME,
    SCHEMA,
    SPACE,
    batch,
    everything,
    ids,
    reader,
    rows,
    with_long_vectors,
)
from tests.support.fakes import fake_vector


@pytest.fixture
def store(tmp_path: Path) -> LanceDBVectorStore:
    return LanceDBVectorStore(uri=str(tmp_path / "vectors"))


def table(store: LanceDBVectorStore) -> Any:
    """The store's table, as LanceDB itself opens it."""
    return lancedb.connect(store.uri).open_table(f"{NAME}__{SPACE.id}")


def version(store: LanceDBVectorStore) -> int:
    return table(store).version


def indexed_rows(store: LanceDBVectorStore) -> tuple[int, int]:
    """Rows that the vector index knows, and others."""
    statistics = table(store).index_stats("vector_idx")
    known = statistics and (statistics.num_indexed_rows, statistics.num_unindexed_rows)
    return known or (0, 0)


# --- replace


@pytest.mark.parametrize("second_commit_fails", [False, True])
def test_one_commit_brings_new_rows_and_takes_old_ones_out(store, monkeypatch, second_commit_fails):
    store.replace(NAME, SPACE, reader(batch(ids(*range(10))), batch(ids(20, 21), "q")))
    before, removed = version(store), ids(*range(2, 10), 21, 99)
    if second_commit_fails:
        monkeypatch.setattr(lancedb_store, "_REMOVED", "no such column IS NULL")
    fails = pytest.raises(Exception, match="No field named")
    with fails if second_commit_fails else contextlib.nullcontext():
        new = batch(ids(0, 1, 20, 30), text="new")
        store.replace(NAME, SPACE, reader(new), remove_chunk_ids=removed)
    monkeypatch.undo()
    if not second_commit_fails:  # what happens after the first commit is seen by nobody
        assert version(store) == before + 2
        first = table(store)
        first.checkout(before + 1)
        first.restore()
    for _ in range(2):
        assert rows(store) == dict.fromkeys(ids(0, 1, 20, 30), "new")
        assert store.count(NAME, SPACE) == 4
        assert len(store.search(NAME, SPACE, fake_vector("x", 16), 50)) == 4
        store.maintain(NAME, SPACE)
    assert table(store).count_rows() == 4, "nothing remains of what was removed"
    store.replace(NAME, SPACE, reader(batch(ids(3), text="again")))
    assert sorted(rows(store)) == ids(0, 1, 3, 20, 30)


def test_what_only_writes_is_one_commit(store):
    store.create_table(NAME, SPACE)
    for written, count in ((ids(*range(100)), 100), (ids(*range(50, 150)), 150), ([], 150)):
        before = version(store)
        store.replace(NAME, SPACE, reader(*(batch([chunk]) for chunk in written)))
        assert version(store) == before + 1
        assert store.count(NAME, SPACE) == len(rows(store)) == count


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is known on Linux only")
def test_a_removal_does_not_read_the_whole_table(store):
    """LanceDB's own `when_not_matched_by_source_delete` holds the vectors of all rows."""
    for number in range(8):
        store.replace(
            NAME, LONG, with_long_vectors(ids(*range(number * 1000, number * 1000 + 1000)))
        )
    assert store.count(NAME, LONG) == 8_000
    done = subprocess.run(
        [sys.executable, "-c", REMOVE_ONE, store.uri],
        cwd=PROJECT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert int(done.stdout) < 60, "megabytes, where the vectors have 131"
    assert store.count(NAME, LONG) == 7_999


REMOVE_ONE = """
import sys
from benchmarks.measure import peak_mb, reset_peak
from resources.vector_stores.lancedb import LanceDBVectorStore
from tests.support.chunk_rows import LONG, NAME, ids, with_long_vectors

store = LanceDBVectorStore(uri=sys.argv[1])
store.replace(NAME, LONG, with_long_vectors(ids(2)))
reset_peak()
before = peak_mb()
store.replace(NAME, LONG, with_long_vectors(ids(3)), remove_chunk_ids=ids(1))
print(round(peak_mb() - before))
"""


def test_the_key_column_is_declared_and_the_table_names_its_space(store):
    store.create_table(NAME, SPACE)
    schema = table(store).schema
    key = schema.field("chunk_id")
    assert not key.nullable
    assert key.metadata == {b"lance-schema:unenforced-primary-key": b"true"}
    assert EmbeddingSpace.from_json(schema.metadata[b"embedding_space"].decode()) == SPACE


# --- maintain


def test_maintain_merges_fragments_when_it_is_due(store, monkeypatch):
    for first in range(0, 120, 10):
        store.replace(NAME, SPACE, reader(batch(ids(*range(first, first + 10)), f"p{first}")))
    store.replace(NAME, SPACE, reader(), remove_chunk_ids=ids(*range(0, 120, 7)))
    before, version_before = everything(store), version(store)
    store.maintain(NAME, SPACE)
    assert version(store) == version_before  # below the threshold nothing is done
    monkeypatch.setattr(lancedb_store, "_SMALL_FRAGMENTS", 3)
    store.maintain(NAME, SPACE)
    assert version(store) > version_before
    assert everything(store) == before
    fragments = table(store).stats()["fragment_stats"]
    assert fragments["num_fragments"] == 1
    assert store.search(NAME, SPACE, fake_vector("c00001", 16), 1)[0].chunk_id == "c00001"


# --- the approximate index


def versioned(chunks: Sequence[str], version: int) -> pa.RecordBatch:
    """Rows whose text and vector both change with the version."""
    found = batch(chunks, text=f"version {version}")
    vectors = np.concatenate([fake_vector(f"{chunk} {version}", 16) for chunk in chunks])
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors), 16)
    return found.set_column(SCHEMA.get_field_index("vector"), SCHEMA.field("vector"), column)


@pytest.fixture
def indexed(tmp_path: Path) -> LanceDBVectorStore:
    """A store of 3,000 rows that are searched through an index."""
    store = LanceDBVectorStore(uri=str(tmp_path / "vectors"), approximate_from_rows=1_000)
    store.replace(NAME, SPACE, reader(versioned(ids(*range(3_000)), 0)))
    assert indexed_rows(store) == (0, 0)
    store.maintain(NAME, SPACE)
    assert indexed_rows(store) == (3_000, 0)
    return store


def test_a_large_table_gets_an_index_and_a_small_one_none(indexed, tmp_path):
    small = LanceDBVectorStore(uri=str(tmp_path / "small"), approximate_from_rows=1_000)
    small.replace(NAME, SPACE, reader(batch(ids(*range(999)))))
    small.maintain(NAME, SPACE)
    assert indexed_rows(small) == (0, 0)
    plan = table(indexed).search(fake_vector("x", 16)).explain_plan()
    assert "ANN" in plan


def test_what_changes_is_found_at_once_with_its_own_score_whatever_was_maintained(
    indexed, monkeypatch
):
    current = dict.fromkeys(ids(*range(3_000)), 0)
    chance = np.random.default_rng(0)
    recalls = []
    for step in range(1, 9):
        changed = ids(*sorted({int(n) for n in chance.integers(0, 3_300, 300)}))
        removed = [c for c in ids(*chance.integers(0, 3_300, 60).tolist()) if c not in changed]
        indexed.replace(
            NAME, SPACE, reader(versioned(changed, step)), remove_chunk_ids=sorted({*removed})
        )
        current |= dict.fromkeys(changed, step)
        for chunk in removed:
            current.pop(chunk, None)
        if step % 2 == 0:  # merges fragments and brings the index up to date
            monkeypatch.setattr(lancedb_store, "_UNINDEXED_SHARE", 0.0)
            monkeypatch.setattr(lancedb_store, "_SMALL_FRAGMENTS", 0)
            indexed.maintain(NAME, SPACE)
        for chunk in changed[:10]:
            query = fake_vector(f"{chunk} {step}", 16)
            (best,) = indexed.search(NAME, SPACE, query, 1)
            assert (best.chunk_id, best.text) == (chunk, f"version {step}")
        queries = np.concatenate([fake_vector(f"query {step} {n}", 16)[None] for n in range(10)])
        together = indexed.nearest_documents(NAME, SPACE, queries, 10)
        for query, documents in zip(queries, together, strict=True):
            hits = indexed.search(NAME, SPACE, query, 10)
            assert sorted(documents) == sorted((hit.document_id, hit.score) for hit in hits)
            assert len({hit.chunk_id for hit in hits}) == 10
            for hit in hits:
                vector = fake_vector(f"{hit.chunk_id} {current[hit.chunk_id]}", 16)
                assert hit.score == pytest.approx(float(vector @ query), abs=1e-5)
            exact = indexed.search(NAME, SPACE, query, 10, exact=True)
            recalls.append(len({h.chunk_id for h in hits} & {h.chunk_id for h in exact}) / 10)
    assert np.mean(recalls) >= 0.9
    assert sorted(rows(indexed)) == sorted(current)


def test_a_table_that_has_outgrown_its_index_gets_a_new_one(indexed):
    indexed.replace(NAME, SPACE, reader(versioned(ids(*range(3_000, 7_000)), 0)))
    indexed.maintain(NAME, SPACE)
    assert indexed_rows(indexed) == (7_000, 0)
    version_before = version(indexed)
    indexed.maintain(NAME, SPACE)
    assert version(indexed) == version_before, "nothing has changed, so nothing is done"


def test_an_exact_search_compares_with_every_row(indexed):
    query = fake_vector("query", 16)
    chunks = ids(*range(3_000))
    cosines = np.stack([fake_vector(f"{chunk} 0", 16) for chunk in chunks]) @ query
    hits = indexed.search(NAME, SPACE, query, 50, exact=True)
    assert [hit.chunk_id for hit in hits] == [chunks[i] for i in np.argsort(-cosines)[:50]]


REST_CLIENT = """
import sys
from resources.lean_imports import import_lancedb

import_lancedb()
assert "lance_namespace_urllib3_client.models" in sys.modules
assert "lance_namespace_urllib3_client.api" not in sys.modules
import lance_namespace_urllib3_client as package
assert package.TableApi.__module__ == "lance_namespace_urllib3_client.api.table_api"
assert package.models.QueryTableRequest
assert import_lancedb().__name__ == "lancedb"
"""


def test_the_rest_client_of_lancedb_is_loaded_when_it_is_wanted_and_not_before():
    subprocess.run([sys.executable, "-c", REST_CLIENT], cwd=PROJECT, check=True)


def test_rows_of_other_partitions_are_passed_over_before_the_best_are_chosen(indexed):
    few = versioned(ids(*range(3_000, 3_005)), 0)
    place = SCHEMA.get_field_index("partition")
    few = few.set_column(place, SCHEMA.field("partition"), pa.array(["few"] * 5))
    indexed.replace(NAME, SPACE, reader(few))
    hits = indexed.search(NAME, SPACE, fake_vector("x", 16), 10, not_partitions=["p"])
    assert {hit.chunk_id for hit in hits} == {*ids(*range(3_000, 3_005))}
