"""The whole asset graph over 10,000 to 1,000,000 chunks: time, peak memory, bytes.

    python -m benchmarks.scale [--chunks 10000 20000 200000 1000000] [--profile ASSET]

Documents of about 1 kB, one chunk each, are generated, and all four assets run over them three
times in a process of their own: from nothing ("first"), with nothing changed ("unchanged"), and
with a file that looks changed but holds what it held, so that it is read again ("touched"). The
embedder is a fake one that takes no time, so what is measured is everything but the model. Peaks of
single assets, and bytes, are shown on Linux only. `--profile` prints where an asset spends its
time.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import (
    Line,
    peak_mb,
    print_tables,
    reset_peak,
    seconds,
    write_results,
    written_mb,
)

CHUNKS = (10_000, 20_000, 200_000, 1_000_000)
QUICK_CHUNKS = (2_000, 20_000)
MEMORY_AT = (20_000, 200_000)
"""Between these sizes the peak must not grow."""
DIMENSION = 384
RUNS = ("first", "unchanged", "touched")
_PARAGRAPHS, _WORDS_PER_PARAGRAPH = 4, 44
_POOL = 4_096
_WORDS = """
about above after again along among animal answer around autumn before began below between bird
black blue book bread bridge brother build called carry century change children city clear cloud
cold country cross dark deep different distance early earth east evening every family field fire
first flower follow forest found friend garden glass gold great green group hand harbour heart high
history horse hour house iron island journey king lake language large letter light line little long
many market middle moon morning mountain music name near never night north number ocean often old
open paper people picture place plant point power river road school sea second silver small snow
song south star stone story street summer sun table thing thought three time together town tree
under valley village voice wall water west white wind window winter wood word work world year young
"""


def write_corpus(path: Path, documents: int) -> None:
    """Random words in paragraphs; every document is different, and one chunk."""
    chance = random.Random(1)
    words = _WORDS.split()
    with path.open("w") as file:
        for number in range(documents):
            paragraphs = [
                " ".join(chance.choices(words, k=_WORDS_PER_PARAGRAPH)) + "."
                for _ in range(_PARAGRAPHS)
            ]
            record = {"id": f"document-{number}", "title": f"Document {number}"}
            file.write(json.dumps({**record, "text": "\n\n".join(paragraphs)}) + "\n")


def fake_embedder() -> Any:
    """An embedder that picks one of some thousand random vectors by a checksum of the text."""
    import numpy as np

    from resources.embedders.base import EmbeddingBatch
    from tests.support.fakes import CountingEmbedder

    pool = np.random.default_rng(0).standard_normal((_POOL, DIMENSION), dtype=np.float32)
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)

    class PoolEmbedder(CountingEmbedder):
        """Gives each text one vector of the pool, chosen by its checksum."""

        def embed(self, texts: Sequence[str], role: Any = "document") -> EmbeddingBatch:
            del role
            rows = [zlib.crc32(text.encode()) % _POOL for text in texts]
            counts = np.full(len(texts), 200, dtype=np.int32)
            return EmbeddingBatch(pool[rows], counts, np.zeros_like(counts))

    return PoolEmbedder(dimension=DIMENSION)


def run_assets(folder: Path, partitions: int, profile: str | None) -> Iterator[dict[str, Any]]:
    """Runs each asset over all partitions, three times, and yields what each cost."""
    from tests.support.pipeline import ASSETS, Pipeline, checks, numbers

    pipeline = Pipeline(
        folder,
        str(folder / "corpus.jsonl"),
        embedder=fake_embedder(),
        settings={
            "source": {"read_unchanged_files": False},
            "partitions": {"by": "bucket", "count": partitions},
        },
    )
    # What Dagster and the libraries load at their first use is not a cost of the first asset.
    warm_up = folder / "warm_up"
    warm_up.mkdir()
    write_corpus(warm_up / "corpus.jsonl", 10)
    Pipeline(warm_up, str(warm_up / "corpus.jsonl"), embedder=pipeline.embedder).run()
    for run in RUNS:
        if run == "touched":
            (folder / "corpus.jsonl").touch()
        for asset in ASSETS:
            reset_peak()
            before = written_mb()
            result: list[Any] = []
            with _profile(profile in (asset, "all")):
                taken = seconds(lambda a=asset, r=result: r.append(pipeline.run(assets=[a])))
            failed = [name for name, passed in checks(result[0]).items() if not passed]
            assert not {*failed} - {"throughput"}, failed
            yield {
                "run": run,
                "asset": asset,
                "seconds": taken,
                "peak_mb": peak_mb(),
                "written_mb": written_mb() - before,
                "chunks": numbers(result[0], asset).get("chunks", 0),
            }


class _profile:
    """Prints the functions that took longest, to stderr."""

    def __init__(self, wanted: bool) -> None:
        import cProfile

        self._profile = cProfile.Profile() if wanted else None

    def __enter__(self) -> None:
        if self._profile:
            self._profile.enable()

    def __exit__(self, *_: object) -> None:
        if self._profile:
            import pstats

            self._profile.disable()
            pstats.Stats(self._profile, stream=sys.stderr).sort_stats("tottime").print_stats(25)


def measure(chunks: int, partitions: int, profile: str | None = None) -> list[dict[str, Any]]:
    """What each asset of each run cost, over so many chunks, in a process of its own.

    Raises:
        SystemExit: the run failed.
    """
    with tempfile.TemporaryDirectory(prefix="scale-benchmark-") as folder:
        write_corpus(Path(folder) / "corpus.jsonl", chunks)
        time.sleep(3)  # a younger file would be read again by the next run
        orders = [f"--folder={folder}", f"--partitions={partitions}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scale", *orders, f"--profile={profile or ''}"],
            stdout=subprocess.PIPE,
            stderr=None if profile or "VERBOSE" in os.environ else subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        costs = []
        for line in process.stdout:
            cost = json.loads(line)
            costs.append(cost)
            print(
                f"{chunks:>9,} {cost['run']:<9} {cost['asset']:<20} {cost['seconds']:8.1f} s "
                f"{1e6 * cost['seconds'] / chunks:8.0f} µs a chunk "
                f"{cost['peak_mb']:8.0f} MB {cost['written_mb']:9.0f} MB written",
                flush=True,
            )
        if process.wait():
            raise SystemExit(f"the run over {chunks:,} chunks failed; VERBOSE=1 shows why")
        return costs


def tables(costs: dict[int, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The costs of each size by asset, and in all."""
    parts = [
        {
            "chunks": chunks,
            "run": cost["run"],
            "asset": cost["asset"],
            "seconds": cost["seconds"],
            "µs a chunk": 1e6 * cost["seconds"] / chunks,
            "peak MB": cost["peak_mb"],
            "MB written": cost["written_mb"],
        }
        for chunks, rows in costs.items()
        for cost in rows
    ]
    whole = [
        _sum(chunks, run, rows)
        for chunks, rows in costs.items()
        for run in dict.fromkeys(row["run"] for row in rows)
    ]
    return {"Whole graph": whole, "By asset": parts}


