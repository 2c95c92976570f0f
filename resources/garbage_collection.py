"""Python's garbage collector, made to run as rarely as befits a program of large libraries."""

import gc


def collect_garbage_rarely() -> None:
    """Looks for unreachable cycles after 50,000 new objects, not after every 700.

    For programs, not for libraries: it is the whole process that it concerns. To import Dagster and
    make definitions creates a million objects that all stay, and each collection looks at many of
    them again: a fifth of the CPU time of a short command. `python -m benchmarks.import_time` and
    `benchmarks.idle_partition` measure what a command takes. 50,000 small objects are 10 MB.
    """
    gc.set_threshold(50_000, 20, 20)
