"""How near vectors are is said of the worst of them, and never in favour of broken ones."""

import numpy as np
import pytest

from resources.embedders.cosine import least_cosine


@pytest.mark.parametrize(
    ("ours", "theirs", "cosine"),
    [
        ([[1, 0], [0, 2]], [[3, 0], [0, 1]], 1.0),
        ([[1, 0], [1, 1]], [[1, 0], [0, 1]], 2**-0.5),
        ([[1, 0]], [[-1, 0]], -1.0),
        ([[1, 0], [0, 0]], [[1, 0], [0, 1]], -1.0),
        ([[1, 0], [np.nan, 1]], [[1, 0], [0, 1]], -1.0),
        ([[np.inf, 0]], [[1, 0]], -1.0),
        ([[1, 0]], [[1, 0, 0]], -1.0),
        (np.zeros((0, 2)), np.zeros((0, 2)), 1.0),
    ],
)
def test_the_least_cosine(
    ours: list[list[float]], theirs: list[list[float]], cosine: float
) -> None:
    found = least_cosine(np.array(ours, np.float32), np.array(theirs, np.float32))
    assert found == pytest.approx(cosine)
