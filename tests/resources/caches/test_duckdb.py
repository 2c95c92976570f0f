"""The DuckDB cache: bit-exact, one space never answers for another, and no damage stops anybody."""

import dataclasses
import logging
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from resources.caches.duckdb import DuckDBEmbeddingCache
from resources.caches.duckdb_file import CacheLockedError
from resources.caches.vectors import CONTENT_HASH_TYPE, decode_vectors, encode_vectors
from resources.identity.content_hash import content_hash
from resources.identity.embedding_space import EmbeddingSpace
from tests.support.fakes import fake_vector

PROJECT = Path(__file__).parents[3]
SPACE = EmbeddingSpace("fake", "a", "", 16, 256, True)
SAME_DIMENSION = dataclasses.replace(SPACE, model="b")
OTHER_DIMENSION = dataclasses.replace(SPACE, model="c", dimension=8)


@pytest.fixture
def cache(tmp_path: Path) -> DuckDBEmbeddingCache:
    return DuckDBEmbeddingCache(path=str(tmp_path / "cache.duckdb"))


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What is logged as a warning; Dagster's loggers do not pass records on to pytest's."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Keep(logging.WARNING)
    logger = logging.getLogger("dagster")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def hashes(*numbers: int) -> pa.Array:
    return pa.array([content_hash(f"text {number}") for number in numbers], CONTENT_HASH_TYPE)


def vectors(*numbers: int, dimension: int = 16, tag: str = "") -> np.ndarray:
    made = [fake_vector(f"{tag}{number}", dimension) for number in numbers]
    return np.stack(made) if made else np.zeros((0, dimension), np.float32)


def entries(cache: DuckDBEmbeddingCache, space: EmbeddingSpace = SPACE) -> list[bytes]:
    """Every hash in the file, duplicates included."""
    with duckdb.connect(cache.path) as database:
        rows = database.execute(f'SELECT content_hash FROM "vectors_{space.id}"').fetchall()
    return [bytes(row[0]) for row in rows]


def damaged_files(cache: DuckDBEmbeddingCache) -> list[Path]:
    folder = Path(cache.path).parent
    return sorted(p for p in folder.glob("*.damaged-*") if ".wal" not in p.name)


def assert_answers_correctly(cache: DuckDBEmbeddingCache, numbers: range) -> int:
    """What is found has the right bits; returns how many are."""
    answer = cache.get(SPACE, hashes(*numbers))
    truth = vectors(*numbers)
    assert answer.vectors[answer.found].tobytes() == truth[answer.found].tobytes()
    assert not answer.vectors[~answer.found].any()
    return int(answer.found.sum())


