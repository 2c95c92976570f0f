"""Runs all benchmarks and ends with one table: asked, measured, kept.

    python -m benchmarks [--quick] [--only engine,scale,...] [--summary]

Each runs in a process of its own and writes `benchmarks/results/`; the table is made from what lies
there. One that fails is named, and the others still run.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import RESULTS, markdown_table, print_tables, read_lines

TAKES_QUICK = (
    "engine", "freshness", "scale", "stores", "limiter", "sensor_tick", "backfill", "import_time",
    "idle_partition", "serve",
)  # fmt: skip
OTHERS = ("chunking",)
SUMMARY = RESULTS / "README.md"


def summary(folder: Path = RESULTS) -> list[dict[str, str]]:
    """The promises of all results in the folder, as people read them."""
    return [
        {"benchmark": name, **line.row()}
        for name, lines in read_lines(folder).items()
        for line in lines
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small and few rounds: minutes")
    parser.add_argument("--only", help=f"comma-separated, of: {', '.join(TAKES_QUICK + OTHERS)}")
    parser.add_argument("--summary", action="store_true", help="only the table, measure nothing")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else [*TAKES_QUICK, *OTHERS]
    if unknown := {*names} - {*TAKES_QUICK, *OTHERS}:
        raise SystemExit(f"there is no benchmark {', '.join(sorted(unknown))}")
    failed = []
    for name in [] if options.summary else names:
        print(f"\n== {name} ==", flush=True)
        start = time.monotonic()
        quick = ["--quick"] if options.quick and name in TAKES_QUICK else []
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *quick], check=False)
        if done.returncode:
            failed.append(name)
        print(f"{name}: {time.monotonic() - start:,.0f} s", flush=True)
    rows = summary()
    RESULTS.mkdir(exist_ok=True)
    SUMMARY.write_text(f"# Asked, measured, kept\n\n{markdown_table(rows)}")
    print_tables({"Asked, measured, kept": rows})
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
