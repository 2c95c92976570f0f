"""Peak memory of a whole run, for a small and for a ten times larger corpus.

    python -m benchmarks.memory [--documents 20000 200000] [--partitions 16]

Documents of about 1 kB are generated, and all four assets run over them twice in a process of their
own: once from nothing, once with everything cached. The embedder is a fake one, so what is measured
is everything but the model. Peaks of single assets are shown on Linux only. The promise: the
peak of the largest corpus is at most 1.25 times that of the smallest.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROMISE = 1.25
DIMENSION = 384
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
    """Random words in paragraphs; every document is different."""
    chance = random.Random(1)
    words = _WORDS.split()
    with path.open("w") as file:
        for number in range(documents):
            paragraphs = [" ".join(chance.choices(words, k=48)) + "." for _ in range(4)]
            record = {"id": f"document-{number}", "title": f"Document {number}"}
            file.write(json.dumps({**record, "text": "\n\n".join(paragraphs)}) + "\n")


def run_assets(folder: Path, partitions: int) -> Iterator[dict[str, Any]]:
    """Runs each asset over all partitions, twice, and yields what each cost."""
    from tests.fakes import CountingEmbedder
    from tests.pipeline import ASSETS, Pipeline, checks, numbers

    class ForgetfulEmbedder(CountingEmbedder):
        def embed(self, *arguments: Any, **options: Any) -> Any:
            result = super().embed(*arguments, **options)
            self.texts.clear()
            return result

    pipeline = Pipeline(
        folder,
        str(folder / "corpus.jsonl"),
        embedder=ForgetfulEmbedder(dimension=DIMENSION),
        settings={"partitions": {"by": "bucket", "count": partitions}},
    )
    for run in ("first", "cached"):
        for asset in ASSETS:
            reset_peak()
            started, written = time.perf_counter(), bytes_written()
            result = pipeline.run(assets=[asset])
            assert all(passed for name, passed in checks(result).items() if name != "throughput")
            yield {
                "run": run,
                "asset": asset,
                "seconds": time.perf_counter() - started,
                "peak_mb": peak_mb(),
                "process_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                / (1e6 if sys.platform == "darwin" else 1e3),
                "written_mb": (bytes_written() - written) / 1e6,
                "chunks": numbers(result, asset).get("chunks", 0),
            }


def reset_peak() -> None:
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """The most memory resident since `reset_peak`; 0 where the system does not say."""
    return _proc("/proc/self/status", "VmHWM:") * 1024 / 1e6


def bytes_written() -> float:
    return _proc("/proc/self/io", "write_bytes:")


def _proc(file: str, name: str) -> float:
    if sys.platform != "linux":
        return 0.0
    lines = Path(file).read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name))


def measure(documents: int, partitions: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="memory-benchmark-") as folder:
        write_corpus(Path(folder) / "corpus.jsonl", documents)
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.memory",
                f"--folder={folder}",
                f"--partitions={partitions}",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if "VERBOSE" not in os.environ else None,
            text=True,
        )
        assert process.stdout is not None
        costs = []
        for line in process.stdout:
            cost = json.loads(line)
            costs.append(cost)
            print(
                f"{documents:>9,} {cost['run']:<7} {cost['asset']:<20} {cost['seconds']:8.1f} s "
                f"{cost['peak_mb']:8.0f} MB {cost['written_mb']:9.0f} MB written",
                flush=True,
            )
        if process.wait():
            raise SystemExit(f"the run over {documents} documents failed; VERBOSE=1 shows why")
        return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--partitions", type=int, default=16)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        for cost in run_assets(options.folder, options.partitions):
            print(json.dumps(cost), flush=True)
        return
    peaks = {}
    for documents in options.documents:
        costs = measure(documents, options.partitions)
        first = [cost for cost in costs if cost["run"] == "first"]
        chunks = max(cost["chunks"] for cost in costs)
        seconds = sum(cost["seconds"] for cost in first)
        peaks[documents] = max(cost["process_peak_mb"] for cost in costs)
        print(
            f"{documents:>9,} documents, {chunks:,} chunks: peak {peaks[documents]:,.0f} MB; first "
            f"run {seconds:,.0f} s, {1e3 * seconds / chunks:.2f} ms a chunk, "
            f"{sum(cost['written_mb'] for cost in first):,.0f} MB written"
        )
    ratio = peaks[max(peaks)] / peaks[min(peaks)]
    kept = "kept" if ratio <= PROMISE else "BROKEN"
    print(f"peak memory ratio {ratio:.2f}, promised at most {PROMISE}: {kept}")


if __name__ == "__main__":
    main()
