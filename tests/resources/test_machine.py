"""What a process may use is read as the kernel tells it, and shared out."""

import os
from pathlib import Path

import psutil
import pytest

from embedding_assets.artifacts.scratch import scratch
from resources.errors import InvalidInputError
from resources.machine import Machine, machine

GIB = 2**30
VERSION_2 = "0::/kubepods/pod7\n"
VERSION_1 = "9:name=systemd:/x\n4:memory:/pods/pod7\n3:cpuset:/\n2:cpu,cpuacct:/pods/pod7\n"


@pytest.fixture(autouse=True)
def a_machine_of_four_cores_and_16_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("EMBEDDING_CORES", "EMBEDDING_MEMORY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    total = psutil.virtual_memory()._replace(total=16 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: total)


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("", {}, (4, 16)),
        (VERSION_2, {"cpu.max": "max 100000", "memory.max": "max"}, (4, 16)),
        (VERSION_2, {"kubepods/pod7/cpu.max": "150000 100000"}, (2, 16)),
        (VERSION_2, {"kubepods/pod7/cpu.max": "5000 100000"}, (1, 16)),
        (VERSION_2, {"kubepods/pod7/cpu.max": "6400000 100000"}, (4, 16)),
        (VERSION_2, {"kubepods/pod7/memory.max": f"{3 * GIB}"}, (4, 3)),
        (VERSION_2, {"kubepods/pod7/memory.max": f"{64 * GIB}"}, (4, 16)),
        # The cgroup around it allows less; a container sees the files of its own at the top.
        (
            VERSION_2,
            {
                "kubepods/pod7/memory.max": f"{3 * GIB}",
                "kubepods/memory.max": f"{2 * GIB}",
                "cpu.max": "300000 100000",
            },
            (3, 2),
        ),
        ("0::/../other\n", {"cpu.max": "100000 100000"}, (1, 16)),
        (
            VERSION_1,
            {
                "cpu/pods/pod7/cpu.cfs_quota_us": "250000",
                "cpu/pods/pod7/cpu.cfs_period_us": "100000",
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/pods/pod7/memory.limit_in_bytes": f"{5 * GIB}",
                "memory/memory.limit_in_bytes": "9223372036854771712",
            },
            (3, 5),
        ),
    ],
)
def test_the_limits_of_cgroups_count(
    tmp_path: Path, cgroup: str, files: dict[str, str], expected: tuple[int, int]
) -> None:
    for name, text in {
        "proc/self/cgroup": cgroup,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    cores, gib = expected
    assert machine(tmp_path) == Machine(cores, gib * GIB)


def test_what_the_user_says_overrules_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDING_CORES", "64")
    monkeypatch.setenv("EMBEDDING_MEMORY", "256GiB")
    assert machine(tmp_path) == Machine(64, 256 * GIB)
    with scratch() as database:
        assert database.row("SELECT current_setting('threads')") == (32,)
        assert database.row("SELECT current_setting('memory_limit')") == ("7.6 GiB",)


@pytest.mark.parametrize("variable", ["EMBEDDING_CORES", "EMBEDDING_MEMORY"])
@pytest.mark.parametrize("value", ["many", "0", "-2", "1e400"])
def test_a_wrong_value_is_refused_and_its_variable_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidInputError, match=f"{variable} .*'{value}'"):
        machine(tmp_path)


@pytest.mark.parametrize("cores", [1, 2, 4, 64])
@pytest.mark.parametrize("gib", [0.25, 1, 24, 512])
def test_no_share_is_more_than_there_is(cores: int, gib: float) -> None:
    here = Machine(cores, int(gib * GIB))
    for threads in (here.inference_streams, here.data_threads, here.cache_threads):
        assert 1 <= threads <= cores
    assert 0 < here.sort_memory + 2 * here.index_cache < here.memory / 3


def test_shares_grow_with_the_machine() -> None:
    small, large = Machine(2, 24 * GIB), Machine(64, 256 * GIB)
    assert (small.data_threads, small.sort_memory) == (1, 256_000_000)
    assert (large.data_threads, large.sort_memory) == (32, 32 * 256_000_000)
    assert large.index_cache > 10 * small.index_cache
