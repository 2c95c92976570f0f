"""What every benchmark needs: turns, figures of them, the machine, and where results go.

Results are `benchmarks/results/NAME.json` and `NAME.md`, with machine, versions and date.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from embedding_assets.runs.memory import peak_memory_mb

RESULTS = Path(__file__).parent / "results"
_PACKAGES = (
    "dagster", "duckdb", "lancedb", "pyarrow", "numpy", "openvino", "torch", "tokenizers",
    "sentence-transformers", "langchain-classic", "llama-index-core",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One promise: what was asked, what was measured, and whether it was kept.

    Attributes:
        promise: what is compared, in words.
        asked: the least (or, if `at_most`, the greatest) value that keeps it.
        measured: the value; None if it could not be measured here.
        unit: of both; "×" for a ratio.
        at_most: the asked value is an upper bound.
        note: what a reader has to know, such as the reason found by profiling.
    """

    promise: str
    asked: float
    measured: float | None
    unit: str = "×"
    at_most: bool = False
    note: str = ""

    @property
    def kept(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured <= self.asked if self.at_most else self.measured >= self.asked

    def row(self) -> dict[str, str]:
        """The line as people read it."""

        def say(value: float | None) -> str:
            if value is None:
                return "not measured"
            digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
            return f"{value:,.{digits}f} {self.unit}".strip()

        return {
            "promise": self.promise,
            "asked": f"{'≤' if self.at_most else '≥'} {say(self.asked)}",
            "measured": say(self.measured),
            "kept": {True: "yes", False: "NO", None: "–"}[self.kept],
            "note": self.note,
        }


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(functions: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Calls A B C A B C, so that a busy moment of the machine hits all of them alike.

    Returns:
        What each call returned, by name, in the order of the rounds.
    """
    results: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            results[name].append(function())
    return results


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> float:
    """(greatest − least) / median."""
    return (max(values) - min(values)) / median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest ranks (numpy's default)."""
    import numpy as np

    return float(np.percentile(values, percent))


def speedup(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times faster we are: the median over the rounds of their time / our time.

    Args:
        ours: seconds, one a round.
        theirs: seconds, of the same rounds.
    """
    return median([their / our for our, their in zip(ours, theirs, strict=True)])


def padding_waste(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """The share of the tokens given to the model that is padding, from 0 to 1.

    Args:
        lengths: tokens of each text.
        batches: row numbers of each batch; a batch is padded to its longest text.
    """
    given = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    real = sum(lengths[row] for batch in batches for row in batch)
    return 1 - real / given if given else 0.0


def reset_peak() -> None:
    """Starts `peak_mb` anew, on Linux."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """The most memory resident since `reset_peak` (elsewhere than on Linux: since the start)."""
    return peak_memory_mb()


def written_mb() -> float:
    """MB that this process has caused to be written to disk; 0 where the system does not say."""
    return _proc("/proc/self/io", "write_bytes:") / 1e6 if sys.platform == "linux" else 0.0


def _proc(file: str, name: str) -> float:
    lines = Path(file).read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name))


def machine() -> dict[str, str]:
    """What a figure depends on, besides the code."""
    import psutil

    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()),
        "memory_gb": f"{psutil.virtual_memory().total / 1e9:.0f}",
        # Somebody else's work at the same time makes figures smaller, and ratios less certain.
        "load_before": f"{os.getloadavg()[0]:.1f}",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: found for name in _PACKAGES if (found := _version(name))},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    has = fields.get("flags", "").split()
    wide = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in has]
    return f"{fields.get('model name', platform.machine())} ({' '.join(wide)})"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a row; the keys of the first are the columns."""
    if not rows:
        return "nothing\n"
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(_cell(value) for value in line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 3
        return f"{value:,.{digits}f}"
    return "" if value is None else str(value)


def write_results(
    name: str,
    title: str,
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    lines: Sequence[Line] = (),
    folder: Path = RESULTS,
) -> None:
    """Writes `NAME.json` and `NAME.md`.

    Args:
        name: of the files.
        title: of the page.
        tables: rows by the table's title; numbers, not text, wherever possible.
        lines: the promises that this benchmark judges.
        folder: where to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    here = machine()
    result = {"machine": here, "tables": tables, "lines": [asdict(line) for line in lines]}
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    parts = [f"# {title}\n\n{markdown_table([{'': k, ' ': v} for k, v in here.items()])}"]
    parts += [f"\n## {heading}\n\n{markdown_table(rows)}" for heading, rows in tables.items()]
    if lines:
        parts.append(f"\n## Promises\n\n{markdown_table([line.row() for line in lines])}")
    (folder / f"{name}.md").write_text("".join(parts))


def read_lines(folder: Path = RESULTS) -> dict[str, list[Line]]:
    """The promises of all results that are there, by the benchmark's name."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        if isinstance(result, dict) and result.get("lines"):
            found[path.stem] = [Line(**line) for line in result["lines"]]
    return found


def print_tables(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """The same tables, for a terminal."""
    from rich.console import Console
    from rich.table import Table

    for title, rows in tables.items():
        table = Table(title=title, title_justify="left")
        for column in rows[0] if rows else ():
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(_cell(value) for value in row.values()))
        Console().print(table)
