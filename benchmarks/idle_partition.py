"""What a run over a partition with nothing to do costs, against four empty assets with checks.

    python -m benchmarks.idle_partition [--quick] [--repeats 5]

Both by `dagster asset materialize` under the project's own dagster.yaml, in fresh processes that
take turns; CPU time (user and system). A year of the sample is built first, in a folder that is
removed afterwards; what is measured is the same year again. Its four assets run, with their checks,
the retrieval quality over 30 judged questions among them.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import dagster as dg

from benchmarks.import_time import COLLECTION, PARTITION, build_sample, cpu_seconds
from benchmarks.measure import Line, in_turn, median, print_tables, spread, write_results
from embedding_assets.collection.collection import CollectionAssets

EMPTY, OURS = "four empty assets with checks", "a partition with nothing to do"
_EMPTY = "empty"


def empty_asset(name: str, after: str | None) -> dg.AssetsDefinition:
    """An asset that does nothing, partitioned as the sample is."""
    key = dg.AssetKey([_EMPTY, name])

    @dg.asset(
        key=key,
        deps=[dg.AssetKey([_EMPTY, after])] if after else [],
        partitions_def=dg.TimeWindowPartitionsDefinition(
            start="2000", fmt="%Y", cron_schedule="0 0 1 1 *", end_offset=1
        ),
        check_specs=[dg.AssetCheckSpec("check", asset=key)],
    )
    def empty() -> dg.MaterializeResult:
        return dg.MaterializeResult(check_results=[dg.AssetCheckResult(passed=True)])

    return empty


defs = dg.Definitions(
    assets=[
        empty_asset(name, after)
        for name, after in zip(
            CollectionAssets.ASSETS, (None, *CollectionAssets.ASSETS), strict=False
        )
    ],
    executor=dg.in_process_executor,
)


def run(prefix: str, module: str, *, statuses: tuple[int, ...] = (0,)) -> float:
    """CPU seconds of one run over the partition."""
    selection = " or ".join(f'key:"{prefix}/{name}"' for name in CollectionAssets.ASSETS)
    program = str(Path(sys.executable).parent / "dagster")
    command = (program, "asset", "materialize", "--select", selection, "--partition", PARTITION)
    return cpu_seconds(*command, "-m", module, statuses=statuses)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round")
    options = parser.parse_args()
    ways = {
        EMPTY: partial(run, _EMPTY, "benchmarks.idle_partition"),
        # 1: the check of the retrieval quality misses all the other years.
        OURS: partial(run, COLLECTION, "embedding_assets.definitions", statuses=(0, 1)),
    }
    with tempfile.TemporaryDirectory(prefix="idle-partition-") as folder:
        build_sample(Path(folder))
        for way in ways.values():
            way()  # writes byte code, warms the file cache
        taken = in_turn(ways, 1 if options.quick else options.repeats)
    rows = [
        {"run": name, "CPU s": median(seconds), "spread": spread(seconds)}
        for name, seconds in taken.items()
    ]
    above = median([ours - empty for ours, empty in zip(taken[OURS], taken[EMPTY], strict=True)])
    lines = [Line(f"CPU of {OURS}, above {EMPTY}", 1.5, above, "s", at_most=True)]
    tables = {"CPU time of a run over one partition": rows}
    write_results("idle_partition", "A partition with nothing to do", tables, lines)
    print_tables({**tables, "Promises": [line.row() for line in lines]})


if __name__ == "__main__":
    main()
