"""Round numbers and times for the axes of plots."""

import math
from collections.abc import Iterator
from datetime import datetime, timezone
from itertools import count


def number_ticks(high: float, places: int) -> list[float]:
    """Round numbers from 0 to `high` or beyond it, some `places` of them."""
    if not high > 0:
        return [0.0, 1.0]
    unit = 10.0 ** math.floor(math.log10(high / places))
    step = next(unit * times for times in (1, 2, 2.5, 5, 10) if unit * times * places >= high)
    return [step * number for number in range(math.ceil(high / step - 1e-9) + 1)]


def short_number(value: float) -> str:
    """A number as an axis names it: 12,000,000 is 12M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size and value >= 10_000:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


_DAY = 86_400
_SECONDS = (
    1, 5, 15, 30, 60, 300, 900, 1800, 3600, 10_800, 21_600, 43_200,
    _DAY, 2 * _DAY, 7 * _DAY, 14 * _DAY,
)  # fmt: skip
_MONDAY = 4 * _DAY
"""1970 began on a Thursday."""
_MONTHS = (1, 3, 6, 12, 24, 60, 120, 240, 600, 1200)


def time_ticks(start: float, end: float, places: int) -> list[tuple[float, str, str]]:
    """Round times between two, at most `places` of them and one.

    Args:
        start: seconds since 1970.
        end: the same.
        places: how many there is room for.

    Returns:
        The seconds since 1970 of each, its name, and what stands below it: the date of times, the
        year of dates, where it is not that of the tick before.
    """
    ticks: list[tuple[float, str, str]] = []
    said = ""
    for moment, name, below in _round_times(start, end, (end - start) / places):
        ticks.append((moment.timestamp(), name, "" if below == said else below))
        said = below
    return ticks


def _round_times(start: float, end: float, room: float) -> Iterator[tuple[datetime, str, str]]:
    step = next((step for step in _SECONDS if step >= room), None)
    if step is None:
        yield from _round_months(start, end, room)
        return
    first = math.ceil((start - _MONDAY) / step) * step + _MONDAY
    for seconds in range(first, math.floor(end) + 1, step):
        moment = datetime.fromtimestamp(seconds, timezone.utc)
        date = f"{moment.day} {moment:%b}"
        if step >= _DAY:
            yield moment, date, f"{moment:%Y}"
        else:
            yield moment, f"{moment:%H:%M}" if step >= 60 else f"{moment:%X}", f"{date} {moment:%Y}"


def _round_months(start: float, end: float, room: float) -> Iterator[tuple[datetime, str, str]]:
    step = next((months for months in _MONTHS if months * 30.44 * _DAY >= room), _MONTHS[-1])
    begin = datetime.fromtimestamp(start, timezone.utc)
    for number in count(math.floor((12 * begin.year + begin.month - 1) / step) * step, step):
        moment = datetime(number // 12, number % 12 + 1, 1, tzinfo=timezone.utc)
        if moment.timestamp() > end:
            return
        if moment.timestamp() >= start:
            year = f"{moment:%Y}"
            yield (moment, year, "") if step % 12 == 0 else (moment, f"{moment:%b}", year)