def python(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# --- what is put comes back


def test_vectors_come_back_bit_for_bit_in_the_order_asked(cache):
    stored = vectors(*range(5000))
    stored[7, :2] = np.array([0x80000000, 0x00000001], dtype=np.uint32).view(np.float32)
    stored[7] /= np.linalg.norm(stored[7])
    cache.put(SPACE, hashes(*range(5000)), stored)
    order = np.random.default_rng(0).permutation(6000)
    asked = hashes(*order.tolist())
    answer = cache.get(SPACE, asked)
    held = order < 5000
    assert np.array_equal(answer.found, held)
    assert np.array_equal(cache.contains(SPACE, asked), held)
    assert answer.vectors[held].tobytes() == stored[order[held]].tobytes()
    assert not answer.vectors[~held].any()
    assert answer.rejected == 0


def test_a_slice_of_an_array_is_looked_up_as_what_it_shows(cache):
    cache.put(SPACE, hashes(*range(10)).slice(3, 4), vectors(3, 4, 5, 6))
    assert cache.contains(SPACE, hashes(*range(10))).tolist() == [3 <= i < 7 for i in range(10)]
    answer = cache.get(SPACE, hashes(*range(10)).slice(5, 3))
    assert answer.found.tolist() == [True, True, False]


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


def test_another_resource_on_the_same_file_sees_what_was_put(cache):
    cache.put(SPACE, hashes(1), vectors(1))
    assert DuckDBEmbeddingCache(path=cache.path).get(SPACE, hashes(1)).found.all()


def test_statistics_count_the_entries_of_each_space(cache):
    cache.put(SPACE, hashes(1, 2, 3), vectors(1, 2, 3))
    cache.put(OTHER_DIMENSION, hashes(1), vectors(1, dimension=8))
    found = {s.space_id: (s.model, s.dimension, s.entries) for s in cache.statistics()}
    assert found == {SPACE.id: ("a", 16, 3), OTHER_DIMENSION.id: ("c", 8, 1)}


# --- spaces


@pytest.mark.parametrize("other", [SAME_DIMENSION, OTHER_DIMENSION])
def test_a_space_never_answers_for_another(cache, other):
    cache.put(SPACE, hashes(*range(100)), vectors(*range(100)))
    assert not cache.contains(other, hashes(*range(100))).any()
    assert not cache.get(other, hashes(*range(100))).found.any()
    theirs = vectors(*range(50), dimension=other.dimension, tag="other")
    cache.put(other, hashes(*range(50)), theirs)
    answer = cache.get(other, hashes(*range(100)))
    assert answer.found.tolist() == [True] * 50 + [False] * 50
    assert answer.vectors[:50].tobytes() == theirs.tobytes()
    assert assert_answers_correctly(cache, range(100)) == 100


def test_vectors_of_a_wrong_shape_are_refused(cache):
    with pytest.raises(ValueError, match="dimension 16"):
        cache.put(SPACE, hashes(1), vectors(1, dimension=8))
    with pytest.raises(ValueError, match="2 hashes"):
        cache.put(SPACE, hashes(1, 2), vectors(1))
    assert cache.statistics() == []


# --- hostile bytes under a key


HOSTILE: dict[str, bytes | None] = {
    "empty": b"",
    "null": None,
    "one byte short": fake_vector("x", 16).tobytes()[:-1],
    "one byte long": fake_vector("x", 16).tobytes() + b"\0",
    "another dimension": fake_vector("x", 8).tobytes(),
    "norm 2": (2 * fake_vector("x", 16)).tobytes(),
    "norm 0": bytes(64),
    "one NaN": fake_vector("x", 16).tobytes()[:-4] + struct.pack("<f", np.nan),
    "one infinity": fake_vector("x", 16).tobytes()[:-4] + struct.pack("<f", -np.inf),
    "largest floats": np.full(16, np.finfo(np.float32).max, np.float32).tobytes(),
    "text": b"[0.25, 0.25, 0.25, 0.25]" * 2,
}


def tamper(cache: DuckDBEmbeddingCache, number: int, value: bytes | None) -> None:
    with duckdb.connect(cache.path) as database:
        database.execute(
            f'UPDATE "vectors_{SPACE.id}" SET vector = ? WHERE content_hash = ?',
            [value, hashes(number)[0].as_py()],
        )


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_a_counted_miss_and_the_next_put_replaces_them(cache, name):
    cache.put(SPACE, hashes(*range(20)), vectors(*range(20)))
    tamper(cache, 7, HOSTILE[name])
    answer = cache.get(SPACE, hashes(*range(20)))
    assert answer.found.tolist() == [i != 7 for i in range(20)]
    assert answer.rejected == 1
    assert assert_answers_correctly(cache, range(20)) == 19
    cache.put(SPACE, hashes(6, 7, 30), vectors(6, 7, 30))
    assert cache.get(SPACE, hashes(7)).rejected == 0
    assert assert_answers_correctly(cache, range(20)) == 20
    assert sorted(entries(cache)) == sorted(hashes(*range(20), 30).to_pylist())


def test_two_hashes_that_begin_alike_never_get_each_others_vector(cache):
    first, second = (bytes(8) + bytes([n]) * 12 for n in (1, 2))
    both = pa.array([first, second], CONTENT_HASH_TYPE)
    cache.put(SPACE, both.slice(0, 1), vectors(0))
    assert cache.get(SPACE, both.slice(1)).found.tolist() == [False]
    cache.put(SPACE, both.slice(1), vectors(1))
    for asked, numbers in ((both, (0, 1)), (both.take(pa.array([1, 0])), (1, 0))):
        answer = cache.get(SPACE, asked)
        assert answer.found.all()
        np.testing.assert_array_equal(answer.vectors, vectors(*numbers))
    cache.put(SPACE, both, vectors(5, 6))
    assert sorted(entries(cache)) == [first, second]


def test_a_file_from_before_it_held_prefixes_is_completed(cache):
    cache.put(SPACE, hashes(*range(20)), vectors(*range(20)))
    with duckdb.connect(cache.path) as database:
        database.execute(f'ALTER TABLE "vectors_{SPACE.id}" DROP COLUMN prefix')
    assert cache.contains(SPACE, hashes(*range(25))).tolist() == [i < 20 for i in range(25)]
    cache.put(SPACE, hashes(*range(15, 25)), vectors(*range(15, 25)))
    assert assert_answers_correctly(cache, range(25)) == 25
    assert len(entries(cache)) == 25


def test_all_hostile_bytes_at_once_are_each_counted(cache):
    count = len(HOSTILE)
    cache.put(SPACE, hashes(*range(count + 5)), vectors(*range(count + 5)))
    for number, value in enumerate(HOSTILE.values()):
        tamper(cache, number, value)
    answer = cache.get(SPACE, hashes(*range(count + 5)))
    assert (answer.rejected, int(answer.found.sum())) == (count, 5)
    assert assert_answers_correctly(cache, range(count + 5)) == 5


def test_a_space_without_normalisation_takes_any_norm_but_no_nan_and_no_zero(cache):
    space = dataclasses.replace(SPACE, normalized=False)
    stored = vectors(*range(4)) * 5
    stored[1, 3] = np.nan
    stored[2] = 0
    cache.put(space, hashes(*range(4)), stored)
    answer = cache.get(space, hashes(*range(4)))
    assert answer.found.tolist() == [True, False, False, True]
    assert answer.rejected == 2


def test_decoding_never_trusts_the_bytes_of_a_null():
    encoded = encode_vectors(vectors(1, 2)).cast(pa.large_binary())
    validity = pa.py_buffer(b"\x01")
    hidden = pa.Array.from_buffers(pa.large_binary(), 2, [validity, *encoded.buffers()[1:]])
    decoded, right_size = decode_vectors(hidden, 16)
    assert right_size.tolist() == [True, False]
    assert decoded[0].tobytes() == vectors(1)[0].tobytes()
    assert not decoded[1].any()


# --- put


def test_put_keeps_what_is_there_and_duplicates_nothing(cache):
    cache.put(SPACE, hashes(1, 2), vectors(1, 2))
    cache.put(SPACE, hashes(1, 2, 3), vectors(1, 2, 3, tag="later"))
    answer = cache.get(SPACE, hashes(1, 2, 3))
    assert answer.vectors[:2].tobytes() == vectors(1, 2).tobytes()
    assert answer.vectors[2].tobytes() == vectors(3, tag="later").tobytes()
    assert len(entries(cache)) == 3


def test_threads_with_resources_of_their_own_lose_and_duplicate_nothing(cache):
    start = threading.Barrier(4)
    errors: list[BaseException] = []

    def work(thread: int) -> None:
        mine = DuckDBEmbeddingCache(path=cache.path)
        try:
            start.wait()
            for first in range(0, 200, 20):
                numbers = range(first + 5 * thread, first + 5 * thread + 40)
                mine.put(SPACE, hashes(*numbers), vectors(*numbers))
                assert mine.get(SPACE, hashes(*numbers)).found.all()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(entries(cache)) == sorted(hashes(*range(235)).to_pylist())
    assert assert_answers_correctly(cache, range(235)) == 235


PROCESSES = """
import multiprocessing, sys
from tests.resources.caches.test_duckdb import SPACE, DuckDBEmbeddingCache, hashes, vectors

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


@pytest.mark.parametrize("before", ["no file", "a damaged file"])
def test_eight_processes_at_once_lose_and_duplicate_nothing(cache, before):
    if before == "a damaged file":
        Path(cache.path).write_bytes(b"no database" * 1000)
    process = python(PROCESSES, cache.path)
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert sorted(entries(cache)) == sorted(hashes(*range(165)).to_pylist())
    assert assert_answers_correctly(cache, range(165)) == 165
    assert len(damaged_files(cache)) == (before == "a damaged file")


PUT_FOREVER = """
import itertools, sys
from tests.resources.caches.test_duckdb import SPACE, DuckDBEmbeddingCache, hashes, vectors

cache = DuckDBEmbeddingCache(path=sys.argv[1])
for first in itertools.count(0, 50):
    cache.put(SPACE, hashes(*range(first, first + 50)), vectors(*range(first, first + 50)))
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
        assert assert_answers_correctly(cache, range(acknowledged)) == acknowledged
    assert len(set(entries(cache))) == len(entries(cache)) >= acknowledged
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
    cache, warnings, healthy_bytes, damage, operation
):
    damaged = DAMAGES[damage](healthy_bytes)
    Path(cache.path).write_bytes(damaged)
    if operation == "put":
        cache.put(SPACE, hashes(-1), vectors(-1))
    elif operation == "statistics":
        cache.statistics()
    else:
        getattr(cache, operation)(SPACE, hashes(*range(9000)))
    assert_answers_correctly(cache, range(9000))  # may be what shows the damage
    cache.put(SPACE, hashes(*range(9000)), vectors(*range(9000)))
    assert assert_answers_correctly(cache, range(9000)) == 9000
    if operation == "put" or damage == "last byte missing":
        assert len(damaged_files(cache)) <= 1  # what is damaged need not have been read
        return
    (aside,) = damaged_files(cache)
    assert any(aside.name in w and "will be embedded again" in w for w in warnings)
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
            found = cache.contains(SPACE, hashes(*range(9000)))
            assert found.all() or not found.any()
        elif operation == "get":
            assert assert_answers_correctly(cache, range(9000)) in (0, 9000)
        else:
            cache.put(SPACE, hashes(*range(9000, 9010)), vectors(*range(9000, 9010)))
        assert_answers_correctly(cache, range(9010))
        cache.put(SPACE, hashes(*range(9010)), vectors(*range(9010)))
        assert assert_answers_correctly(cache, range(9010)) == 9010
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
    cache.put(SPACE, hashes(*range(100)), vectors(*range(100)))
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
    assert assert_answers_correctly(cache, range(100)) in (0, 100)
    if damage.startswith("flipped"):
        (aside,) = damaged_files(cache)
        assert aside.with_name(f"{aside.name}.wal").exists()
    cache.put(SPACE, hashes(*range(200)), vectors(*range(200)))
    assert assert_answers_correctly(cache, range(200)) == 200


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
from tests.resources.caches.test_duckdb import DuckDBEmbeddingCache

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
from tests.resources.caches.test_duckdb import SPACE, DuckDBEmbeddingCache, hashes, vectors

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
