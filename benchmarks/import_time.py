"""What it costs to import and to load the definitions, compared with `import dagster`.

    python -m benchmarks.import_time [--repeats 7]

CPU time of fresh processes that take turns, less that of an empty one; medians are shown, so that a
busy machine disturbs little. The target for the plain import is 1.3.
"""

import argparse
import resource
import statistics
import subprocess
import sys

EMPTY = "pass"
PROGRAMS = {
    "import dagster": "import dagster",
    "import embedding_assets.definitions": "import embedding_assets.definitions",
    "load the definitions": "import embedding_assets.definitions as d; d.defs()",
    "import dagster, pyarrow.parquet, duckdb": "import dagster, pyarrow.parquet, duckdb",
}


def cpu_seconds(program: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    for program in PROGRAMS.values():
        cpu_seconds(program)  # writes byte code, warms the file cache
    costs: dict[str, list[float]] = {name: [] for name in ("empty", *PROGRAMS)}
    for _ in range(repeats):
        costs["empty"].append(cpu_seconds(EMPTY))
        for name, program in PROGRAMS.items():
            costs[name].append(cpu_seconds(program))
    empty = statistics.median(costs["empty"])
    reference = statistics.median(costs["import dagster"]) - empty
    for name in PROGRAMS:
        seconds = statistics.median(costs[name]) - empty
        print(f"{name:<42} {seconds:6.2f} s   {seconds / reference:5.2f} x import dagster")


if __name__ == "__main__":
    main()
