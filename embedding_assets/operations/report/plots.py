"""The plots of a report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from embedding_assets.operations.report.svg import (
    CATEGORIES,
    LIMIT,
    REPEATED,
    SERIES,
    SIZES,
    Drawing,
    Place,
    Scale,
    fitting,
    text_width,
)
from embedding_assets.operations.report.ticks import number_ticks, short_number, time_ticks

WIDTH = 960
_LEFT, _RIGHT = 56, 104
_PANEL, _GAP = 92, 46
_SHORTEST_SECONDS = 60.0
_MANY = 60
_WIDEST_BAR = 60
_FEW = 400
_BADGE = 18
_DASHED = 'stroke-dasharray="6 4" stroke-width="1.5"'


@dataclass(frozen=True)
class Panel:
    """One number over time.

    Attributes:
        title: what it is, and its unit.
        values: one for each time; NaN where there was nothing to measure.
        limit: the threshold of its check; None: it has none.
        verdict: what the check says of a number beyond it: `warns`, `fails`.
        above: whether that is a number above it, and not below.
        top: where its axis ends; None: where its numbers do.
        sum: whether a number tells how much there was, and not how it was.
    """

    title: str
    values: Sequence[float]
    limit: float | None = None
    verdict: str = ""
    above: bool = False
    top: float | None = None
    sum: bool = False

    @property
    def limit_says(self) -> str:
        side = "above" if self.above else "below"
        return f"{self.verdict} {side} {short_number(self.limit or 0)}"

    def is_beyond(self, value: float) -> bool:
        """Whether a number is on the wrong side of the limit."""
        return self.limit is not None and (value > self.limit if self.above else value < self.limit)


def history_plot(times: Sequence[float], panels: Sequence[Panel]) -> Drawing:
    """Numbers over time, one below the other.

    Args:
        times: seconds since 1970, ascending.
        panels: what to show, each with as many values.
    """
    height = len(panels) * (_PANEL + _GAP) + 20
    drawing = Drawing(WIDTH, height, "numbers of the last runs over time")
    spare = max(0.0, _SHORTEST_SECONDS - (times[-1] - times[0])) / 2
    x = Scale(times[0] - spare, times[-1] + spare, _LEFT + 6, WIDTH - _RIGHT - 6)
    for number, panel in enumerate(panels):
        bottom = (number + 1) * (_PANEL + _GAP) - 16
        high = max([1.2 * (panel.limit or 0.0), *(v for v in panel.values if not math.isnan(v))])
        ticks = number_ticks(panel.top or high, 3)
        y = Scale(0, ticks[-1], bottom, bottom - _PANEL)
        drawing.text(0, bottom - _PANEL - 12, panel.title + _summary(panel), "head")
        _y_axis(drawing, y, ticks, WIDTH - _RIGHT)
        _time_axis(drawing, x, bottom, labelled=number == len(panels) - 1)
        _series(drawing, x, y, times, panel)
        if panel.limit is not None:
            _limit(drawing, y(panel.limit), panel.limit_says)
    return drawing


def _summary(panel: Panel) -> str:
    known = [value for value in panel.values if not math.isnan(value)]
    if not known or panel.sum:
        return f", {short_number(sum(known))} in all" if known else ""
    last, middle = (round(value, 1 if value >= 10 else 2) for value in (known[-1], median(known)))
    return f": last {short_number(last)}, median {short_number(middle)}"


def _series(drawing: Drawing, x: Scale, y: Scale, times: Sequence[float], panel: Panel) -> None:
    known = [
        ((x(time), y(value)), value)
        for time, value in zip(times, panel.values, strict=True)
        if not math.isnan(value)
    ]
    places = [place for place, _ in known]
    if panel.sum:
        for place in places:
            drawing.line([(place[0], y(0)), place], SERIES, 'stroke-width="2"')
    elif len(places) > 1:
        drawing.line(places, SERIES, 'stroke-width="1.5" stroke-linejoin="round"')
    size = 5 if len(places) <= _MANY else 3
    drawing.dots(places, SERIES, size)
    drawing.dots((place for place, value in known if panel.is_beyond(value)), LIMIT, size + 3)


def _y_axis(drawing: Drawing, y: Scale, ticks: Sequence[float], right: float) -> None:
    for tick in ticks:
        drawing.line([(_LEFT, y(tick)), (right, y(tick))], "var(--grid)")
        drawing.text(_LEFT - 8, y(tick) + 4, short_number(tick), anchor="end")


def _time_axis(drawing: Drawing, x: Scale, bottom: float, *, labelled: bool) -> None:
    for time, name, below in time_ticks(x.low, x.high, 8):
        drawing.line([(x(time), bottom), (x(time), bottom + 4)], "var(--soft)")
        if labelled:
            drawing.text(x(time), bottom + 17, name, anchor="middle")
            drawing.text(x(time), bottom + 30, below, anchor="middle")


def _limit(drawing: Drawing, y: float, says: str) -> None:
    drawing.line([(_LEFT, y), (WIDTH - _RIGHT, y)], LIMIT, _DASHED)
    drawing.text(WIDTH - _RIGHT + 6, y + 4, says)


def _as_many(words: Sequence[str], width: float) -> str:
    """As many words as fit in a heading."""
    for count in range(len(words), 1, -1):
        if text_width(", ".join(words[:count]), SIZES["head"]) <= width:
            return ", ".join(words[:count])
    return fitting("".join(words[:1]), SIZES["head"], width)


@dataclass(frozen=True)
class Group:
    """A group of points on a map: its words, and a line on how many chunks it is."""

    words: Sequence[str]
    says: str


def map_plot(
    places: np.ndarray,
    groups: Sequence[int | None],
    legend: Mapping[int | None, Group],
    hints: Sequence[str] | None = None,
) -> Drawing:
    """A map of vectors, with a legend.

    Args:
        places: shape (n, 2), float.
        groups: the group of each point, or None for those of no group.
        legend: what is known of each group, in the order of the legend.
        hints: for each point what is shown under the mouse; None: nothing.
    """
    height, edge, right = 640, 24, 250
    drawing = Drawing(WIDTH, height, "map of the vectors, coloured by cluster")
    x, y = Scale(0, 1, edge, WIDTH - right - edge), Scale(0, 1, edge, height - edge)
    shown = _within(places, x, y)
    by_group = {group: [row for row, own in enumerate(groups) if own == group] for group in legend}
    size = 7 if len(shown) <= _FEW else 5
    for group, rows in by_group.items():
        if hints is None:
            drawing.dots((shown[row] for row in rows), _colour(group), size)
        else:
            for row in rows:
                drawing.dot(shown[row], _colour(group), size, hints[row])
    named = {group: rows for group, rows in by_group.items() if group is not None and rows}
    names = [_as_many(legend[group].words[:2], 200) for group in named]
    widths = [_BADGE + 6 + text_width(name, SIZES["label"]) for name in names]
    middles = [_middle([shown[row] for row in rows]) for rows in named.values()]
    where = apart(widths, middles, WIDTH - right, height)
    for group, name, width, (x, y) in zip(named, names, widths, where, strict=True):
        start = x - width / 2
        _badge(drawing, (start + _BADGE / 2, y), group)
        drawing.text(start + _BADGE + 5, y + 5, name, "label")
    _legend(drawing, legend, WIDTH - right + 16, edge + 8, right - 16)
    return drawing


def _colour(group: int | None) -> str:
    return REPEATED if group is None else CATEGORIES[group]


def _within(places: np.ndarray, x: Scale, y: Scale) -> list[Place]:
    low = places.min(axis=0)
    shares = (places - low) / np.maximum(places.max(axis=0) - low, 1e-9)
    return [(x(across), y(down)) for across, down in shares.tolist()]


def _middle(places: Sequence[Place]) -> Place:
    return median(x for x, _ in places), median(y for _, y in places)


def _badge(drawing: Drawing, place: Place, group: int | None) -> None:
    drawing.dot(place, "var(--paper)", _BADGE + 4)
    drawing.dot(place, _colour(group), _BADGE)
    if group is not None:
        drawing.text(place[0], place[1] + 4, str(group + 1), "badge", "middle")


def apart(
    widths: Sequence[float], middles: Sequence[Place], width: float, height: float
) -> list[Place]:
    """Where labels meet no other and are seen whole, each as near to its middle as can be.

    Args:
        widths: of the labels.
        middles: where each would best have its own.
        width: of the whole.
        height: the same.
    """
    taken: list[tuple[Place, float]] = []
    for own, middle in zip(widths, middles, strict=True):
        half = own / 2 + 6
        free = (
            (x, y)
            for x, y in _around(middle, half, width, height)
            if all(abs(x - ox) >= half + oh or abs(y - oy) >= 26 for (ox, oy), oh in taken)
        )
        taken.append((next(free, middle), half))
    return [place for place, _ in taken]


def _around(middle: Place, half: float, width: float, height: float) -> list[Place]:
    """Places around one, the nearest first, all of them such that a name is seen whole."""
    steps = [(dx * 20, dy * 13) for dx in range(-12, 13) for dy in range(-16, 17)]
    return [
        (min(max(middle[0] + dx, half), width - half), min(max(middle[1] + dy, 16), height - 16))
        for dx, dy in sorted(steps, key=lambda step: math.hypot(*step))
    ]


def _legend(
    drawing: Drawing, legend: Mapping[int | None, Group], x: float, y: float, width: float
) -> None:
    for group, known in legend.items():
        _badge(drawing, (x + _BADGE / 2, y), group)
        drawing.text(x + 26, y + 4, _as_many(known.words[:3], width - 30), "head")
        drawing.text(x + 26, y + 20, known.says)
        y += 48


def bars_plot(unit: str, bars: Sequence[tuple[str, float]], below: str) -> Drawing:
    """Bars with their names below, as many names as there is room for.

    Args:
        unit: of the bars' lengths.
        bars: name and length of each.
        below: what the names are.
    """
    drawing, x, y = _bars(unit, [length for _, length in bars], float(len(bars)), below)
    room = max(text_width(name, SIZES[""]) for name, _ in bars) + 12
    every = math.ceil(room * len(bars) / (x.end - x.start))
    for number, (name, _) in enumerate(bars):
        if number % every == 0:
            drawing.text(x(number + 0.5), y.start + 17, name, anchor="middle")
    return drawing


def histogram_plot(
    unit: str, counts: Sequence[float], end: float, below: str, limit: float
) -> Drawing:
    """How many there are of each size, with the largest that may be.

    Args:
        unit: of the counts.
        counts: of sizes that are equally far from each other.
        end: the size at the end of the last.
        below: the unit of the sizes.
        limit: the largest size allowed.
    """
    drawing, x, y = _bars(unit, counts, end, below)
    for tick in number_ticks(end, 8):
        if tick <= end:
            drawing.text(x(tick), y.start + 17, short_number(tick), anchor="middle")
    drawing.line([(x(limit), y.end - 8), (x(limit), y.start)], LIMIT, _DASHED)
    drawing.text(x(limit) - 6, y.end - 12, f"at most {short_number(limit)}", anchor="end")
    return drawing


def _bars(
    unit: str, lengths: Sequence[float], end: float, below: str
) -> tuple[Drawing, Scale, Scale]:
    drawing = Drawing(WIDTH, 200, f"{unit} by {below}")
    ticks = number_ticks(max(lengths), 4)
    x, y = Scale(0, end, _LEFT, WIDTH - 8), Scale(0, ticks[-1], 154, 36)
    drawing.text(0, 14, unit)
    drawing.text(WIDTH - 8, 192, below, anchor="end")
    _y_axis(drawing, y, ticks, x.end)
    step = (x.end - x.start) / len(lengths)
    width = min(0.84 * step, _WIDEST_BAR)
    for number, length in enumerate(lengths):
        middle = x.start + (number + 0.5) * step
        drawing.bar(middle - width / 2, y(length), width, y.start - y(length), SERIES)
    return drawing, x, y
