"""The LanceDB store: one commit a replacement, never a duplicate, the best hit first."""

import contextlib
import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from resources.errors import NotFoundError
from resources.identity.content_hash import HASH_BYTES
from resources.identity.embedding_space import EmbeddingSpace
from resources.vector_stores import lancedb as lancedb_store
from resources.vector_stores.base import row_schema
from resources.vector_stores.lancedb import LanceDBVectorStore
from tests.support.fakes import fake_vector

PROJECT = Path(__file__).parents[3]
SPACE = EmbeddingSpace("fake", "a", "", 16, 256, True)
OTHER = dataclasses.replace(SPACE, model="b")
SCHEMA = row_schema(SPACE)
NAME = "corpus"


@pytest.fixture
def store(tmp_path: Path) -> LanceDBVectorStore:
    return LanceDBVectorStore(uri=str(tmp_path / "vectors"))


def batch(ids: Sequence[str], partition: str = "p", text: str = "text") -> pa.RecordBatch:
    values = [
        {
            "chunk_id": chunk,
            "document_id": f"d-{chunk}",
            "document_version": bytes(HASH_BYTES),
            "content_hash": bytes(HASH_BYTES),
            "chunk_number": 0,
            "span_start": 0,
            "span_end": len(text),
            "partition": partition,
            "title": "",
            "context": "",
            "text": text,
            "timestamp": None,
            "metadata": "{}",
            "vector": fake_vector(chunk, 16),
        }
        for chunk in ids
    ]
    return pa.RecordBatch.from_pylist(values, schema=SCHEMA)


def reader(*batches: pa.RecordBatch) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(SCHEMA, iter(batches))


def ids(*numbers: int) -> list[str]:
    return [f"c{number:05}" for number in numbers]


def rows(store: LanceDBVectorStore, space: EmbeddingSpace = SPACE, **which: Any) -> dict[str, Any]:
    """Column `text` by chunk id; fails if an id is there twice."""
    batches = store.scan(NAME, space, ["chunk_id", "text"], **which)
    found = [(row["chunk_id"], row["text"]) for b in batches for row in b.to_pylist()]
    assert len(dict(found)) == len(found)
    return dict(found)


def version(store: LanceDBVectorStore) -> int:
    return store._open(NAME, SPACE).version


# --- replace


@pytest.mark.parametrize("second_commit_fails", [False, True])
def test_one_commit_brings_new_rows_and_takes_old_ones_out(store, monkeypatch, second_commit_fails):
    assert store.capabilities.atomic_replace
    store.replace(NAME, SPACE, reader(batch(ids(*range(10))), batch(ids(20, 21), "q")))
    before = version(store)
    removed = ids(*range(2, 10), 21, 99)
    if second_commit_fails:
        monkeypatch.setattr(lancedb_store, "_REMOVED", "no such column IS NULL")
    fails = pytest.raises(Exception, match="No field named")
    with fails if second_commit_fails else contextlib.nullcontext():
        store.replace(
            NAME,
            SPACE,
            reader(batch(ids(0, 1, 20), text="new"), batch(ids(30), text="new")),
            remove_chunk_ids=removed,
        )
    monkeypatch.undo()
    if not second_commit_fails:  # what happens after the first commit is seen by nobody
        assert version(store) == before + 2
        table = store._open(NAME, SPACE)
        table.checkout(before + 1)
        table.restore()
    wanted = dict.fromkeys(ids(0, 1, 20, 30), "new")
    query = fake_vector("x", 16)
    for _ in range(2):
        assert rows(store) == rows(store, not_partitions=["other"]) == wanted
        assert store.count(NAME, SPACE) == 4
        for exact in (False, True):
            hits = store.search(NAME, SPACE, query, 50, exact=exact)
            assert {hit.chunk_id for hit in hits} == {*wanted}
        store.maintain(NAME, SPACE)
    assert store._open(NAME, SPACE).count_rows() == 4, "nothing remains of what was removed"
    store.replace(NAME, SPACE, reader(batch(ids(3), text="again")))
    assert rows(store) == {**wanted, **dict.fromkeys(ids(3), "again")}