def _sum(chunks: int, run: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    mine = [row for row in rows if row["run"] == run]
    taken = sum(row["seconds"] for row in mine)
    return {
        "chunks": chunks,
        "run": run,
        "seconds": taken,
        "µs a chunk": 1e6 * taken / chunks,
        "documents/s": chunks / taken,
        "peak MB": max(row["peak_mb"] for row in mine),
        "bytes written a chunk": 1e6 * sum(row["written_mb"] for row in mine) / chunks,
    }


def judge(whole: Sequence[dict[str, Any]]) -> list[Line]:
    """The promises, from the rows of "Whole graph"."""
    first = {row["chunks"]: row for row in whole if row["run"] == "first"}
    unchanged = {row["chunks"]: row for row in whole if row["run"] == "unchanged"}
    least, most = min(first), max(first)
    ratio = first[most]["µs a chunk"] / first[least]["µs a chunk"]
    peak = max(row["peak MB"] for row in whole if row["chunks"] == most)
    peaks = {size: row["peak MB"] for size, row in first.items()}
    small, large = (peaks.get(size) for size in MEMORY_AT)
    lines = [
        Line(f"time per chunk at {most:,} chunks against {least:,}", 1.2, ratio, at_most=True),
        Line(f"peak memory at {most:,} chunks", 1_500, peak, "MB", at_most=True),
        Line(
            f"unchanged re-run of {most:,} documents of 1 kB, all four assets",
            20_000,
            unchanged[most]["documents/s"],
            "documents/s",
        ),
    ]
    if small and large:
        promise = "peak memory at {1:,} chunks against {0:,}".format(*MEMORY_AT)
        lines.append(Line(promise, 1.25, large / small, at_most=True))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chunks", type=int, nargs="+")
    parser.add_argument("--partitions", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="fewer chunks")
    parser.add_argument(
        "--profile", metavar="ASSET", help="show where it spends its time, or all do"
    )
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        for cost in run_assets(options.folder, options.partitions, options.profile):
            print(json.dumps(cost), flush=True)
        return
    sizes = options.chunks or (QUICK_CHUNKS if options.quick else CHUNKS)
    costs = {size: measure(size, options.partitions, options.profile) for size in sizes}
    found = tables(costs)
    lines = judge(found["Whole graph"])
    if not options.profile:
        write_results("scale", "The whole asset graph by number of chunks", found, lines)
    print_tables({**found, "Promises": [line.row() for line in lines]})


if __name__ == "__main__":
    main()
