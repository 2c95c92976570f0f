"""How much memory this process holds, and how much of it and of the cores its libraries take."""

import ctypes
import os
import resource
import sys
from functools import cache
from pathlib import Path

from resources.machine import machine

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


@cache
def use_what_is_allowed() -> None:
    """Makes libraries take the cores of this process only, and return freed memory early.

    Batches of vectors and texts are large blocks that many threads allocate and free. By default
    glibc keeps an arena for each thread, and after each freed block keeps larger ones for reuse;
    Arrow's allocator keeps pages too. Together they held several hundred MB that nobody used.
    """
    import pyarrow as pa  # not for who only asks for the peak

    cores = machine().cores
    pa.set_cpu_count(cores)
    os.environ.setdefault("RAYON_NUM_THREADS", str(cores))  # of tokenizers
    pa.set_memory_pool(pa.system_memory_pool())
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in every C library
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, 2)
            mallopt(_M_MMAP_THRESHOLD, 128 * 1024)
            mallopt(_M_TRIM_THRESHOLD, 128 * 1024)


def peak_memory_mb() -> float:
    """The most memory this process has had resident since it started, in MB."""
    if sys.platform == "linux":
        # Not getrusage: there a process begins with the peak of the one that started it.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):  # some sandboxes do not tell
                return float(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # bytes there, KiB here
