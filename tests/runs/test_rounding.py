"""Numbers on Dagster's pages have the digits that they are worth, and no fewer."""

import json

import numpy as np
import pytest

from embedding_assets.runs.rounding import rounded


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1234.56789, "1235.0"),
        (123456.789, "123457.0"),
        (12.3456789, "12.35"),
        (1 / 3, "0.3333"),
        (0.000123456, "0.0001235"),
        (-0.98765, "-0.9877"),
        (0.0, "0.0"),
        (float("inf"), "Infinity"),
        (np.float32(0.1), "0.1"),
        (np.int64(123_456_789), "123456789"),
        (123_456_789, "123456789"),
        ("0.123456", '"0.123456"'),
        (None, "null"),
    ],
)
def test_a_number_keeps_four_digits_and_all_before_the_point(value: object, shown: str) -> None:
    assert json.dumps(rounded(value)) == shown
