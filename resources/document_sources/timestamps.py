"""A document's time, from the forms in which records write it."""

import math
import re
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any

from dateutil.parser import isoparse

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class TimestampUnit(str, Enum):
    """The unit of a time that is a number since 1970."""

    seconds = "s"
    milliseconds = "ms"
    microseconds = "us"
    nanoseconds = "ns"


NANOSECONDS = {
    TimestampUnit.seconds: 10**9,
    TimestampUnit.milliseconds: 10**6,
    TimestampUnit.microseconds: 10**3,
    TimestampUnit.nanoseconds: 1,
}
_LARGEST = (
    (10**11, TimestampUnit.seconds),
    (10**14, TimestampUnit.milliseconds),
    (10**17, TimestampUnit.microseconds),
    (10**22, TimestampUnit.nanoseconds),
)
"""The unit of a number if none is set: seconds up to the year 5138, others from 1973."""
_SMALLEST = 10**8
"""Below it a number has too many readings: a day's, milliseconds, seconds up to 1973."""
_CALENDAR = {
    4: "%Y",
    6: "%Y%m",
    8: "%Y%m%d",
    14: "%Y%m%d%H%M%S",
    17: "%Y%m%d%H%M%S%f",
}
"""How a date or time is written by so many digits without anything between them."""
_DOUBTFUL = {10: "%Y%m%d%H", 12: "%Y%m%d%H%M"}
"""The same where a time since 1970, of our days, has as many digits."""
_LAST_SECONDS = range(253_370_764_800, 253_402_300_801)
"""The year 9999, by which "for ever" is said; in the next smaller unit it is one day of 1978."""
_NUMBER = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{0,30})?([eE][+-]?[0-9]{1,2})?", re.ASCII)
_SET_UNIT = "set `fields.timestamp_unit` to s, ms, us or ns"


def parse_timestamp(value: Any, unit: TimestampUnit | None = None) -> datetime:
    """Reads a document's time; one without an offset is taken as UTC.

    Args:
        value: datetime, date, ISO 8601 string, a date written as 4, 6, 8, 14 or 17 digits, or a
            number since 1970; all of them also as a string.
        unit: of numbers since 1970. None: told by their size, from 100,000,000 upwards: seconds
            (up to 1e11), milliseconds (1e14), microseconds (1e17), nanoseconds.

    Returns:
        An aware datetime in UTC; what is finer than a microsecond is cut.

    Raises:
        ValueError: it is none of these, or may be several of them.
        OverflowError: it lies outside the years 1 to 9999.
    """
    if isinstance(value, bytes):
        value = value.decode()  # UnicodeDecodeError is a ValueError
    if isinstance(value, str):
        value = _parse_text(value.strip(), unit)
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return _from_number(Decimal(repr(value)) if isinstance(value, float) else value, unit)
    if isinstance(value, datetime):
        return in_utc(value)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=timezone.utc)
    raise ValueError("expected an ISO 8601 string, a date or a number")


def in_utc(moment: datetime) -> datetime:
    """A naive time is taken as UTC."""
    if moment.tzinfo is None:
        return moment.replace(tzinfo=timezone.utc)
    return moment.astimezone(timezone.utc)


def _parse_text(value: str, unit: TimestampUnit | None) -> datetime | Decimal:
    if not value.isascii() or len(value) > 64:
        raise ValueError("not an ISO 8601 date or time")
    # Without a unit a short one, such as 2024015, is a date as ISO 8601 writes them.
    is_number = unit is not None or len(value) in _CALENDAR or len(value) >= 9
    if is_number and _NUMBER.fullmatch(value):
        return Decimal(value)
    try:  # ten times faster, but Python 3.10 knows neither Z nor the rarer forms
        return datetime.fromisoformat(value[:-1] + "+00:00" if value[-1:] == "Z" else value)
    except ValueError:
        return isoparse(value)


def _from_number(value: int | Decimal, unit: TimestampUnit | None) -> datetime:
    if value != value or not -_LARGEST[-1][0] <= value <= _LARGEST[-1][0]:
        raise OverflowError("outside the years 1 to 9999")
    if unit is None:
        if value > 0 and (written := _from_digits(value)):
            return written
        unit = _likely_unit(value)
    return _EPOCH + timedelta(microseconds=math.floor(value * NANOSECONDS[unit]) // 1_000)


def _from_digits(value: int | Decimal) -> datetime | None:
    """The date whose digits the number has; None: it is no such date."""
    digits = str(value if isinstance(value, int) else int(value) if value == int(value) else "")
    if form := _CALENDAR.get(len(digits)):
        try:
            return datetime.strptime(digits, form).replace(tzinfo=timezone.utc)
        except ValueError:
            if len(digits) > 8:
                raise ValueError(f"not a date in digits; if it is a number, {_SET_UNIT}") from None
    elif (form := _DOUBTFUL.get(len(digits))) and "1900" <= digits[:4] <= "2100":
        try:
            date = datetime.strptime(digits, form)
        except ValueError:
            return None
        raise ValueError(f"{date} in digits, or a time since 1970? {_SET_UNIT}")
    return None


def _likely_unit(value: int | Decimal) -> TimestampUnit:
    if 0 < value < _SMALLEST:
        raise ValueError(f"a number of days, seconds or milliseconds, or no date? {_SET_UNIT}")
    # A Decimal would be compared with each number of the range.
    if any(int(value // 10**power) in _LAST_SECONDS for power in (0, 3, 6)):
        raise ValueError(f"the year 9999, or a day of January 1978? {_SET_UNIT}")
    return next(unit for largest, unit in _LARGEST if abs(value) <= largest)
