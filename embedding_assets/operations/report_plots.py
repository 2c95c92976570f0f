"""The plots of a collection's report, as PNG files that are small enough for Dagster's metadata."""

import io
import warnings
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import numpy as np

from embedding_assets.runs.history import RunNumbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PNG_BYTES = 100_000
"""Dagster keeps metadata in its event log, twice."""

COST = "dollars"
_TITLE_LENGTH = 32
_COLOUR = "#3b5bdb"


def history_png(runs: Sequence[RunNumbers]) -> bytes:
    """Throughput, hit rate, error rate, tokens, and cost if there was any, over the runs.

    Args:
        runs: oldest first.
    """
    panels = {
        "throughput [chunks/s]": [run.ratio("embedded", "seconds_embedding") for run in runs],
        "cache hit rate [%]": [100 * run.ratio("cache_hits", "distinct_chunks") for run in runs],
        "error rate [%]": [100 * run.ratio("errors", "cache_misses") for run in runs],
        "tokens embedded": [run.sums.get("tokens", 0.0) for run in runs],
    }
    if any(run.sums.get(COST) for run in runs):
        panels["cost [$]"] = [run.sums.get(COST, 0.0) for run in runs]
    figure = _figure(9, 1.6 * len(panels))
    for place, (label, values) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(len(panels), 1, place)
        axes.plot(range(len(values)), values, color=_COLOUR, marker="o", markersize=3, linewidth=1)
        axes.set_ylabel(label.replace(" [", "\n["), fontsize=8)
        axes.set_ylim(bottom=0, top=105 if label.endswith("hit rate [%]") else None)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        _label_times(axes, runs, visible=place == len(panels))
    return _png(figure)


def map_png(
    points: np.ndarray, shares: Sequence[float], colours: Sequence[int], labels: dict[int, str]
) -> bytes:
    """A map of vectors.

    Args:
        points: shape (n, 2), float.
        shares: of the variance, along the two axes, from 0 to 1.
        colours: for each point, the number of its partition.
        labels: the text beside some of the points, by row.
    """
    figure = _figure(9, 6.5)
    axes = figure.add_subplot()
    axes.scatter(
        points[:, 0], points[:, 1], c=colours, cmap="viridis", s=8, alpha=0.6, linewidths=0
    )
    middle = float(np.median(points[:, 0]))
    for row, label in labels.items():
        left = points[row, 0] <= middle
        axes.annotate(
            label if len(label) <= _TITLE_LENGTH else f"{label[: _TITLE_LENGTH - 1]}…",
            (points[row, 0], points[row, 1]),
            xytext=(3 if left else -3, 3),
            horizontalalignment="left" if left else "right",
            textcoords="offset points",
            fontsize=7,
            parse_math=False,  # a title may contain dollar signs
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.7, "linewidth": 0},
        )
    axes.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)", fontsize=8)
    axes.set_ylabel(f"second principal component ({shares[1]:.0%})", fontsize=8)
    axes.tick_params(labelsize=8)
    return _png(figure)


def _figure(width: float, height: float) -> "Figure":
    # Not pyplot: it keeps figures, and asks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _label_times(axes: "Axes", runs: Sequence[RunNumbers], *, visible: bool) -> None:
    # Runs are evenly spaced: over time, a backfill would be one line.
    places = sorted({round(place) for place in np.linspace(0, len(runs) - 1, num=8)})
    times = (datetime.fromtimestamp(runs[place].time, timezone.utc) for place in places)
    axes.set_xticks(places, [time.strftime("%Y-%m-%d\n%H:%M") for time in times] if visible else [])


def _png(figure: "Figure") -> bytes:
    """As sharp as it may be within `MAX_PNG_BYTES`."""
    from PIL import Image

    for dots_per_inch in (110, 80, 60, 40):
        picture, palette = io.BytesIO(), io.BytesIO()
        with warnings.catch_warnings():
            # Titles may be in scripts that the font has no glyphs for.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(picture, format="png", dpi=dots_per_inch)
        Image.open(picture).convert("RGB").quantize(64).save(palette, "PNG", optimize=True)
        if palette.tell() <= MAX_PNG_BYTES:
            break
    return palette.getvalue()
