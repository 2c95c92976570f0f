"""The cores and the memory that this process may use, and who gets which share of them.

A container or `taskset` may allow less than the machine has; the environment variables
EMBEDDING_CORES and EMBEDDING_MEMORY (such as 8GiB) overrule both.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from pydantic import ByteSize, TypeAdapter, ValidationError

from resources.errors import InvalidInputError

_MB, _GIB = 1_000_000, 2**30
_MAX_STREAMS = 8


@dataclass(frozen=True)
class Machine:
    """What there is, and the shares of it: those of one run, of which a few may be under way.

    Attributes:
        cores: threads that may calculate at a time.
        memory: bytes.
    """

    cores: int
    memory: int

    @property
    def inference_streams(self) -> int:
        """Batches that a model works on at a time, all cores together; each with 2 GiB or more.

        One call seldom has batches for more than eight.
        """
        return max(1, min(self.cores, _MAX_STREAMS, self.memory // (2 * _GIB)))

    @property
    def data_threads(self) -> int:
        """Threads of a sort, a join or a merge: half of the cores, a GiB of memory for each."""
        return max(1, min(self.cores // 2, self.memory // _GIB))

    @property
    def sort_memory(self) -> int:
        """Bytes that DuckDB may hold before it spills: what a sort needs for each thread."""
        return min(256 * _MB * self.data_threads, self.memory // 4)

    @property
    def cache_threads(self) -> int:
        """Threads that read and write the cache's file, while the model waits for it."""
        return max(1, min(self.cores, self.memory // _GIB))

    @property
    def index_cache(self) -> int:
        """Bytes of each of LanceDB's two caches; half of it is read ahead in a scan."""
        return self.memory // 400


def machine(root: Path = Path("/")) -> Machine:
    """Looks what this process may use now.

    Args:
        root: the folder that has `proc` and `sys`.

    Raises:
        InvalidInputError: EMBEDDING_CORES or EMBEDDING_MEMORY is not a number or size above 0.
    """
    return Machine(
        cores=_set_by_user("EMBEDDING_CORES", int, "a number of cores, as 4") or _cores(root),
        memory=_set_by_user("EMBEDDING_MEMORY", ByteSize, "a size, as 8GiB") or _memory(root),
    )


def _set_by_user(variable: str, kind: Any, expected: str) -> int | None:
    text = os.environ.get(variable)
    if not text:
        return None
    try:
        value = int(TypeAdapter(kind).validate_python(text))
    except ValidationError:
        value = 0
    if value <= 0:
        raise InvalidInputError(
            f"The environment variable {variable} is to be {expected}, and is '{text}'."
        )
    return value


@cache
def _cores(root: Path) -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # heeds the cpuset of a cgroup, too
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    for cgroup in _cgroups(root, "cpu"):
        quota, period = cgroup / "cpu.cfs_quota_us", cgroup / "cpu.cfs_period_us"
        for limit in (_numbers(cgroup / "cpu.max"), _numbers(quota) + _numbers(period)):
            if len(limit) == 2 and limit[0] > 0:  # version 1 says -1 where there is no limit
                cores = min(cores, math.ceil(limit[0] / limit[1]))
    return max(1, cores)


@cache
def _memory(root: Path) -> int:
    limits = [psutil.virtual_memory().total]
    for cgroup in _cgroups(root, "memory"):
        limits += _numbers(cgroup / "memory.max") + _numbers(cgroup / "memory.limit_in_bytes")
    return min(limits)


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup, and of those around it, which limit it too."""
    for line in _text(root / "proc" / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        # Version 2 has all controllers in one folder and names none of them.
        if not controllers or controller in controllers.split(","):
            mount = root / "sys" / "fs" / "cgroup" / (controllers and controller)
            parts = [part for part in path.split("/") if part]
            for depth in range(len(parts) + 1):
                yield mount.joinpath(*parts[:depth])


def _numbers(path: Path) -> list[int]:
    """The numbers in a file; none where it is absent or says "max"."""
    try:
        return [int(word) for word in _text(path).split()]
    except ValueError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
