"""How soon a changed document is found: from the start of a process to the search result.

    python -m benchmarks.freshness [--documents 10000] [--repeats 5]

A partition of real texts is built once (its vectors are made by the real model). Then one document
changes, and a fresh process materialises the partition's four assets through Dagster, on an
instance that is kept on disk, and searches for the new text. The clock runs in the parent: imports
are part of it. The same is measured with nothing changed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import Line, in_turn, median, print_tables, seconds, spread, write_results

NEEDLE = "The lighthouse keeper counts {number} violet umbrellas every Thursday."
_TOKENS_PER_DOCUMENT = 17


def refresh(folder: Path, model_cache: str, expected: str) -> None:
    """Materialises the partition and searches; runs in the fresh process.

    Raises:
        AssertionError: the run failed, or the search did not find the expected text first.
    """

    from resources.embedders.local import LocalEmbedder
    from tests.support.instance import shipped_instance
    from tests.support.pipeline import Pipeline

    pipeline = Pipeline(
        folder,
        str(folder / "corpus.jsonl"),
        embedder=LocalEmbedder(model_cache=model_cache),
        settings={
            "source": {"read_unchanged_files": False},
            "partitions": {"by": "bucket", "count": 1},
        },
    )
    with shipped_instance(folder / "dagster") as instance:
        assert pipeline.run(instance=instance).success
    if expected:
        (hit,) = pipeline.opened.search(expected, 1)
        assert hit.text == expected, hit


def write_corpus(path: Path, texts: list[str]) -> None:
    with path.open("w") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"id": str(number), "text": text}) + "\n")


def measure(documents: int, repeats: int, model_cache: str) -> dict[str, list[float]]:
    """Seconds of each round, with one document changed and with none."""
    from benchmarks.texts import texts_of_kind
    from tests.support.fakes import word_piece_tokenizer

    texts = texts_of_kind("short", _TOKENS_PER_DOCUMENT * documents, word_piece_tokenizer())
    with tempfile.TemporaryDirectory(prefix="freshness-benchmark-") as name:
        folder = Path(name)
        corpus = folder / "corpus.jsonl"
        round_number = 0

        def fresh_process(expected: str) -> None:
            orders = [f"--folder={folder}", f"--model-cache={model_cache}"]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.freshness", *orders, f"--expected={expected}"],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise SystemExit(f"the run over {folder} failed: {done.stderr[-2000:]}")

        def changed() -> float:
            nonlocal round_number
            round_number += 1
            texts[len(texts) // 2] = needle = NEEDLE.format(number=round_number)
            write_corpus(corpus, texts)
            return seconds(partial(fresh_process, needle))

        write_corpus(corpus, texts)
        fresh_process("")
        print(f"built {len(texts):,} documents", flush=True)
        ways: dict[str, Callable[[], float]] = {
            "one document changed, then found": changed,
            "nothing changed": lambda: seconds(partial(fresh_process, "")),
        }
        return in_turn(ways, repeats)


def main() -> None:
    from embedding_assets.collection.environment import read_environment

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few documents, two rounds")
    parser.add_argument("--model-cache", default=str(read_environment().models))
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--expected", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        refresh(options.folder, options.model_cache, options.expected)
        return
    if options.quick:
        options.documents, options.repeats = 1_000, 2
    times = measure(options.documents, options.repeats, options.model_cache)
    rows: list[dict[str, Any]] = [
        {"what": what, "median s": median(taken), "spread": spread(taken)}
        for what, taken in times.items()
    ]
    changed = next(iter(times.values()))
    title = f"one document of {options.documents:,} changed: from command to search result"
    lines = [Line(title, 5, median(changed), "s", at_most=True)]
    tables = {f"A partition of {options.documents:,} documents, a fresh process": rows}
    write_results("freshness", "From a change to a search result", tables, lines)
    print_tables({**tables, "Promises": [line.row() for line in lines]})


if __name__ == "__main__":
    main()
