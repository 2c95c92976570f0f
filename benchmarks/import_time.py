"""What it costs to import and to load the definitions, compared with `import dagster`.

    python -m benchmarks.import_time [--repeats 7]

CPU time of fresh processes that take turns, less that of an empty one; medians are shown, so that a
busy machine disturbs little.
"""

import argparse
import resource
import subprocess
import sys
from functools import partial

from benchmarks.measure import Line, in_turn, median, print_tables, spread, write_results

REFERENCE, OURS = "import dagster", "import embedding_assets.definitions"
PROGRAMS = {
    "nothing": "pass",
    REFERENCE: REFERENCE,
    OURS: OURS,
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
    ways = {name: partial(cpu_seconds, program) for name, program in PROGRAMS.items()}
    taken = in_turn(ways, repeats)
    empty = median(taken["nothing"])
    reference = median(taken[REFERENCE]) - empty
    rows = [
        {
            "program": name,
            "CPU s": median(seconds) - empty,
            f"× {REFERENCE}": (median(seconds) - empty) / reference,
            "spread": spread(seconds),
        }
        for name, seconds in taken.items()
        if name != "nothing"
    ]
    ratio = (median(taken[OURS]) - empty) / reference
    lines = [Line(f"{OURS}, against {REFERENCE}", 1.3, ratio, at_most=True)]
    tables = {"CPU time of a fresh process, less that of an empty one": rows}
    write_results("import_time", "Import time", tables, lines)
    print_tables({**tables, "Promises": [line.row() for line in lines]})


if __name__ == "__main__":
    main()
