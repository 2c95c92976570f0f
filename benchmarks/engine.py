"""Embedding speed against the hardware's limit, sentence-transformers, LangChain and LlamaIndex.

    python -m benchmarks.engine [--quick] [--tokens 200000] [--repeats 5] [--only short,cached,...]

The protocol: one machine, one job at a time; each contestant in a process of its own, in turn
A B A B, with the same weights, truncation and pooling; real texts; medians and spread; ratios are
taken within each round; start and warm-up apart. LangChain and LlamaIndex take part if they are
installed (`pip install -e '.[benchmarks]'`). `benchmarks/README.md` explains each figure.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.measure import Line, median, print_tables, speedup, spread, write_results
from benchmarks.texts import KINDS, texts_of_kind

PEERS = {
    "LangChain": "langchain_classic",
    "LangChain, in memory": "langchain_classic",
    "LlamaIndex": "llama_index",
}
ENCODE, BEST = "sentence-transformers, 32", "sentence-transformers, best"
ORACLE, EMBED, ASSETS, ASSETS_FP32 = (
    "oracle", "ours: embed", "ours: assets", "ours: assets, fp32",
)  # fmt: skip
LOOK_UP, LOOK_UP_IN_MEMORY = EMBED, "ours: look-up in memory"
"""`ours: embed` also answers for the look-up of cached texts without Dagster."""
CACHES_OF_PEERS = {
    "LangChain": {"LangChain": "files", "LangChain, in memory": "in memory"},
    "LlamaIndex": {"LlamaIndex": "in memory"},
}
COLD = (ORACLE, EMBED, ASSETS, ASSETS_FP32, ENCODE, BEST, "LangChain", "LlamaIndex")
CACHED = (LOOK_UP_IN_MEMORY, LOOK_UP, ASSETS, "LangChain", "LangChain, in memory", "LlamaIndex")
MINUTE, MINUTE_OF_SHORT, MINUTE_OF_LONG = "minute", "minute of short", "minute of long"
MINUTES = {MINUTE: "mixed", MINUTE_OF_SHORT: "short", MINUTE_OF_LONG: "long"}
"""Texts that take as long as a large partition: fixed costs then weigh little."""
PARTAKERS = {
    "short": {*COLD},
    MINUTE: {ORACLE, ASSETS},
    MINUTE_OF_SHORT: {ORACLE, ASSETS, ASSETS_FP32, ENCODE},
    MINUTE_OF_LONG: {ORACLE, ASSETS, ENCODE},
}
"""Who takes part where not all but `ASSETS_FP32` do."""
PARTS = (*KINDS, "mixed", *MINUTES, "one at a time", "cached")


class Worker:
    """A contestant's process; see `benchmarks.contestants`."""

    def __init__(self, name: str, model_cache: str, verbose: bool) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contestants", name, "--model-cache", model_cache],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if verbose else subprocess.DEVNULL,
            text=True,
        )
        self.started = self._answer()

    def ask(self, do: str, **details: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **details}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"'{self.name}' ended too early; --verbose shows why")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process: it leaves its loop when no more orders can come."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@contextmanager
def workers(names: Sequence[str], options: argparse.Namespace) -> Iterator[dict[str, Worker]]:
    """Starts the contestants that are installed, one after the other."""
    with ExitStack() as stack:
        running = {}
        for name in names:
            if name in PEERS and find_spec(PEERS[name]) is None:
                continue
            running[name] = worker = Worker(name, options.model_cache, options.verbose)
            stack.callback(worker.close)
            print(f"{name}: ready after {worker.started['warm_up_seconds']:.1f} s", flush=True)
        yield running


@dataclass(frozen=True)
class ModelShape:
    """What a BERT-like encoder's matrix products follow from."""

    layers: int
    hidden: int
    intermediate: int

    @classmethod
    def of_default_model(cls) -> "ModelShape":
        from resources.embedders.local_model.model_files import DEFAULT_MODEL, find_model

        found = json.loads((find_model(DEFAULT_MODEL) / "config.json").read_text())
        return cls(found["num_hidden_layers"], found["hidden_size"], found["intermediate_size"])

    def flops(self, tokens: int) -> float:
        """Floating-point operations of all matrix products for one text of so many tokens.

        A product of an (n × k) and a (k × m) matrix takes 2nkm. A layer has four projections
        (h × h) and the feed-forward network (h × f, f × h) for each token, and for attention
        two products of (tokens × h) and (h × tokens).
        """
        projections = 2 * tokens * (4 * self.hidden**2 + 2 * self.hidden * self.intermediate)
        attention = 2 * 2 * tokens * tokens * self.hidden
        return self.layers * (projections + attention)


