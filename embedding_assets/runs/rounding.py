"""Numbers as Dagster shows them: no more digits than they are worth."""

import math
from typing import Any

_DIGITS = 4


def rounded(value: Any) -> Any:
    """A float with four digits, and no fewer than are before the point; all else as it is.

    A number of numpy, which Dagster refuses, becomes one of Python.
    """
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, float) or not math.isfinite(value) or not value:
        return value
    return round(value, max(0, _DIGITS - 1 - math.floor(math.log10(abs(value)))))
