"""What every vector store promises; a new store is one row of `KINDS`."""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from resources.errors import NotFoundError
from resources.vector_stores.base import VectorStore
from resources.vector_stores.from_url import vector_store_from_url
from tests.support.chunk_rows import (
    NAME,
    OTHER,
    SCHEMA,
    SPACE,
    batch,
    everything,
    ids,
    reader,
    rows,
)
from tests.support.fakes import fake_vector
from tests.support.forks import FORKS

KINDS: dict[str, Callable[[Path], str]] = {"lancedb": lambda folder: f"{folder}/vectors"}
"""The URL of an empty store."""


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return KINDS[request.param](tmp_path)


@pytest.fixture
def store(url: str) -> VectorStore:
    return vector_store_from_url(url)


# --- replace


def test_new_rows_come_and_old_ones_go_in_one_replacement(store):
    store.replace(NAME, SPACE, reader(batch(ids(*range(10))), batch(ids(20, 21), "q")))
    store.replace(
        NAME,
        SPACE,
        reader(batch(ids(0, 1, 20), text="new"), batch(ids(30), text="new")),
        remove_chunk_ids=ids(*range(2, 10), 21, 99),
    )
    wanted = dict.fromkeys(ids(0, 1, 20, 30), "new")
    for _ in range(2):
        assert rows(store) == rows(store, not_partitions=["other"]) == wanted
        assert store.count(NAME, SPACE) == 4
        for exact in (False, True):
            hits = store.search(NAME, SPACE, fake_vector("x", 16), 50, exact=exact)
            assert {hit.chunk_id for hit in hits} == {*wanted}
        store.maintain(NAME, SPACE)


def test_a_reader_sees_the_old_rows_or_the_new_ones_where_the_store_says_so(url, store):
    if not store.capabilities.atomic_replace:
        pytest.skip("this store does not replace rows in one commit")
    odd, even = ids(*range(10)), ids(*range(10, 20))

    def write(version: int) -> None:
        new, old = (odd, even) if version % 2 else (even, odd)
        store.replace(NAME, SPACE, reader(batch(new, text=str(version))), remove_chunk_ids=old)

    write(0)
    ours = vector_store_from_url(url)
    with ThreadPoolExecutor(1) as pool:
        writing = [pool.submit(write, version) for version in range(1, 12)]
        while not all(written.done() for written in writing):
            found = rows(ours)
            (version,) = {*found.values()}
            assert sorted(found) == (odd if int(version) % 2 else even)
    for written in writing:
        written.result()
    assert rows(ours) == dict.fromkeys(odd, "11")


def test_rows_are_removed_only_from_the_partitions_named(store):
    store.replace(NAME, SPACE, reader(batch(ids(1, 2), "p"), batch(ids(3, 4), "it's")))
    both = {"remove_chunk_ids": ids(1, 3, 7)}
    store.replace(NAME, SPACE, reader(), **both, remove_from_partitions=[])
    assert sorted(rows(store)) == ids(1, 2, 3, 4)
    store.replace(NAME, SPACE, reader(batch(ids(2))), **both, remove_from_partitions=["it's", "x"])
    assert sorted(rows(store)) == ids(1, 2, 4)
    store.replace(NAME, SPACE, reader(), **both, remove_from_partitions=["p"])
    assert sorted(rows(store)) == ids(2, 4)
    assert store.count(NAME, SPACE) == 2


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


def test_any_chunk_id_is_only_an_id(store):
    store.replace(NAME, SPACE, reader(batch([*HOSTILE_NAMES, "plain"])))
    store.replace(NAME, SPACE, reader(batch(HOSTILE_NAMES[:9], text="new")))
    assert rows(store) == {
        **dict.fromkeys([*HOSTILE_NAMES, "plain"], "text"),
        **dict.fromkeys(HOSTILE_NAMES[:9], "new"),
    }
    (hit,) = store.search(NAME, SPACE, fake_vector(HOSTILE_NAMES[2], 16), 1)
    assert (hit.chunk_id, hit.text) == (HOSTILE_NAMES[2], "new")
    store.replace(NAME, SPACE, reader(), remove_chunk_ids=HOSTILE_NAMES)
    assert rows(store) == {"plain": "text"}


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


def _write_in_turns(letter: str, start: Any, url: str) -> None:
    store = vector_store_from_url(url)
    import lancedb  # noqa: F401 - before the two begin at the same moment

    for number in range(10):
        start.wait()
        store.replace(f"{NAME}{number}", SPACE, reader(batch([letter])))
    for first in range(0, 300, 100):
        start.wait()
        store.replace(NAME, SPACE, reader(batch(ids(*range(first, first + 100)), text=letter)))
        gone = ids(*range(first, first + 100, 2))
        store.replace(NAME, SPACE, reader(batch(ids(first + 1))), remove_chunk_ids=gone)
        store.replace(NAME, SPACE, reader(batch(gone, text=letter)))