def measure_cold(
    kind: str,
    running: Mapping[str, Worker],
    options: argparse.Namespace,
    peaks: Mapping[str, float],
    folder: Path,
) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """Everybody embeds the same texts from nothing, in turn.

    Returns:
        The rows of the table, and each contestant's seconds by round.
    """
    from tests.support.fakes import word_piece_tokenizer

    tokenizer = word_piece_tokenizer()
    large = kind in MINUTES
    tokens = options.minute_tokens if large else options.tokens
    texts = texts_of_kind(MINUTES.get(kind, kind), tokens, tokenizer)
    lengths = [min(256, len(encoding)) for encoding in tokenizer.encode_batch_fast(texts)]
    path = folder / "texts.json"
    path.write_text(json.dumps(texts))
    facts = {}
    for name, worker in running.items():
        start = time.perf_counter()
        facts[name] = worker.ask("prepare", texts=str(path))
        print(f"{kind}, {name}: prepared in {time.perf_counter() - start:.1f} s", flush=True)
    deviations = {} if large else _deviations(running, folder)
    repeats = options.minute_repeats if large else options.repeats
    answers = _rounds(kind, running, repeats, sum(lengths))
    seconds = {name: [one["seconds"] for one in all_] for name, all_ in answers.items()}
    shape = ModelShape.of_default_model()
    flops = sum(shape.flops(length) for length in lengths)
    precision = facts.get(ORACLE, {}).get("precision", "fp32")
    rows = []
    for name, taken in seconds.items():
        peak = peaks[precision if name in (ORACLE, EMBED, ASSETS) else "fp32"]
        rows.append(
            {
                "texts": kind,
                "contestant": name,
                "docs/s": len(texts) / median(taken),
                "tokens/s": sum(lengths) / median(taken),
                "× encode": speedup(taken, seconds[ENCODE]) if ENCODE in seconds else None,
                "share of oracle": speedup(taken, seconds[ORACLE]) if ORACLE in seconds else None,
                "share of matrix peak": flops / median(taken) / 1e9 / peak,
                "padding waste": facts[name].get("padding_waste"),
                "1 − cosine": deviations.get(name),
                "peak MB": max(one["peak_mb"] for one in answers[name]),
                "MB written": median([one["written_mb"] for one in answers[name]]),
                "seconds": median(taken),
                "spread": spread(taken),
                "chosen": facts[name].get("chosen", ""),
                **{
                    key.replace("seconds_", "s in "): median([one[key] for one in answers[name]])
                    for key in answers[name][0]
                    if key.startswith("seconds_")
                },
            }
        )
    return rows, seconds


def _rounds(
    kind: str, running: Mapping[str, Worker], repeats: int, tokens: int
) -> dict[str, list[dict[str, float]]]:
    """What each contestant answers, round by round."""
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in running}
    for number in range(repeats):
        for name, worker in running.items():
            answers[name].append(worker.ask("run"))
        rates = ", ".join(f"{name} {tokens / a[-1]['seconds']:,.0f}" for name, a in answers.items())
        print(f"{kind}, round {number + 1}: tokens/s: {rates}", flush=True)
    return answers


def _deviations(running: Mapping[str, Worker], folder: Path) -> dict[str, float]:
    """The greatest 1 − cosine of each contestant's vectors to those of `encode` in fp32."""
    import numpy as np

    if ENCODE not in running:
        return {}

    def vectors(name: str) -> Any:
        path = folder / "vectors.npy"
        saved = running[name].ask("vectors", path=str(path))["saved"]
        return np.load(path).astype(np.float64) if saved else None

    reference = vectors(ENCODE)
    found = {}
    for name in running:
        mine = vectors(name)
        if mine is not None and name.startswith("ours"):
            norms = np.linalg.norm(mine, axis=1) * np.linalg.norm(reference, axis=1)
            found[name] = float(1 - ((mine * reference).sum(1) / norms).min())
    return found