def test_what_only_writes_is_one_commit(store):
    store.create_table(NAME, SPACE)
    for written, count in ((ids(*range(100)), 100), (ids(*range(50, 150)), 150), ([], 150)):
        before = version(store)
        store.replace(NAME, SPACE, reader(*(batch([chunk]) for chunk in written)))
        assert version(store) == before + 1
        assert store.count(NAME, SPACE) == len(rows(store)) == count


def test_rows_are_removed_only_from_the_partitions_named(store):
    store.replace(NAME, SPACE, reader(batch(ids(1, 2), "p"), batch(ids(3, 4), "it's")))
    both = {"remove_chunk_ids": ids(1, 3, 7)}
    store.replace(NAME, SPACE, reader(), **both, remove_from_partitions=[])
    assert sorted(rows(store)) == ids(1, 2, 3, 4)
    store.replace(NAME, SPACE, reader(batch(ids(2))), **both, remove_from_partitions=["it's", "x"])
    assert sorted(rows(store)) == ids(1, 2, 4)
    store.replace(NAME, SPACE, reader(), **both, remove_from_partitions=["p"])
    assert sorted(rows(store)) == ids(2, 4)
    assert store._open(NAME, SPACE).count_rows() == 2


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


LONG = dataclasses.replace(SPACE, dimension=4096)
REMOVE_ONE = """
import sys
from benchmarks.measure import peak_mb, reset_peak
from tests.resources.vector_stores.test_lancedb import (
    LONG, NAME, LanceDBVectorStore, ids, with_long_vectors,
)

store = LanceDBVectorStore(uri=sys.argv[1])
store.replace(NAME, LONG, with_long_vectors(ids(2)))
reset_peak()
before = peak_mb()
store.replace(NAME, LONG, with_long_vectors(ids(3)), remove_chunk_ids=ids(1))
print(round(peak_mb() - before))
"""


def with_long_vectors(chunks: Sequence[str]) -> pa.RecordBatchReader:
    schema, found = row_schema(LONG), batch(chunks)
    values = np.random.default_rng(0).standard_normal(len(chunks) * 4096, dtype=np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values), 4096)
    long = found.set_column(schema.get_field_index("vector"), schema.field("vector"), column)
    return pa.RecordBatchReader.from_batches(schema, iter([long]))


@pytest.mark.parametrize("bad", [None, [float("nan")] * 16, [float("inf")] * 16])
def test_a_row_without_a_finite_vector_is_refused_and_nothing_written(store, bad):
    store.replace(NAME, SPACE, reader(batch(ids(1))))
    good = batch(ids(2))
    column = pa.array([bad], SCHEMA.field("vector").type)
    wrong = good.set_column(SCHEMA.get_field_index("vector"), SCHEMA.field("vector"), column)
    with pytest.raises(Exception, match="not finite"):
        store.replace(NAME, SPACE, reader(good, wrong), remove_chunk_ids=ids(1))
    assert sorted(rows(store)) == ids(1)


def test_a_row_both_written_and_named_for_removal_is_written(store):
    store.replace(NAME, SPACE, reader(batch(ids(1))))
    store.replace(NAME, SPACE, reader(batch(ids(1), text="new")), remove_chunk_ids=ids(1))
    assert rows(store) == dict.fromkeys(ids(1), "new")


@pytest.mark.parametrize("good_batches", [0, 1, 20])
def test_a_reader_that_fails_leaves_the_previous_rows_unchanged(store, good_batches):
    store.replace(NAME, SPACE, reader(batch(ids(*range(100)))))
    before = version(store)

    def failing() -> Iterator[pa.RecordBatch]:
        for number in range(good_batches):
            yield batch(ids(*range(number * 90, number * 90 + 100)), text="new")
        raise RuntimeError("the reader broke")

    with pytest.raises(Exception, match="the reader broke"):
        store.replace(
            NAME,
            SPACE,
            pa.RecordBatchReader.from_batches(SCHEMA, failing()),
            remove_chunk_ids=ids(*range(100)),
        )
    assert version(store) == before
    assert rows(store) == dict.fromkeys(ids(*range(100)), "text")
    (hit,) = store.search(NAME, SPACE, fake_vector(ids(7)[0], 16), 1)
    assert (hit.chunk_id, hit.text) == (ids(7)[0], "text")


