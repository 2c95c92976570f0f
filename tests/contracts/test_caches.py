"""What every embedding cache promises; a new cache is one row of `KINDS`."""

import dataclasses
import struct
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from resources.caches.base import EmbeddingCache, Retention, copy_entries
from resources.caches.vectors import CONTENT_HASH_TYPE
from tests.support.caches import (
    KINDS,
    OTHER_DIMENSION,
    SAME_DIMENSION,
    SPACE,
    CacheKind,
    entries,
    found,
    hashes,
    held,
    put,
    vectors,
)
from tests.support.fakes import fake_vector
from tests.support.redis_server import RedisServer

OTHER = OTHER_DIMENSION


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__.lower())
def kind(request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path) -> CacheKind:
    return request.param(tmp_path, redis_server)


@pytest.fixture
def cache(kind: CacheKind) -> EmbeddingCache:
    return kind.new()


# --- what is put comes back


def test_vectors_come_back_bit_for_bit_in_the_order_asked(cache):
    stored = vectors(*range(3000))
    stored[7, :2] = np.array([0x80000000, 0x00000001], dtype=np.uint32).view(np.float32)
    stored[7] /= np.linalg.norm(stored[7])
    cache.put(SPACE, hashes(*range(3000)), stored)
    order = np.random.default_rng(0).permutation(4000)
    asked = hashes(*order.tolist()).slice(10, 3900)
    order = order[10:3910]
    answer = cache.get(SPACE, asked)
    assert np.array_equal(answer.found, order < 3000)
    assert np.array_equal(cache.contains(SPACE, asked), answer.found)
    assert answer.vectors[answer.found].tobytes() == stored[order[answer.found]].tobytes()
    assert not answer.vectors[~answer.found].any()
    assert answer.rejected == 0
    assert set(cache.faults().values()) <= {0}


def test_a_slice_of_an_array_is_stored_and_looked_up_as_what_it_shows(cache):
    cache.put(SPACE, hashes(*range(10)).slice(3, 4), vectors(3, 4, 5, 6))
    assert held(cache, range(10)) == [3, 4, 5, 6]
    assert cache.get(SPACE, hashes(*range(10)).slice(5, 3)).found.tolist() == [True, True, False]


def test_nothing_is_put_and_nothing_found_where_nothing_is_given(cache):
    cache.put(SPACE, hashes(), vectors())
    assert cache.statistics() == []
    assert cache.contains(SPACE, hashes()).shape == (0,)
    assert cache.get(SPACE, hashes()).vectors.shape == (0, 16)
    assert list(cache.find(SPACE, hashes())) == []
    assert held(cache, range(3)) == []
    assert cache.spaces() == []


def test_what_is_there_is_kept_and_nothing_duplicated(cache):
    put(cache, range(2))
    later = vectors(0, 1, 2, tag="later")
    cache.put(SPACE, hashes(0, 1, 2), later)
    answer = cache.get(SPACE, hashes(0, 1, 2))
    assert answer.vectors[:2].tobytes() == vectors(0, 1).tobytes()
    assert answer.vectors[2].tobytes() == later[2].tobytes()
    assert entries(cache) == {SPACE.id: 3}


def test_vectors_of_a_wrong_shape_are_refused(cache):
    with pytest.raises(ValueError, match="dimension 16"):
        cache.put(SPACE, hashes(1), vectors(1, dimension=8))
    with pytest.raises(ValueError, match="2 hashes"):
        cache.put(SPACE, hashes(1, 2), vectors(1))
    assert cache.statistics() == []


def test_threads_with_resources_of_their_own_lose_and_duplicate_nothing(kind):
    start = threading.Barrier(4)
    errors: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            mine = kind.new()
            start.wait()
            for first in range(0, 100, 20):
                numbers = range(first + 5 * thread, first + 5 * thread + 40)
                put(mine, numbers)
                assert found(mine, numbers) == 40
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert entries(kind.new()) == {SPACE.id: 135}
    assert held(kind.new(), range(140)) == list(range(135))


# --- spaces, and what is no vector of theirs


@pytest.mark.parametrize("other", [SAME_DIMENSION, OTHER_DIMENSION])
def test_a_space_never_answers_for_another(cache, other):
    put(cache, range(100))
    assert held(cache, range(100), other) == []
    theirs = vectors(*range(50), dimension=other.dimension, tag="other")
    cache.put(other, hashes(*range(50)), theirs)
    answer = cache.get(other, hashes(*range(100)))
    assert answer.found.tolist() == [True] * 50 + [False] * 50
    assert answer.vectors[:50].tobytes() == theirs.tobytes()
    assert found(cache, range(100)) == 100
    assert {*cache.spaces()} == {SPACE, other}