def measure_one_at_a_time(
    running: Mapping[str, Worker], options: argparse.Namespace, folder: Path
) -> tuple[list[dict[str, Any]], list[Line]]:
    """Our ways through the cache against `encode` called with one text at a time."""
    from tests.support.fakes import word_piece_tokenizer

    texts = texts_of_kind("short", 17 * options.cache_texts, word_piece_tokenizer())
    path = folder / "texts.json"
    path.write_text(json.dumps(texts))
    for name in (EMBED, ENCODE):
        running[name].ask("prepare", texts=str(path))
    rounds: list[tuple[float, dict[str, float]]] = []
    for _ in range(options.repeats):
        single = running[ENCODE].ask("singly", count=100)
        ways = running[EMBED].ask("cache_ways", shares=[20, 80], one_at_a_time=100)
        rounds.append((single, {way["way"]: 1 / way["texts_per_second"] for way in ways}))
    ratios = {
        way: speedup([mine[way] for _, mine in rounds], [single for single, _ in rounds])
        for way in rounds[0][1]
    }
    single = median([single for single, _ in rounds])
    rows = [
        {
            "way": way,
            "texts/s": 1 / median([mine[way] for _, mine in rounds]),
            "× encode, one text at a time": ratio,
        }
        for way, ratio in ratios.items()
    ]
    rows.append(
        {
            "way": "sentence-transformers' encode, one text at a time",
            "texts/s": 1 / single,
            "× encode, one text at a time": 1.0,
        }
    )
    asked = {"cold": 10, "20 % of the texts": 12, "80 % of the texts": 50, "warm": 2_000}
    lines = [
        Line(f"{way}, against one text at a time", least, ratio)
        for start, least in asked.items()
        for way, ratio in ratios.items()
        if way.startswith(start)
    ]
    return rows, lines


def measure_cached(
    running: Mapping[str, Worker], options: argparse.Namespace, folder: Path
) -> tuple[list[dict[str, Any]], list[Line]]:
    """Everybody gets the vectors of texts that are all in the cache, in turn."""
    import numpy as np

    count = options.cached_texts
    texts = [
        f"{number}: a text of some length, of which the vector is known" for number in range(count)
    ]
    path, vectors_path = folder / "texts.json", folder / "cached.npy"
    path.write_text(json.dumps(texts))
    vectors = np.random.default_rng(0).standard_normal((count, 384), dtype=np.float32)
    np.save(vectors_path, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    for name, worker in running.items():
        own = folder / f"cache of {name}"
        own.mkdir()
        worker.ask("fill_cache", texts=str(path), vectors=str(vectors_path), folder=str(own))
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in running}
    for _ in range(options.repeats):
        for name, worker in running.items():
            answers[name].append(worker.ask("run_cached"))
    seconds = {name: [one["seconds"] for one in all_] for name, all_ in answers.items()}
    labels = {
        LOOK_UP_IN_MEMORY: "ours: look-up in memory",
        LOOK_UP: "ours: look-up in the DuckDB file",
        ASSETS: "ours: asset `embeddings`, through Dagster",
    }
    rows = {
        name: {
            "contestant": labels.get(name, name),
            "texts/s": count / median(taken),
            "seconds": median(taken),
            "spread": spread(taken),
            "peak MB": max(one["peak_mb"] for one in answers[name]),
        }
        for name, taken in seconds.items()
    }
    lines = []
    for peer, ways in CACHES_OF_PEERS.items():
        there = [name for name in ways if name in seconds]
        fastest = min(there, key=lambda name: median(seconds[name])) if there else None
        ratios = {}
        if fastest is not None:
            ratios = {name: speedup(taken, seconds[fastest]) for name, taken in seconds.items()}
        for name, ratio in ratios.items():
            rows[name][f"× {peer}"] = ratio
        note = f"its fastest cache: {ways[fastest]}" if fastest else f"{peer} is not installed"
        lines += [
            Line(
                f"all of {count:,} texts cached, {labels[ours]}, against {peer}",
                25,
                ratios.get(ours),
                note=note,
            )
            for ours in (LOOK_UP_IN_MEMORY, LOOK_UP)
        ]
    return list(rows.values()), lines


