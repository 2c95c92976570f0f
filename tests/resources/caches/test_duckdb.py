"""The DuckDB cache: bit-exact, one space never answers for another, and no damage stops anybody."""

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from filelock import FileLock

from resources.caches.duckdb import DuckDBEmbeddingCache
from resources.caches.duckdb_file import CacheLockedError
from resources.caches.vectors import decode_vectors, encode_vectors
from tests.support.caches import SPACE, entries, found, hashes, held, put, vectors
from tests.support.checkout import PROJECT


@pytest.fixture
def cache(tmp_path: Path) -> DuckDBEmbeddingCache:
    return DuckDBEmbeddingCache(path=str(tmp_path / "cache.duckdb"))


def damaged_files(cache: DuckDBEmbeddingCache) -> list[Path]:
    folder = Path(cache.path).parent
    return sorted(p for p in folder.glob("*.damaged-*") if ".wal" not in p.name)


def python(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# --- what is put comes back


def test_questions_and_empty_inputs_are_answered_without_a_file(cache):
    cache.put(SPACE, hashes(), vectors())
    assert not cache.contains(SPACE, hashes(1, 2)).any()
    assert not cache.get(SPACE, hashes(1, 2)).found.any()
    assert cache.contains(SPACE, hashes()).shape == (0,)
    assert cache.get(SPACE, hashes()).vectors.shape == (0, 16)
    assert cache.statistics() == []
    assert not Path(cache.path).exists()


def test_a_folder_that_does_not_exist_is_made(tmp_path):
    cache = DuckDBEmbeddingCache(path=str(tmp_path / "a" / "b" / "cache.duckdb"))
    assert not cache.contains(SPACE, hashes(1)).any()
    cache.put(SPACE, hashes(1), vectors(1))
    assert cache.contains(SPACE, hashes(1)).all()


@pytest.mark.parametrize("name", ["it's.duckdb", "a b.duckdb", "größe*[x]?.db", 'q"uote', "; DROP"])
def test_any_file_name_is_only_a_name(tmp_path, name):
    cache = DuckDBEmbeddingCache(path=str(tmp_path / name))
    for content in (None, b"damaged"):
        if content is not None:
            Path(cache.path).write_bytes(content)
        assert not cache.contains(SPACE, hashes(1)).any()
        cache.put(SPACE, hashes(1), vectors(1))
        assert cache.get(SPACE, hashes(1)).found.all()
    # The file, its log and its lock; the damaged one and its log.
    assert len(list(tmp_path.iterdir())) <= 5


# --- hostile bytes under a key


def test_a_null_is_a_counted_miss_and_the_next_put_replaces_it(cache):
    put(cache, range(3))
    with duckdb.connect(cache.path) as database:
        database.execute(f'UPDATE "vectors_{SPACE.id}" SET vector = NULL')
    assert cache.get(SPACE, hashes(0, 1)).rejected == 2
    put(cache, range(2))
    assert found(cache, range(3)) == 2
    assert entries(cache) == {SPACE.id: 3}


def test_a_file_from_before_it_held_prefixes_is_completed(cache):
    put(cache, range(20))
    with duckdb.connect(cache.path) as database:
        database.execute(f'ALTER TABLE "vectors_{SPACE.id}" DROP COLUMN prefix')
    assert cache.contains(SPACE, hashes(*range(25))).tolist() == [i < 20 for i in range(25)]
    put(cache, range(15, 25))
    assert found(cache, range(25)) == 25
    assert entries(cache) == {SPACE.id: 25}


def test_decoding_never_trusts_the_bytes_of_a_null():
    encoded = encode_vectors(vectors(1, 2)).cast(pa.large_binary())
    validity = pa.py_buffer(b"\x01")
    hidden = pa.Array.from_buffers(pa.large_binary(), 2, [validity, *encoded.buffers()[1:]])
    decoded, right_size = decode_vectors(hidden, 16)
    assert right_size.tolist() == [True, False]
    assert decoded[0].tobytes() == vectors(1)[0].tobytes()
    assert not decoded[1].any()


# --- several processes


PROCESSES = """
import multiprocessing, sys
from resources.caches.duckdb import DuckDBEmbeddingCache
from tests.support.caches import SPACE, hashes, vectors

def work(number, start, path):
    cache = DuckDBEmbeddingCache(path=path)
    start.wait()
    for first in range(0, 120, 30):
        numbers = range(first + 5 * number, first + 5 * number + 40)
        cache.put(SPACE, hashes(*numbers), vectors(*numbers))
        assert cache.get(SPACE, hashes(*numbers)).found.all()

fork = multiprocessing.get_context("fork")
start = fork.Barrier(8, timeout=60)  # seconds; the others do not wait for ever for one that failed
processes = [fork.Process(target=work, args=(i, start, sys.argv[1])) for i in range(8)]
for process in processes:
    process.start()
for process in processes:
    process.join()
sys.exit(any(process.exitcode for process in processes))
"""


@pytest.mark.parametrize(
    "before", [pytest.param("no file", marks=pytest.mark.slow), "a damaged file"]
)
def test_eight_processes_at_once_lose_and_duplicate_nothing(cache, before):
    if before == "a damaged file":
        Path(cache.path).write_bytes(b"no database" * 1000)
    process = python(PROCESSES, cache.path)
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert entries(cache) == {SPACE.id: 165}
    assert found(cache, range(165)) == 165
    assert len(damaged_files(cache)) == (before == "a damaged file")


PUT_FOREVER = """
import itertools, sys
from resources.caches.duckdb import DuckDBEmbeddingCache
from tests.support.caches import put

cache = DuckDBEmbeddingCache(path=sys.argv[1])
for first in itertools.count(0, 50):
    put(cache, range(first, first + 50))
    print(first + 50, flush=True)
"""


def test_acknowledged_puts_survive_kill_9_and_the_lock_is_free_again(cache):
    acknowledged = 0
    for _ in range(3):
        process = python(PUT_FOREVER, cache.path)
        assert process.stdout is not None
        for _ in range(10):
            acknowledged = max(acknowledged, int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
        process.wait()
        assert found(cache, range(acknowledged)) == acknowledged
    assert entries(cache)[SPACE.id] == len(held(cache, range(acknowledged + 1_000))) >= acknowledged
    assert damaged_files(cache) == []


# --- damage


def flipped(data: bytes, *positions: int) -> bytes:
    changed = bytearray(data)
    for position in positions:
        changed[position] ^= 0x55
    return bytes(changed)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "no bytes": lambda data: data[:0],
    "garbage": lambda data: np.random.default_rng(0).bytes(len(data)),
    "text": lambda _: b"version https://git-lfs.github.com/spec/v1\n" * 1000,
    "cut in the first header": lambda data: data[:100],
    "cut after the headers": lambda data: data[:12288],
    "cut in half": lambda data: data[: len(data) // 2],
    "last byte missing": lambda data: data[:-1],
    "flipped magic bytes": lambda data: flipped(data, 8),
    "flipped main header": lambda data: flipped(data, 20),
    "flipped checksum": lambda data: flipped(data, 0),
    "flipped both database headers": lambda data: flipped(data, 4110, 8210),
    "zeros": lambda data: bytes(len(data)),
}


@pytest.fixture(scope="module")
def healthy_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("healthy") / "cache.duckdb"
    DuckDBEmbeddingCache(path=str(path)).put(SPACE, hashes(*range(9000)), vectors(*range(9000)))
    with duckdb.connect(path):  # closing moves what is in the log into the file
        pass
    return path.read_bytes()


@pytest.mark.parametrize(
    ("damage", "operation"),
    [
        *((damage, operation) for damage in DAMAGES for operation in ("get", "put")),
        ("garbage", "contains"),
        ("garbage", "statistics"),
    ],
)
def test_a_damaged_file_is_set_aside_and_a_new_cache_starts(
    cache, logged, healthy_bytes, damage, operation
):
    damaged = DAMAGES[damage](healthy_bytes)
    Path(cache.path).write_bytes(damaged)
    if operation == "put":
        cache.put(SPACE, hashes(-1), vectors(-1))
    elif operation == "statistics":
        cache.statistics()
    else:
        getattr(cache, operation)(SPACE, hashes(*range(9000)))
    found(cache, range(9000))  # may be what shows the damage
    put(cache, range(9000))
    assert found(cache, range(9000)) == 9000
    if operation == "put" or damage == "last byte missing":
        assert len(damaged_files(cache)) <= 1  # what is damaged need not have been read
        return
    (aside,) = damaged_files(cache)
    assert any(aside.name in w and "will be embedded again" in w for w in logged)
    if damage != "cut in half":
        assert aside.read_bytes() == damaged


def opens(data: bytes, folder: Path) -> bool:
    path = folder / "opened.duckdb"
    path.write_bytes(data)
    try:
        duckdb.connect(str(path)).close()
    except duckdb.Error:
        return False
    return True


@pytest.mark.parametrize("operation", ["contains", "get", "put"])
def test_damage_that_only_a_query_finds_is_a_miss_and_never_a_wrong_vector(
    cache, tmp_path, healthy_bytes, operation
):
    set_aside = 0
    blocks = range(12288, len(healthy_bytes) - 5000, 262144)
    for block in blocks:
        data = flipped(healthy_bytes, block + 4000)
        if not opens(data, tmp_path):
            continue
        Path(cache.path).write_bytes(data)
        if operation == "contains":
            known = cache.contains(SPACE, hashes(*range(9000)))
            assert known.all() or not known.any()
        elif operation == "get":
            assert found(cache, range(9000)) in (0, 9000)
        else:
            put(cache, range(9000, 9010))
        found(cache, range(9010))
        put(cache, range(9010))
        assert found(cache, range(9010)) == 9010
        set_aside += len(damaged_files(cache))
        for path in damaged_files(cache):
            path.unlink()
    assert len(blocks) > 2
    assert set_aside > 0


KILLED_AFTER_COMMIT = """
import os, signal, sys
import duckdb

database = duckdb.connect(sys.argv[1])
table = f'"vectors_{sys.argv[2]}"'
for _ in range(20):
    database.execute(f"INSERT INTO {table} SELECT * REPLACE (md5(random()::VARCHAR)::BLOB "
                     f"AS content_hash) FROM {table} LIMIT 10")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    "damage", ["garbage", "flipped", "flipped version", "cut", "zeros", "no bytes", "stale"]
)
def test_a_damaged_write_ahead_log_never_stops_anybody(cache, damage):
    put(cache, range(100))
    python(KILLED_AFTER_COMMIT, cache.path, SPACE.id).wait()
    log = Path(f"{cache.path}.wal")
    data = log.read_bytes()
    assert len(data) > 1000
    log.write_bytes(
        {
            "garbage": np.random.default_rng(0).bytes(len(data)),
            "flipped": flipped(data, data.index(b"cache")),  # in the first entry; it has a checksum
            "flipped version": flipped(data, 5),
            "cut": data[: len(data) // 2],
            "zeros": bytes(len(data)),
            "no bytes": b"",
            "stale": data * 2,
        }[damage]
    )
    assert found(cache, range(100)) in (0, 100)
    if damage.startswith("flipped"):
        (aside,) = damaged_files(cache)
        assert aside.with_name(f"{aside.name}.wal").exists()
    put(cache, range(200))
    assert found(cache, range(200)) == 200


def test_a_second_damaged_file_does_not_replace_the_first_one_set_aside(cache):
    for content in (b"first" * 1000, b"second" * 1000):
        Path(cache.path).write_bytes(content)
        assert not cache.contains(SPACE, hashes(1)).any()
    assert {p.read_bytes()[:5] for p in damaged_files(cache)} == {b"first", b"secon"}


# --- files that are not ours to rename


HOLD = """
import sys
import duckdb

database = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.readline()
"""

HOLD_AS_WE_DO = """
import sys
from pathlib import Path
from resources.caches.duckdb import DuckDBEmbeddingCache

def hold(database):
    print("held", flush=True)
    sys.stdin.readline()

DuckDBEmbeddingCache(path=sys.argv[1])._act(hold)
"""


@pytest.mark.parametrize("program", [HOLD, HOLD_AS_WE_DO])
def test_a_file_held_by_another_process_is_waited_for_then_named_with_its_holder(cache, program):
    cache.put(SPACE, hashes(1), vectors(1))
    hasty = DuckDBEmbeddingCache(path=cache.path, lock_timeout=0.2)
    holder = python(program, cache.path)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CacheLockedError) as caught:
            hasty.get(SPACE, hashes(1))
        assert cache.path in str(caught.value)
        assert "lock_timeout" in str(caught.value)
        assert str(holder.pid) in str(caught.value)
        timer = threading.Timer(0.3, lambda: holder.communicate("\n"))
        timer.start()
        assert cache.get(SPACE, hashes(1)).found.all()
        timer.join()
    finally:
        holder.kill()
        holder.wait()
    assert damaged_files(cache) == []
    assert hasty.get(SPACE, hashes(1)).found.all()


def test_a_directory_in_the_place_of_the_file_is_raised_and_left_alone(cache):
    inside = Path(cache.path) / "precious"
    inside.mkdir(parents=True)
    with pytest.raises(duckdb.IOException, match="directory"):
        cache.get(SPACE, hashes(1))
    assert inside.is_dir()


WITHOUT_PERMISSION = """
import os, sys
import duckdb
from resources.caches.duckdb import DuckDBEmbeddingCache
from tests.support.caches import SPACE, hashes, vectors

cache = DuckDBEmbeddingCache(path=sys.argv[1])
cache.contains(SPACE, hashes())
duckdb.connect().sql("SELECT 1").to_arrow_table()
if os.geteuid() == 0:
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
try:
    cache.get(SPACE, hashes(1))
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX systems")
@pytest.mark.parametrize("forbidden", ["file", "folder"])
def test_missing_permission_is_raised_and_the_file_left_alone(forbidden):
    # pytest's own folders are closed to the user that a test run by root changes to.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache.duckdb"
        cache = DuckDBEmbeddingCache(path=str(path))
        cache.put(SPACE, hashes(1), vectors(1))
        Path(f"{path}.lock").unlink(missing_ok=True)
        path.chmod(0o000)
        Path(folder).chmod(0o777 if forbidden == "file" else 0o555)
        output, _ = python(WITHOUT_PERMISSION, str(path)).communicate(timeout=120)
        Path(folder).chmod(0o700)
        path.chmod(0o600)
        assert "ermission" in output
        assert damaged_files(cache) == []
        assert cache.get(SPACE, hashes(1)).found.all()


def test_a_database_of_somebody_else_gains_tables_and_loses_nothing(cache):
    with duckdb.connect(cache.path) as database:
        database.execute("CREATE TABLE theirs AS SELECT 42 AS answer")
    assert not cache.get(SPACE, hashes(1)).found.any()
    cache.put(SPACE, hashes(1), vectors(1))
    with duckdb.connect(cache.path) as database:
        assert database.execute("SELECT answer FROM theirs").fetchall() == [(42,)]


def test_a_connection_of_this_process_with_other_settings_is_no_damage(cache):
    cache.put(SPACE, hashes(1), vectors(1))
    database = duckdb.connect(cache.path)
    try:
        with pytest.raises(duckdb.Error):
            cache.get(SPACE, hashes(1))
    finally:
        database.close()
    assert damaged_files(cache) == []
    assert cache.get(SPACE, hashes(1)).found.all()


# --- counts and room


def test_counting_never_fails_a_run_whose_file_is_held(cache):
    put(cache, range(3))
    hasty = DuckDBEmbeddingCache(path=cache.path, lock_timeout=0.05)
    hasty.get(SPACE, hashes(1))
    with FileLock(f"{cache.path}.lock"):
        hasty.save_lookups()
    assert [(s.hits, s.misses) for s in cache.statistics()] == [(0, 0)]


def test_pruning_gives_room_back_and_leaves_nothing_behind(tmp_path):
    cache = DuckDBEmbeddingCache(path=str(tmp_path / "cache.duckdb"))
    space = dataclasses.replace(SPACE, dimension=512)
    for start in range(0, 8000, 2000):
        put(cache, range(start, start + 2000), space)
    with duckdb.connect(cache.path):  # closing moves what is in the log into the file
        pass
    before = Path(cache.path).stat().st_size
    keys = hashes(*range(7000))
    assert [r.entries for r in cache.invalidate(keys)] == [7000]
    assert Path(cache.path).stat().st_size < before / 2
    assert held(cache, range(6900, 8000), space) == list(range(7000, 8000))
    put(cache, [1], space)
    assert held(cache, range(3), space) == [1]
    names = {path.name for path in tmp_path.iterdir()}
    assert names <= {"cache.duckdb", "cache.duckdb.wal", "cache.duckdb.lock"}


_KILLED_WHILE_PRUNING = """
import os, sys
from resources.caches import duckdb_tables
from resources.caches.duckdb import DuckDBEmbeddingCache
from resources.caches.base import Retention
attach = duckdb_tables.attach
def attach_and_die(database, path, name, dimension):
    attach(database, path, name, dimension)
    if name == "smaller":
        database.execute("CREATE TABLE smaller.half (i INTEGER)")
        os.kill(os.getpid(), 9)
duckdb_tables.attach = attach_and_die
DuckDBEmbeddingCache(path=sys.argv[1]).prune(Retention(max_bytes=1))
"""


def test_what_a_killed_prune_leaves_is_removed_by_whoever_comes_next(tmp_path):
    cache = DuckDBEmbeddingCache(path=str(tmp_path / "cache.duckdb"))
    put(cache, range(2000))
    command = [sys.executable, "-c", _KILLED_WHILE_PRUNING, cache.path]
    assert subprocess.run(command, cwd=PROJECT).returncode == -9
    assert list(tmp_path.glob("*.compact*"))
    assert held(cache, range(3)) == []
    assert not list(tmp_path.glob("*.compact*"))
