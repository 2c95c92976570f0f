"""Throughput and latency of an embedder called with so many texts at a time.

The last row is the engine as the asset `embeddings` calls it: a window of texts, which it sorts by
length and cuts into batches by a budget of tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.measure import in_turn, median, percentile, seconds, spread
from resources.embedders.base import Embedder

ENGINE = "token budget"


@dataclass(frozen=True)
class BatchSizeRow:
    """One row of the table; medians over the rounds.

    Attributes:
        batch_size: texts in one call, as people read it; `ENGINE` for the last row.
        calls: in one round.
        texts_per_second: of a whole round.
        tokens_per_second: real tokens, special tokens included, padding not.
        p50_ms: median latency of one call, over all rounds.
        p95_ms: 95th percentile of the same.
        spread: of the throughput over the rounds, (greatest − least) / median.
        best: whether its throughput is the greatest.
    """

    batch_size: str
    calls: int
    texts_per_second: float
    tokens_per_second: float
    p50_ms: float
    p95_ms: float
    spread: float
    best: bool


def measure_batch_sizes(
    embedder: Embedder,
    texts: Sequence[str],
    sizes: Sequence[int],
    window: int,
    repeats: int,
    progress: Callable[[str], None] = print,
) -> list[BatchSizeRow]:
    """Embeds all texts with each batch size, in turn, `repeats` times.

    Args:
        embedder: what is measured; it is warmed up first.
        texts: in the order in which they come.
        sizes: texts in one call.
        window: texts in one call of the engine.
        repeats: rounds.
        progress: called with a line for people, now and then.
    """
    progress(f"warming up: {embedder.embed(texts[:1]).vectors.shape[1]} dimensions")
    tokens = int(embedder.embed(texts).tokens.sum())
    latencies: dict[str, list[float]] = {}

    def run(name: str, size: int) -> float:
        calls = [
            seconds(partial(embedder.embed, texts[start : start + size]))
            for start in range(0, len(texts), size)
        ]
        latencies.setdefault(name, []).extend(calls)
        progress(f"batch size {name}: {len(texts) / sum(calls):,.0f} texts/s")
        return sum(calls)

    ways = {str(size): size for size in sizes} | {ENGINE: window}
    times = in_turn({name: partial(run, name, size) for name, size in ways.items()}, repeats)
    fastest = min(times, key=lambda name: median(times[name]))
    return [
        BatchSizeRow(
            batch_size=name,
            calls=len(latencies[name]) // repeats,
            texts_per_second=len(texts) / median(rounds),
            tokens_per_second=tokens / median(rounds),
            p50_ms=1e3 * percentile(latencies[name], 50),
            p95_ms=1e3 * percentile(latencies[name], 95),
            spread=spread(rounds),
            best=name == fastest,
        )
        for name, rounds in times.items()
    ]


def plot_batch_sizes(rows: Sequence[BatchSizeRow], title: str) -> bytes:
    """Throughput and latency against batch size, the best marked; a PNG."""
    from benchmarks.plots import figure, png

    plot = figure()
    throughput, latency = plot.subplots(1, 2)
    names = [row.batch_size for row in rows]
    best = next(place for place, row in enumerate(rows) if row.best)
    speeds = [row.texts_per_second for row in rows]
    throughput.plot(names, speeds, marker="o")
    throughput.plot(best, speeds[best], marker="*", markersize=18, color="C3")
    throughput.annotate(
        f"best: {names[best]}\n{speeds[best]:,.0f} texts/s",
        (best, speeds[best]),
        xytext=(-8, -28),
        textcoords="offset points",
        ha="right",
        color="C3",
    )
    throughput.set(ylabel="texts per second", ylim=(0, None))
    latency.plot(names, [row.p50_ms for row in rows], marker="o", label="p50")
    latency.plot(names, [row.p95_ms for row in rows], marker="v", label="p95")
    latency.set(ylabel="latency of one call, ms", yscale="log")
    latency.axvline(best, color="C3", linestyle=":", label="best throughput")
    latency.legend()
    for axes in (throughput, latency):
        axes.set_xlabel("texts in one call")
        axes.tick_params(axis="x", rotation=45)
        axes.grid(alpha=0.3)
    plot.suptitle(title)
    return png(plot)