HOSTILE_NAMES = [
    "it's", "''", "' OR '1'='1", "'); DROP TABLE x; --", '"', "\\", "\\'", "%", "*", "`", "",
    "line\nbreak", "NUL\x00inside", "Größe 日本語 🙂", "NULL", "2020-01-01", "partition", "$1", "?",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_any_partition_name_is_only_a_name(store, name):
    store.replace(NAME, SPACE, reader(batch(ids(1, 2), name), batch(ids(3, 4), "other")))
    assert list(rows(store, partitions=[name])) == ids(1, 2)
    assert list(rows(store, not_partitions=[name])) == ids(3, 4)
    removed = {"remove_chunk_ids": ids(1, 2, 3), "remove_from_partitions": [name]}
    store.replace(NAME, SPACE, reader(batch(ids(1), name)), **removed)
    assert sorted(rows(store)) == ids(1, 3, 4)
    store.replace(NAME, SPACE, reader(), remove_chunk_ids=[name, "' OR '1'='1"])
    assert sorted(rows(store)) == ids(1, 3, 4)


def test_thousands_of_rows_are_removed_by_id(store):
    store.replace(NAME, SPACE, reader(batch(ids(*range(10_100)))))
    store.replace(NAME, SPACE, reader(), remove_chunk_ids=ids(*range(10_000)))
    assert sorted(rows(store)) == ids(*range(10_000, 10_100))


@pytest.mark.parametrize(
    "text", ["a\x00b", "\x00", "Größe 日本語 🙂", "e\u0301", "\u2028", "x" * 100_000]
)
def test_text_and_vector_come_back_as_they_were(store, text):
    written = batch(ids(1), text=text)
    store.replace(NAME, SPACE, reader(written))
    (found,) = store.scan(NAME, SPACE, SCHEMA.names)
    assert found.to_pylist() == written.to_pylist()
    (hit,) = store.search(NAME, SPACE, fake_vector("c00001", 16), 1)
    assert hit.text == text


# --- several processes


UPSERT = """
import multiprocessing, sys
from tests.resources.vector_stores.test_lancedb import (
    NAME, SPACE, LanceDBVectorStore, batch, ids, reader,
)

def work(letter, start, uri):
    store = LanceDBVectorStore(uri=uri)
    import lancedb
    for first in range(0, 300, 100):
        start.wait()
        store.replace(NAME, SPACE, reader(batch(ids(*range(first, first + 100)), text=letter)))
        gone = ids(*range(first, first + 100, 2))
        store.replace(NAME, SPACE, reader(batch(ids(first + 1))), remove_chunk_ids=gone)
        store.replace(NAME, SPACE, reader(batch(gone, text=letter)))

fork = multiprocessing.get_context("fork")
start = fork.Barrier(2, timeout=20)  # seconds; one does not wait for ever for one that failed
processes = [fork.Process(target=work, args=(letter, start, sys.argv[1])) for letter in "ab"]
for process in processes:
    process.start()
for process in processes:
    process.join()
sys.exit(any(process.exitcode for process in processes))
"""


@pytest.mark.parametrize("table_exists", [True, False])
def test_two_processes_that_write_the_same_new_keys_at_once_make_no_duplicates(store, table_exists):
    if table_exists:
        store.create_table(NAME, SPACE)
    result = subprocess.run([sys.executable, "-c", UPSERT, store.uri], cwd=PROJECT, check=False)
    assert result.returncode == 0
    assert sorted(rows(store)) == ids(*range(300))
    assert store.count(NAME, SPACE) == 300


CREATE = """
import multiprocessing, sys
from tests.resources.vector_stores.test_lancedb import SPACE, LanceDBVectorStore, batch, reader

def work(letter, start, uri):
    store = LanceDBVectorStore(uri=uri)
    import lancedb
    for number in range(25):
        start.wait()
        store.replace(f"corpus{number}", SPACE, reader(batch([letter])))

fork = multiprocessing.get_context("fork")
start = fork.Barrier(2, timeout=20)  # seconds; one does not wait for ever for one that failed
processes = [fork.Process(target=work, args=(letter, start, sys.argv[1])) for letter in "ab"]
for process in processes:
    process.start()
for process in processes:
    process.join()
sys.exit(any(process.exitcode for process in processes))
"""


def test_of_two_processes_that_make_a_table_at_once_neither_loses_its_rows(store):
    result = subprocess.run([sys.executable, "-c", CREATE, store.uri], cwd=PROJECT, check=False)
    assert result.returncode == 0
    for number in range(25):
        found = pa.Table.from_batches(store.scan(f"corpus{number}", SPACE, ["chunk_id"]))
        assert sorted(found["chunk_id"].to_pylist()) == ["a", "b"]


def test_the_key_column_is_declared_and_the_table_names_its_space(store):
    store.create_table(NAME, SPACE)
    schema = store._open(NAME, SPACE).schema
    key = schema.field("chunk_id")
    assert not key.nullable
    assert key.metadata == {b"lance-schema:unenforced-primary-key": b"true"}
    assert EmbeddingSpace.from_json(schema.metadata[b"embedding_space"].decode()) == SPACE


WRITE_ONE = """
import sys
from tests.resources.vector_stores.test_lancedb import (
    NAME, SPACE, LanceDBVectorStore, batch, ids, reader,
)

LanceDBVectorStore(uri=sys.argv[1]).replace(NAME, SPACE, reader(batch(ids(2), text="new")))
"""


def test_a_reader_sees_what_another_process_committed(store):
    store.replace(NAME, SPACE, reader(batch(ids(1))))
    assert len(store.search(NAME, SPACE, fake_vector("x", 16), 10)) == 1
    subprocess.run([sys.executable, "-c", WRITE_ONE, store.uri], cwd=PROJECT, check=True)
    assert sorted(rows(store)) == ids(1, 2)
    assert store.count(NAME, SPACE) == 2
    hit = store.search(NAME, SPACE, fake_vector("c00002", 16), 10)[0]
    assert (hit.chunk_id, hit.text) == ("c00002", "new")


# --- scan, count, search


def test_a_table_that_does_not_exist_has_no_rows(store):
    assert rows(store) == {}
    assert rows(store, partitions=["p"]) == {}
    assert store.count(NAME, SPACE) == 0
    store.maintain(NAME, SPACE)


def test_scan_streams_the_partitions_asked_for(store):
    store.replace(NAME, SPACE, reader(*(batch(ids(i), f"p{i % 3}") for i in range(9))))
    everything = ids(*range(9))
    assert sorted(rows(store)) == everything
    assert sorted(rows(store, partitions=["p1"])) == everything[1::3]
    assert sorted(rows(store, partitions=["p1", "p2", "none"])) == sorted(
        everything[1::3] + everything[2::3]
    )
    assert sorted(rows(store, not_partitions=["p1", "none"])) == sorted(
        everything[0::3] + everything[2::3]
    )
    assert rows(store, partitions=[]) == {}
    assert sorted(rows(store, not_partitions=[])) == everything


def test_scan_has_no_limit_of_rows(store):
    store.replace(NAME, SPACE, reader(batch(ids(*range(30_000)))))
    batches = list(store.scan(NAME, SPACE, ["chunk_id"]))
    assert sum(len(b) for b in batches) == 30_000
    assert all(b.schema.names == ["chunk_id"] for b in batches)


def test_search_returns_the_best_first_with_cosine_as_score(store):
    chunks = ids(*range(500))
    store.replace(NAME, SPACE, reader(batch(chunks)))
    query = 3 * fake_vector("query", 16)  # the score does not depend on the query's norm
    matrix = np.stack([fake_vector(chunk, 16) for chunk in chunks])
    cosines = matrix @ query / np.linalg.norm(query)
    best = np.argsort(-cosines)[:20]
    hits = store.search(NAME, SPACE, query, 20)
    assert [hit.chunk_id for hit in hits] == [chunks[i] for i in best]
    assert [hit.score for hit in hits] == pytest.approx(cosines[best].tolist(), abs=1e-5)
    assert hits[0].document_id == f"d-{hits[0].chunk_id}"
    assert store.search(NAME, SPACE, -matrix[7], 500)[-1].score == pytest.approx(-1, abs=1e-5)


def test_search_returns_all_rows_where_there_are_fewer_than_asked_for(store):
    store.replace(NAME, SPACE, reader(batch(ids(1, 2, 3))))
    assert len(store.search(NAME, SPACE, fake_vector("x", 16), 10)) == 3
    store.replace(NAME, SPACE, reader(), remove_chunk_ids=ids(1, 2, 3))
    assert store.search(NAME, SPACE, fake_vector("x", 16), 10) == []


def test_search_without_a_table_says_what_to_materialize(store):
    with pytest.raises(NotFoundError, match=r"Materialize 'corpus/vector_index' first"):
        store.search(NAME, SPACE, fake_vector("x", 16), 3)


def test_two_spaces_and_two_collections_are_separate_tables(store):
    store.replace(NAME, SPACE, reader(batch(ids(1))))
    store.replace(NAME, OTHER, reader(batch(ids(2))))
    store.replace("other", SPACE, reader(batch(ids(3))))
    assert list(rows(store, SPACE)) == ids(1)
    assert list(rows(store, OTHER)) == ids(2)
    assert store.search("other", SPACE, fake_vector("x", 16), 9)[0].chunk_id == ids(3)[0]
    with pytest.raises(NotFoundError):
        store.search("other", OTHER, fake_vector("x", 16), 9)


# --- maintain


def test_the_spaces_of_a_collection_are_listed_and_their_tables_can_be_removed(store):
    assert store.spaces(NAME) == []
    others = [dataclasses.replace(SPACE, model=f"model {number}") for number in range(12)]
    for space in others:
        store.create_table(NAME, space)
    store.create_table(f"{NAME}__{SPACE.id}", SPACE)
    store.create_table(f"{NAME}_2", SPACE)
    assert store.spaces(NAME) == sorted(others, key=lambda space: space.id)
    for space in others[1:]:
        store.drop_table(NAME, space)
        store.drop_table(NAME, space)
    assert store.spaces(NAME) == others[:1]


def test_maintain_never_changes_rows(store, monkeypatch):
    for first in range(0, 120, 10):
        store.replace(NAME, SPACE, reader(batch(ids(*range(first, first + 10)), f"p{first}")))
    store.replace(NAME, SPACE, reader(), remove_chunk_ids=ids(*range(0, 120, 7)))

    def everything() -> list[dict[str, Any]]:
        batches = store.scan(NAME, SPACE, SCHEMA.names)
        found = itertools.chain.from_iterable(b.to_pylist() for b in batches)
        return sorted(found, key=lambda row: row["chunk_id"])

    before, version_before = everything(), version(store)
    store.maintain(NAME, SPACE)
    assert version(store) == version_before  # below the threshold nothing is done
    monkeypatch.setattr(lancedb_store, "_SMALL_FRAGMENTS", 3)
    store.maintain(NAME, SPACE)
    assert version(store) > version_before
    assert everything() == before
    fragments = store._open(NAME, SPACE).stats()["fragment_stats"]
    assert fragments["num_fragments"] == 1
    assert store.search(NAME, SPACE, fake_vector("c00001", 16), 1)[0].chunk_id == "c00001"
    store.replace(NAME, SPACE, reader(batch(ids(1, 500), text="new")))
    assert rows(store)["c00001"] == "new"
    assert store.count(NAME, SPACE) == len(before) + 1


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
    assert lancedb_store._indexed_rows(store._open(NAME, SPACE)) == (0, 0)
    store.maintain(NAME, SPACE)
    assert lancedb_store._indexed_rows(store._open(NAME, SPACE)) == (3_000, 0)
    return store


def test_a_large_table_gets_an_index_and_a_small_one_none(indexed, tmp_path):
    small = LanceDBVectorStore(uri=str(tmp_path / "small"), approximate_from_rows=1_000)
    small.replace(NAME, SPACE, reader(batch(ids(*range(999)))))
    small.maintain(NAME, SPACE)
    assert lancedb_store._indexed_rows(small._open(NAME, SPACE)) == (0, 0)
    plan = indexed._open(NAME, SPACE).search(fake_vector("x", 16)).explain_plan()
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
        for number in range(10):
            query = fake_vector(f"query {step} {number}", 16)
            hits = indexed.search(NAME, SPACE, query, 10)
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
    assert lancedb_store._indexed_rows(indexed._open(NAME, SPACE)) == (7_000, 0)
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