def test_two_hashes_that_begin_alike_never_get_each_others_vector(cache):
    first, second = (bytes(8) + bytes([n]) * 12 for n in (1, 2))
    both = pa.array([first, second], CONTENT_HASH_TYPE)
    cache.put(SPACE, both.slice(0, 1), vectors(0))
    assert cache.get(SPACE, both.slice(1)).found.tolist() == [False]
    cache.put(SPACE, both.slice(1), vectors(1))
    for asked, numbers in ((both, (0, 1)), (both.take(pa.array([1, 0])), (1, 0))):
        np.testing.assert_array_equal(cache.get(SPACE, asked).vectors, vectors(*numbers))
    cache.put(SPACE, both, vectors(5, 6))
    assert entries(cache) == {SPACE.id: 2}


VECTOR = fake_vector("x", 16).tobytes()
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "one byte short": VECTOR[:-1],
    "one byte long": VECTOR + b"\0",
    "another dimension": fake_vector("x", 8).tobytes(),
    "norm 2": (2 * fake_vector("x", 16)).tobytes(),
    "norm 0": bytes(64),
    "one NaN": VECTOR[:-4] + struct.pack("<f", np.nan),
    "one infinity": VECTOR[:-4] + struct.pack("<f", -np.inf),
    "largest floats": np.full(16, np.finfo(np.float32).max, np.float32).tobytes(),
    "text": b"[0.25, 0.25, 0.25, 0.25]" * 2,
}


def test_hostile_bytes_are_counted_misses_and_the_next_put_replaces_them(kind):
    count = len(HOSTILE)
    cache, numbers = kind.new(), range(count + 5)
    put(cache, numbers)
    for number, value in enumerate(HOSTILE.values()):
        kind.plant(number, value)
    for _ in range(2):
        answer = cache.get(SPACE, hashes(*numbers))
        assert answer.found.tolist() == [False] * count + [True] * 5, list(HOSTILE)
        assert (answer.rejected, found(cache, numbers)) == (count, 5)
    put(cache, range(count + 1))
    assert cache.get(SPACE, hashes(*numbers)).rejected == 0
    assert held(cache, numbers) == list(numbers)
    assert entries(cache) == {SPACE.id: len(numbers)}


def test_a_space_without_normalisation_takes_any_norm_but_no_nan_and_no_zero(cache):
    space = dataclasses.replace(SPACE, normalized=False)
    stored = vectors(*range(4)) * 5
    stored[1, 3] = np.nan
    stored[2] = 0
    cache.put(space, hashes(*range(4)), stored)
    answer = cache.get(space, hashes(*range(4)))
    assert answer.found.tolist() == [True, False, False, True]
    assert answer.rejected == 2


# --- look-ups


def test_what_is_found_comes_in_parts_of_bounded_size_whatever_the_number_asked_for(cache):
    space = dataclasses.replace(SPACE, dimension=1024)
    asked = range(9_000)  # 37 MB
    cache.put(space, hashes(*asked), vectors(*asked, dimension=1024))
    parts = [len(part.numbers) for part in cache.find(space, hashes(*range(-500, 9_500)))]
    assert sum(parts) == len(asked)
    assert max(parts) <= 8_192


def test_a_look_up_that_is_left_before_its_end_leaves_the_cache_to_others(cache):
    put(cache, range(100))
    parts = cache.find(SPACE, hashes(*range(100)))
    next(parts)
    parts.close()
    put(cache, range(100, 101))
    assert held(cache, range(101)) == list(range(101))


# --- statistics


def test_statistics_tell_entries_bytes_hits_and_misses_of_each_space(cache):
    assert cache.statistics() == []
    put(cache, range(10))
    put(cache, range(3), OTHER)
    cache.get(SPACE, hashes(*range(5, 20)))
    cache.get(SPACE, hashes(*range(5, 20)))
    cache.contains(SPACE, hashes(*range(99)))  # asked only for a plan: `get` follows
    found = {s.model: s for s in cache.statistics()}
    assert (found["a"].entries, found["a"].hits, found["a"].misses) == (10, 10, 20)
    assert (found["c"].entries, found["c"].hits, found["c"].misses) == (3, 0, 0)
    assert 10 * 4 * 16 <= found["a"].bytes <= 10 * (4 * 16 + 40)
    assert found["a"].dimension == 16


