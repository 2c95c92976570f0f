"""What both caches can do besides looking up: statistics, pruning, invalidation, copies, memory."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from filelock import FileLock
from typer.testing import CliRunner

from embedding_assets.cli.main import app
from embedding_assets.collection.resources import shared_resources
from resources.caches import entry as cache_entry
from resources.caches.base import CacheUnavailableError, EmbeddingCache, Limits, copy_entries
from resources.caches.duckdb import DuckDBEmbeddingCache
from resources.caches.from_url import cache_from_url
from resources.caches.memory import MemoryEmbeddingCache
from resources.caches.redis import RedisEmbeddingCache
from resources.caches.vectors import CONTENT_HASH_TYPE
from resources.identity.content_hash import content_hash, query_hash
from resources.identity.embedding_space import EmbeddingSpace
from tests.support.fakes import fake_vector
from tests.support.pipeline import Pipeline, write_jsonl
from tests.support.redis_server import RedisServer, running_redis

SPACE = EmbeddingSpace("fake", "a", "", 16, 256, True)
OTHER = EmbeddingSpace("fake", "b", "", 8, 256, True)
KINDS = ["duckdb", "redis", "memory"]


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def new_cache(server: RedisServer, tmp_path: Path) -> Any:
    server.client().flushall()

    def make(kind: str, name: str = "one") -> EmbeddingCache:
        if kind == "redis":
            return RedisEmbeddingCache(url=server.url, key_prefix=f"[{name}]*", timeout=30)
        duckdb_cache = DuckDBEmbeddingCache(path=str(tmp_path / f"{name}.duckdb"))
        return duckdb_cache if kind == "duckdb" else MemoryEmbeddingCache(behind=duckdb_cache)

    return make


@pytest.fixture(params=KINDS)
def cache(request: pytest.FixtureRequest, new_cache: Any) -> EmbeddingCache:
    return new_cache(request.param)


def hashes(*numbers: int) -> pa.Array:
    return pa.array([content_hash(f"text {number}") for number in numbers], CONTENT_HASH_TYPE)


def vectors(*numbers: int, dimension: int = 16) -> np.ndarray:
    return np.stack([fake_vector(str(number), dimension) for number in numbers])


def put(
    cache: EmbeddingCache,
    numbers: range,
    space: EmbeddingSpace = SPACE,
    days_ago: float = 0,
) -> None:
    """Stores vectors as if that had been some days ago."""
    behind = cache.behind if isinstance(cache, MemoryEmbeddingCache) else cache
    with pytest.MonkeyPatch.context() as patch:
        now = cache_entry.time.time() - days_ago * 86_400
        patch.setattr(cache_entry.time, "time", lambda: now)
        cache.put(space, hashes(*numbers), vectors(*numbers, dimension=space.dimension))
    if isinstance(behind, DuckDBEmbeddingCache):
        with duckdb.connect(behind.path) as database:
            database.register("n", pa.table({"content_hash": hashes(*numbers)}))
            database.execute(
                f'UPDATE "vectors_{space.id}" SET created = created - to_seconds(?) '
                "WHERE content_hash IN (SELECT content_hash FROM n)",
                [days_ago * 86_400],
            )


def held(cache: EmbeddingCache, numbers: range, space: EmbeddingSpace = SPACE) -> list[int]:
    """Which are found; `contains` and `find` agree, and their bits are right."""
    answer = cache.get(space, hashes(*numbers))
    streamed = {
        int(number): vector.tobytes()
        for part in cache.find(space, hashes(*numbers))
        for number, vector in zip(part.numbers, part.vectors, strict=True)
    }
    assert streamed == {int(n): answer.vectors[n].tobytes() for n in np.flatnonzero(answer.found)}
    truth = vectors(*numbers, dimension=space.dimension)
    assert np.array_equal(answer.found, cache.contains(space, hashes(*numbers)))
    assert answer.vectors[answer.found].tobytes() == truth[answer.found].tobytes()
    return np.array(numbers)[answer.found].tolist()


def entries(cache: EmbeddingCache) -> dict[str, int]:
    return {space.space_id: space.entries for space in cache.statistics()}


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
    assert (found["b"].entries, found["b"].hits, found["b"].misses) == (3, 0, 0)
    assert 10 * 4 * 16 <= found["a"].bytes <= 10 * (4 * 16 + 40)
    assert found["a"].dimension == 16


@pytest.mark.parametrize("kind", KINDS)
def test_lookups_of_several_processes_and_days_add_up(new_cache, monkeypatch, kind):
    put(new_cache(kind), range(4))
    today = datetime.now(timezone.utc).date()
    for days_ago in (2, 0):
        for _ in range(3):
            resource = new_cache(kind)  # with counts of its own, as in another process

            class Clock(datetime):
                shift = timedelta(days=days_ago)

                @classmethod
                def now(cls, tz: Any = None) -> datetime:
                    return datetime.now(tz) - cls.shift

            monkeypatch.setattr("resources.caches.base.datetime", Clock)
            resource.get(SPACE, hashes(*range(6)))
            resource.save_lookups()
    days = [(d.day, d.space_id, d.hits, d.misses) for d in new_cache(kind).lookups()]
    assert days == [(today - timedelta(days=2), SPACE.id, 12, 6), (today, SPACE.id, 12, 6)]


def test_a_run_saves_what_it_looked_up(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"id": str(i), "text": f"Text {i}."} for i in range(9)])
    settings = {"partitions": {"by": "bucket", "count": 1}}
    pipeline = Pipeline(tmp_path / "p", str(tmp_path / "*.jsonl"), settings=settings)
    pipeline.resources["embedding_cache"] = MemoryEmbeddingCache(behind=pipeline.cache)
    pipeline.run()
    pipeline.run(assets=["embeddings"])
    ((hits, misses),) = [(s.hits, s.misses) for s in pipeline.cache.statistics()]
    assert (hits, misses) == (9, 9)


def test_counting_never_fails_a_run_whose_file_is_held(new_cache):
    cache = new_cache("duckdb")
    put(cache, range(3))
    hasty = DuckDBEmbeddingCache(path=cache.path, lock_timeout=0.05)
    hasty.get(SPACE, hashes(1))
    with FileLock(f"{cache.path}.lock"):
        hasty.save_lookups()
    assert [(s.hits, s.misses) for s in cache.statistics()] == [(0, 0)]


# --- pruning and invalidation


def test_prune_by_age_removes_what_is_older_and_nothing_else(cache):
    for first, days_ago in ((0, 40), (10, 20), (20, 0)):
        put(cache, range(first, first + 10), days_ago=days_ago)
    put(cache, range(5), OTHER, days_ago=40)
    held(cache, range(30))
    limits = Limits(max_age=timedelta(days=30))
    planned = cache.prune(limits, dry_run=True)
    assert {r.space_id: r.entries for r in planned} == {SPACE.id: 10, OTHER.id: 5}
    assert entries(cache) == {SPACE.id: 30, OTHER.id: 5}
    assert [r.entries for r in cache.prune(limits, SPACE.id)] == [10]
    assert held(cache, range(30)) == list(range(10, 30))
    assert held(cache, range(5), OTHER) == list(range(5))
    assert [r.space_id for r in cache.prune(limits)] == [OTHER.id]
    assert cache.prune(limits) == []


def test_prune_by_size_removes_the_oldest_of_all_spaces(cache):
    put(cache, range(10), days_ago=3)
    put(cache, range(20), OTHER, days_ago=2)
    put(cache, range(10, 20), days_ago=1)
    sizes = {s.space_id: s.bytes for s in cache.statistics()}
    limit = sizes[SPACE.id] // 2 + 5
    assert sum(r.entries for r in cache.prune(Limits(max_bytes=limit))) == 30
    assert held(cache, range(20)) == list(range(10, 20))
    assert held(cache, range(20), OTHER) == []
    assert cache.prune(Limits(max_bytes=limit)) == []
    assert [r.entries for r in cache.prune(Limits(max_bytes=0))] == [10]
    assert held(cache, range(20)) == []


def test_a_prune_without_limits_is_refused():
    with pytest.raises(ValueError, match="Say what to prune"):
        Limits()


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


def test_pruning_gives_room_back_and_leaves_nothing_behind(tmp_path):
    cache = DuckDBEmbeddingCache(path=str(tmp_path / "cache.duckdb"))
    space = dataclasses.replace(SPACE, dimension=512)
    for start in range(0, 8000, 2000):
        numbers = range(start, start + 2000)
        cache.put(space, hashes(*numbers), vectors(*numbers, dimension=512))
    with duckdb.connect(cache.path):  # closing moves what is in the log into the file
        pass
    before = Path(cache.path).stat().st_size
    keys = hashes(*range(7000))
    assert [r.entries for r in cache.invalidate(keys)] == [7000]
    assert Path(cache.path).stat().st_size < before / 2
    assert held(cache, range(6900, 8000), space) == list(range(7000, 8000))
    cache.put(space, hashes(1), vectors(1, dimension=512))
    assert held(cache, range(3), space) == [1]
    names = {path.name for path in tmp_path.iterdir()}
    assert names <= {"cache.duckdb", "cache.duckdb.wal", "cache.duckdb.lock"}


_KILLED_WHILE_PRUNING = """
import os, sys
from resources.caches import duckdb_tables
from resources.caches.duckdb import DuckDBEmbeddingCache
from resources.caches.base import Limits
attach = duckdb_tables.attach
def attach_and_die(database, path, name, dimension):
    attach(database, path, name, dimension)
    if name == "smaller":
        database.execute("CREATE TABLE smaller.half (i INTEGER)")
        os.kill(os.getpid(), 9)