def judge_cold(rows: Sequence[Mapping[str, Any]]) -> list[Line]:
    """The promises about embedding from nothing, end to end through Dagster."""
    cells = {(row["texts"], row["contestant"]): row for row in rows}

    def value(kind: str, contestant: str, column: str) -> float | None:
        return cells.get((kind, contestant), {}).get(column)

    def largest(kind: str) -> str:
        measured = (m for m, of in MINUTES.items() if of == kind and (m, ASSETS) in cells)
        return next(measured, kind)

    def against_encode(promise: str, least: float, kind: str, contestant: str) -> list[Line]:
        """Judges the largest partition that was measured."""
        ratio = value(largest(kind), contestant, "× encode")
        if ratio is None:
            return []
        notes = [f"the run took {value(largest(kind), contestant, 'seconds'):.0f} s"]
        small, limit = value(kind, contestant, "× encode"), value(kind, ORACLE, "× encode")
        if largest(kind) != kind and small is not None:
            notes.append(f"one of {value(kind, contestant, 'seconds'):.0f} s {small:.2f} ×")
        if contestant == ASSETS and limit is not None:
            notes.append(f"a forward pass and nothing else reaches {limit:.2f} ×")
        if contestant == ASSETS_FP32:
            share = value(largest(kind), ENCODE, "share of matrix peak") or 0
            notes.append(f"encode itself reaches {share:.2f} of the matrix peak in fp32")
        return [Line(promise, least, ratio, note="; ".join(notes))]

    promise = "cold, end to end, {} texts, against encode (batch 32, fp32)"
    lines = [
        *against_encode(promise.format("short"), 3.0, "short", ASSETS),
        *against_encode(promise.format("long"), 2.7, "long", ASSETS),
        *against_encode("the same in fp32, short texts", 2.5, "short", ASSETS_FP32),
    ]
    if (deviation := value("short", ASSETS_FP32, "1 − cosine")) is not None:
        lines.append(Line("deviation in fp32 (1 − cosine, in 10⁻⁶)", 1, deviation * 1e6, "", True))
    if (share := value(MINUTE, ASSETS, "share of oracle")) is not None:
        taken = value(MINUTE, ASSETS, "seconds") or 0
        promise = "share of the oracle, end to end, a partition of a minute"
        lines.append(Line(promise, 0.85, share, "", note=f"the run took {taken:.0f} s"))
    kind = largest("long")
    if (share := value(kind, ASSETS, "share of matrix peak")) is not None:
        limit = value(kind, ORACLE, "share of matrix peak") or 0
        chosen = cells.get((kind, ORACLE), {}).get("chosen")
        note = f"the oracle itself reaches {limit:.2f}: {chosen}"
        lines.append(
            Line("share of the matrix peak, end to end, long texts", 0.75, share, "", note=note)
        )
    return lines


def matrix_peaks(options: argparse.Namespace) -> dict[str, float]:
    worker = Worker("matrix peak", options.model_cache, options.verbose)
    worker.close()
    print(", ".join(f"{name}: {peak:,.0f} GFLOP/s" for name, peak in worker.started.items()))
    return worker.started


def main() -> None:
    from embedding_assets.collection.environment import read_environment

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=200_000, help="of each kind of texts")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--minute-tokens", type=int, default=1_800_000, help="of a large partition")
    parser.add_argument("--minute-repeats", type=int, default=3)
    parser.add_argument("--cache-texts", type=int, default=10_000, help="against one at a time")
    parser.add_argument("--cached-texts", type=int, default=100_000, help="all of them cached")
    parser.add_argument("--quick", action="store_true", help="few texts, two rounds")
    parser.add_argument("--only", help=f"comma-separated, of: {', '.join(PARTS)}")
    parser.add_argument("--model-cache", default=str(read_environment().models))
    parser.add_argument(
        "--label", help="of this machine: writes engine-LABEL, beside the results of another one"
    )
    parser.add_argument("--verbose", action="store_true", help="show what the contestants print")
    options = parser.parse_args()
    if options.quick:
        options.tokens, options.repeats = 10_000, 2
        options.minute_tokens, options.minute_repeats = 30_000, 2
        options.cache_texts, options.cached_texts = 1_000, 10_000
    parts = options.only.split(",") if options.only else list(PARTS)
    if unknown := {*parts} - {*PARTS}:
        raise SystemExit(f"unknown: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    tables: dict[str, list[dict[str, Any]]] = {}
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="engine-benchmark-") as name:
        folder = Path(name)
        if kinds := [part for part in parts if part in (*KINDS, "mixed", *MINUTES)]:
            peaks = matrix_peaks(options)
            tables["Matrix peak"] = [{f"GFLOP/s {k}": v for k, v in peaks.items()}]
            with workers(COLD, options) as running:
                cold = []
                for kind in kinds:
                    names = PARTAKERS.get(kind, set(running) - {ASSETS_FP32})
                    here = {name: w for name, w in running.items() if name in names}
                    rows, _ = measure_cold(kind, here, options, peaks, folder)
                    tables[f"Cold, {kind} texts"] = rows
                    cold += rows
                lines += judge_cold(cold)
        if "one at a time" in parts:
            with workers((EMBED, ENCODE), options) as running:
                rows, more = measure_one_at_a_time(running, options, folder)
            tables["Through the cache, against one text at a time"] = rows
            lines += more
        if "cached" in parts:
            with workers(CACHED, options) as running:
                tables["All cached"], more = measure_cached(running, options, folder)
            lines += more
    write_results(
        f"engine-{options.label}" if options.label else "engine", "Embedding speed", tables, lines
    )
    print_tables({**tables, "Promises": [line.row() for line in lines]})


if __name__ == "__main__":
    main()