def test_lookups_of_several_processes_and_days_add_up(kind, monkeypatch):
    put(kind.new(), range(4))
    today = datetime.now(timezone.utc).date()
    for days_ago in (2, 0):
        for _ in range(3):
            resource = kind.new()  # with counts of its own, as in another process

            class Clock(datetime):
                shift = timedelta(days=days_ago)

                @classmethod
                def now(cls, tz: Any = None) -> datetime:
                    return datetime.now(tz) - cls.shift

            monkeypatch.setattr("resources.caches.base.datetime", Clock)
            resource.get(SPACE, hashes(*range(6)))
            resource.save_lookups()
    days = [(d.day, d.space_id, d.hits, d.misses) for d in kind.new().lookups()]
    assert days == [(today - timedelta(days=2), SPACE.id, 12, 6), (today, SPACE.id, 12, 6)]


# --- pruning and invalidation


def test_prune_by_age_removes_what_is_older_and_nothing_else(kind, cache):
    for first, days_ago in ((0, 40), (10, 20), (20, 0)):
        kind.put_earlier(days_ago, range(first, first + 10), SPACE)
    kind.put_earlier(40, range(5), OTHER)
    held(cache, range(30))
    retention = Retention(max_age=timedelta(days=30))
    planned = cache.prune(retention, dry_run=True)
    assert {r.space_id: r.entries for r in planned} == {SPACE.id: 10, OTHER.id: 5}
    assert entries(cache) == {SPACE.id: 30, OTHER.id: 5}
    assert [r.entries for r in cache.prune(retention, SPACE.id)] == [10]
    assert held(cache, range(30)) == list(range(10, 30))
    assert held(cache, range(5), OTHER) == list(range(5))
    assert [r.space_id for r in cache.prune(retention)] == [OTHER.id]
    assert cache.prune(retention) == []


def test_prune_by_size_removes_the_oldest_of_all_spaces(kind, cache):
    kind.put_earlier(3, range(10), SPACE)
    kind.put_earlier(2, range(20), OTHER)
    kind.put_earlier(1, range(10, 20), SPACE)
    sizes = {s.space_id: s.bytes for s in cache.statistics()}
    limit = sizes[SPACE.id] // 2 + 5
    assert sum(r.entries for r in cache.prune(Retention(max_bytes=limit))) == 30
    assert held(cache, range(20)) == list(range(10, 20))
    assert held(cache, range(20), OTHER) == []
    assert cache.prune(Retention(max_bytes=limit)) == []
    assert [r.entries for r in cache.prune(Retention(max_bytes=0))] == [10]
    assert held(cache, range(20)) == []


def test_a_prune_without_limits_is_refused():
    with pytest.raises(ValueError, match="Say what to prune"):
        Retention()


def test_invalidate_removes_keys_everywhere_or_in_one_space_or_a_whole_space(cache):
    for space in (SPACE, OTHER):
        put(cache, range(10), space)
        held(cache, range(10), space)
    assert [r.entries for r in cache.invalidate(hashes(1, 2, 77), dry_run=True)] == [2, 2]
    assert held(cache, range(10)) == list(range(10))
    assert {r.space_id: r.entries for r in cache.invalidate(hashes(1, 2, 77))} == {
        SPACE.id: 2,
        OTHER.id: 2,
    }
    assert [r.entries for r in cache.invalidate(hashes(3), SPACE.id)] == [1]
    assert held(cache, range(10)) == [0, 4, 5, 6, 7, 8, 9]
    assert held(cache, range(10), OTHER) == [0, 3, 4, 5, 6, 7, 8, 9]
    assert [r.entries for r in cache.invalidate(space_id=OTHER.id)] == [8]
    assert held(cache, range(10), OTHER) == []
    assert [space.id for space in cache.spaces()] == [SPACE.id]
    assert cache.invalidate(space_id="unknown") == []
    with pytest.raises(ValueError, match="Say what to invalidate"):
        cache.invalidate()
    put(cache, range(10), OTHER)
    assert held(cache, range(10), OTHER) == list(range(10))


# --- copies


def test_a_copy_holds_every_vector_of_every_space(kind, cache):
    copied, only = kind.new("copy"), kind.new("only")
    put(cache, range(1000))
    put(cache, range(50), OTHER)
    put(copied, range(3))
    advanced: list[int] = []
    assert copy_entries(cache, copied, advanced=advanced.append) == 1050 == sum(advanced)
    assert held(copied, range(1000)) == list(range(1000))
    assert held(copied, range(50), OTHER) == list(range(50))
    assert entries(copied) == entries(cache)
    assert [(s.hits, s.misses) for s in cache.statistics()] == [(0, 0)] * 2
    copy_entries(cache, only, OTHER.id)
    assert entries(only) == {OTHER.id: 50}


def test_broken_entries_are_not_copied(kind, cache):
    put(cache, range(10))
    kind.plant(3, b"hostile")
    assert copy_entries(cache, kind.new("copy")) == 9
    assert entries(kind.new("copy")) == {SPACE.id: 9}