duckdb_tables.attach = attach_and_die
DuckDBEmbeddingCache(path=sys.argv[1]).prune(Limits(max_bytes=1))
"""


def test_what_a_killed_prune_leaves_is_removed_by_whoever_comes_next(tmp_path):
    cache = DuckDBEmbeddingCache(path=str(tmp_path / "cache.duckdb"))
    cache.put(SPACE, hashes(*range(2000)), vectors(*range(2000)))
    command = [sys.executable, "-c", _KILLED_WHILE_PRUNING, cache.path]
    assert subprocess.run(command, cwd=Path(__file__).parents[3]).returncode == -9
    assert list(tmp_path.glob("*.compact*"))
    assert held(cache, range(3)) == []
    assert not list(tmp_path.glob("*.compact*"))


# --- copies


@pytest.mark.parametrize(("source", "target"), [("duckdb", "redis"), ("redis", "duckdb")])
def test_a_copy_holds_every_vector_of_every_space(new_cache, monkeypatch, source, target):
    monkeypatch.setattr("resources.caches.duckdb._HASHES_PER_SLICE", 100)
    monkeypatch.setattr("resources.caches.duckdb_tables.ROWS_PER_BATCH", 64)
    origin, copied = new_cache(source, "from"), new_cache(target, "to")
    put(origin, range(1000))
    put(origin, range(50), OTHER)
    put(copied, range(3))
    advanced: list[int] = []
    assert copy_entries(origin, copied, advanced=advanced.append) == 1050 == sum(advanced)
    assert held(copied, range(1000)) == list(range(1000))
    assert held(copied, range(50), OTHER) == list(range(50))
    assert entries(copied) == entries(origin)
    assert [(s.hits, s.misses) for s in origin.statistics()] == [(0, 0)] * 2
    only = new_cache(target, "only")
    copy_entries(origin, only, OTHER.id)
    assert entries(only) == {OTHER.id: 50}


def test_broken_entries_are_not_copied(new_cache, server):
    origin, copied = new_cache("redis", "from"), new_cache("duckdb", "to")
    put(origin, range(10))
    server.client().set(server.client().keys("*from*vector*")[0], b"hostile")
    assert copy_entries(origin, copied) == 9
    assert entries(copied) == {SPACE.id: 9}


def test_a_copy_that_the_target_does_not_store_fails(new_cache):
    origin = new_cache("duckdb")
    put(origin, range(10))
    with (
        running_redis("--maxmemory", "1") as full,
        pytest.raises(CacheUnavailableError, match="did not store 10"),
    ):
        copy_entries(origin, RedisEmbeddingCache(url=full.url, timeout=30))


# --- memory


def test_memory_answers_without_the_cache_behind_within_its_bound(new_cache, tmp_path):
    space = dataclasses.replace(SPACE, dimension=1024)
    behind = new_cache("duckdb")
    cache = MemoryEmbeddingCache(behind=behind, max_megabytes=1)
    numbers = range(400)  # 1.6 MB
    cache.put(space, hashes(*numbers), vectors(*numbers, dimension=1024))
    assert held(cache, range(100), space) == list(range(100))
    with duckdb.connect(behind.path):  # closing moves what is in the log into the file
        pass
    again = MemoryEmbeddingCache(behind=behind, max_megabytes=1)  # as in the next run
    Path(behind.path).rename(tmp_path / "away")
    assert held(again, range(100), space) == list(range(100))
    assert again.get(space, hashes(200)).found.tolist() == [False]
    (tmp_path / "away").replace(behind.path)
    held(cache, range(10), space)  # just used
    assert held(cache, range(160, 400), space) == list(range(160, 400))
    assert cache._memory.size_bytes <= 1 << 20
    Path(behind.path).unlink()
    assert 200 < int(cache.get(space, hashes(*range(160, 400))).found.sum()) <= 240
    assert not cache.get(space, hashes(*range(50, 60))).found.any()


def test_memory_keeps_spaces_apart_and_forgets_what_is_invalidated(new_cache):
    cache = new_cache("memory")
    put(cache, range(5))
    held(cache, range(5))
    assert held(cache, range(5), OTHER) == []
    cache.invalidate(hashes(2))
    assert held(cache, range(5)) == [0, 1, 3, 4]


# --- which cache


def test_the_environment_chooses_the_cache(monkeypatch, tmp_path, server):
    monkeypatch.setenv("EMBEDDING_DATA_DIR", str(tmp_path))
    default = shared_resources()["embedding_cache"]
    assert isinstance(default, DuckDBEmbeddingCache)
    assert default.path == str(tmp_path / "cache.duckdb")
    monkeypatch.setenv("EMBEDDING_CACHE", server.url + "?ttl=1m&timeout=2")
    redis = shared_resources()["embedding_cache"]
    assert isinstance(redis, RedisEmbeddingCache)
    assert (redis.url, redis.ttl_seconds, redis.timeout) == (server.url, 60, 2.0)
    monkeypatch.setenv("EMBEDDING_CACHE", str(tmp_path / "other.duckdb"))
    monkeypatch.setenv("EMBEDDING_CACHE_MEMORY_MB", "8")
    memory = shared_resources()["embedding_cache"]
    assert isinstance(memory, MemoryEmbeddingCache)
    assert isinstance(memory.behind, DuckDBEmbeddingCache)
    assert (memory.behind.path, memory.max_megabytes) == (str(tmp_path / "other.duckdb"), 8)


# --- command line


def run(*arguments: str, fails: bool = False) -> Any:
    result = CliRunner().invoke(app, ["cache", *arguments])
    assert result.exit_code == int(fails), result.output
    if fails:
        return result.output
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


@pytest.mark.parametrize("kind", ["duckdb", "redis"])
def test_the_command_line_counts_prunes_invalidates_and_copies(tmp_path, server, kind):
    server.client().flushall()
    urls = {"duckdb": str(tmp_path / "one.duckdb"), "redis": server.url + "?timeout=30"}
    url = urls[kind]
    cache = cache_from_url(url)
    put(cache, range(10), days_ago=40)
    put(cache, range(10, 20))
    put(cache, range(5), OTHER)
    cache.get(SPACE, hashes(*range(15, 25)))
    cache.save_lookups()
    first, second = sorted(
        run("stats", "--cache", url, "--json"), key=lambda r: r["entries"], reverse=True
    )
    assert first == {
        "embedding_space": SPACE.id,
        "model": "a",
        "dimension": 16,
        "entries": 20,
        "bytes": first["bytes"],
        "hits": 5,
        "misses": 5,
        "hit_rate": 0.5,
    }
    assert second["hit_rate"] is None
    (day,) = run("stats", "--by-day", "--cache", url, "--json")
    assert (day["hits"], day["misses"], day["hit_rate"]) == (5, 5, 0.5)
    assert "Embedding cache" in run("stats", "--cache", url)

    older = ("prune", "--older-than", "30d", "--cache", url, "--json")
    assert run(*older, "--dry-run")[0]["would_be_removed"] == 10
    assert run(*older)[0]["removed"] == 10
    assert run(*older) == []
    assert "Nothing" in run(*older[:-1])

    invalidated = ("invalidate", "--text", "text 15", "--cache", url, "--space", SPACE.id, "--json")
    assert run(*invalidated, "--dry-run")[0]["would_be_removed"] == 1
    assert run(*invalidated)[0]["removed"] == 1
    assert held(cache, range(20)) == [*range(10, 15), *range(16, 20)]
    cache.put(SPACE, pa.array([query_hash("A query")], CONTENT_HASH_TYPE), vectors(1))
    assert run("invalidate", "--text", "A query", "--cache", url, "--json")[0]["removed"] == 1
    key = hashes(16)[0].as_py().hex()
    assert run("invalidate", "--key", key, "--cache", url, "--json")[0]["removed"] == 1

    target = str(tmp_path / "copy.duckdb") if kind == "redis" else server.url + "?timeout=30"
    assert run("copy", url, target, "--json") == [{"entries": 13, "copied": 13}]
    assert held(cache_from_url(target), range(20)) == [*range(10, 15), *range(17, 20)]
    assert run("invalidate", "--space", SPACE.id, "--cache", url, "--json")[0]["removed"] == 8
    assert run("prune", "--max-size", "0 MB", "--cache", url, "--json")[0]["removed"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune"], "Say what to prune"),
        (["prune", "--older-than", "soon"], "12h, 30d or 8w"),
        (["prune", "--max-size", "many"], "500MB or 2GB"),
        (["invalidate"], "Say what to invalidate"),
        (["invalidate", "--key", "abc"], "40 hexadecimal"),
        (["stats", "--cache", "redis://user:planted@127.0.0.1:1/0"], "does not answer"),
        (["stats", "--cache", "redis://user:planted#@127.0.0.1:1/0"], "must look like"),
        (["copy", "nowhere.duckdb", "elsewhere.duckdb"], "holds no vectors"),
    ],
)
def test_a_mistake_ends_in_one_sentence(monkeypatch, tmp_path, arguments, message):
    monkeypatch.setenv("EMBEDDING_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    output = run(*arguments, fails=True)
    assert message in " ".join(output.split())
    assert "planted" not in output
    assert "Traceback" not in output
    assert list(tmp_path.iterdir()) == []