def test_two_processes_that_make_tables_and_write_the_same_keys_at_once_lose_and_double_nothing(
    url, store
):
    start = FORKS.Barrier(2, timeout=60)  # seconds; one does not wait for ever for one that failed
    processes = [FORKS.Process(target=_write_in_turns, args=(one, start, url)) for one in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(rows(store)) == ids(*range(300))
    assert store.count(NAME, SPACE) == 300
    for number in range(10):
        found = pa.Table.from_batches(store.scan(f"{NAME}{number}", SPACE, ["chunk_id"]))
        assert sorted(found["chunk_id"].to_pylist()) == ["a", "b"]


def _write_one(url: str) -> None:
    vector_store_from_url(url).replace(NAME, SPACE, reader(batch(ids(2), text="new")))


def test_a_reader_sees_what_another_process_committed(url, store):
    store.replace(NAME, SPACE, reader(batch(ids(1))))
    assert len(store.search(NAME, SPACE, fake_vector("x", 16), 10)) == 1
    writer = FORKS.Process(target=_write_one, args=(url,))
    writer.start()
    writer.join()
    assert writer.exitcode == 0
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


def test_rows_are_found_by_their_ids(store):
    assert store.rows(NAME, SPACE, ids(1), ["chunk_id", "vector"]).schema == pa.schema(
        [SCHEMA.field("chunk_id"), SCHEMA.field("vector")]
    )
    store.replace(NAME, SPACE, reader(batch(ids(*range(300)))))
    store.replace(NAME, SPACE, reader(), remove_chunk_ids=ids(7))
    asked = [*ids(*range(5, 205)), "o'clock", "nobody"]
    found = store.rows(NAME, SPACE, asked, ["chunk_id", "document_id"])
    assert sorted(found["chunk_id"].to_pylist()) == [*ids(5, 6), *ids(*range(8, 205))]
    assert {f"d-{row['chunk_id']}" == row["document_id"] for row in found.to_pylist()} == {True}
    assert store.rows(NAME, SPACE, [], ["chunk_id"]).num_rows == 0


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


@pytest.mark.parametrize("queries", [0, 1, 2, 150])
@pytest.mark.parametrize("exact", [False, True])
def test_many_queries_at_once_find_what_each_alone_does(store, queries, exact):
    store.replace(NAME, SPACE, reader(batch(ids(*range(300)))))
    vectors = np.zeros((queries, 16), np.float32)
    for number in range(queries):
        vectors[number] = fake_vector(f"query {number}", 16)
    found = store.nearest_documents(NAME, SPACE, vectors, 20, exact=exact)
    assert len(found) == queries
    for vector, documents in zip(vectors, found, strict=True):
        hits = store.search(NAME, SPACE, vector, 20, exact=exact)
        alone = sorted((hit.document_id, hit.score) for hit in hits)
        assert sorted(documents) == [
            (name, pytest.approx(score, abs=1e-6)) for name, score in alone
        ]


def test_search_returns_all_rows_where_there_are_fewer_than_asked_for(store):
    store.replace(NAME, SPACE, reader(batch(ids(1, 2, 3))))
    assert len(store.search(NAME, SPACE, fake_vector("x", 16), 10)) == 3
    store.replace(NAME, SPACE, reader(), remove_chunk_ids=ids(1, 2, 3))
    assert store.search(NAME, SPACE, fake_vector("x", 16), 10) == []


@pytest.mark.parametrize("exact", [False, True])
def test_search_passes_over_the_rows_of_partitions_named(store, exact):
    named = {"p0": ids(*range(100)), "o'p": ids(*range(100, 200)), "p2": ids(*range(200, 203))}
    store.replace(NAME, SPACE, reader(*(batch(chunks, name) for name, chunks in named.items())))
    query = fake_vector("query", 16)
    every = store.search(NAME, SPACE, query, 203, exact=exact)
    for left_out in ([], ["p0"], ["p0", "o'p", "none"], [*named]):
        hits = store.search(NAME, SPACE, query, 3, exact=exact, not_partitions=left_out)
        wanted = [hit for hit in every if hit.partition not in left_out][:3]
        assert [(hit.chunk_id, hit.score) for hit in hits] == [
            (hit.chunk_id, hit.score) for hit in wanted
        ]


def test_search_without_a_table_says_what_to_materialize(store):
    with pytest.raises(NotFoundError, match="embedding-assets build corpus"):
        store.search(NAME, SPACE, fake_vector("x", 16), 3)
    with pytest.raises(NotFoundError, match="embedding-assets build corpus"):
        store.nearest_documents(NAME, SPACE, fake_vector("x", 16)[None], 3)


def test_two_spaces_and_two_collections_are_separate_tables(store):
    store.replace(NAME, SPACE, reader(batch(ids(1))))
    store.replace(NAME, OTHER, reader(batch(ids(2))))
    store.replace("other", SPACE, reader(batch(ids(3))))
    assert list(rows(store, SPACE)) == ids(1)
    assert list(rows(store, OTHER)) == ids(2)
    assert store.search("other", SPACE, fake_vector("x", 16), 9)[0].chunk_id == ids(3)[0]
    with pytest.raises(NotFoundError):
        store.search("other", OTHER, fake_vector("x", 16), 9)


# --- the tables of a collection


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


def test_collections_with_a_table_are_listed_whoever_made_them(store):
    assert store.collections() == []
    for collection in ("b", "a__b", "b", "a"):
        store.create_table(collection, SPACE)
        store.create_table(collection, OTHER)
    assert store.collections() == ["a", "a__b", "b"]
    store.drop_table("b", SPACE)
    assert store.collections() == ["a", "a__b", "b"]
    store.drop_table("b", OTHER)
    assert store.collections() == ["a", "a__b"]


def test_maintain_never_changes_rows(store):
    for first in range(0, 120, 10):
        store.replace(NAME, SPACE, reader(batch(ids(*range(first, first + 10)), f"p{first}")))
    store.replace(NAME, SPACE, reader(), remove_chunk_ids=ids(*range(0, 120, 7)))
    before = everything(store)
    store.maintain(NAME, SPACE)
    assert everything(store) == before
    store.replace(NAME, SPACE, reader(batch(ids(1, 500), text="new")))
    assert rows(store)["c00001"] == "new"
    assert store.count(NAME, SPACE) == len(before) + 1
