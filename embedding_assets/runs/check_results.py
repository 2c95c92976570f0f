"""What the results of all checks have in common."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from embedding_assets.runs.rounding import rounded

EXAMPLES = 5
"""How many examples a result names at most."""


def check_result(
    asset: dg.AssetKey,
    name: str,
    passed: bool,
    sentence: str,
    metadata: Mapping[str, Any],
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetCheckResult:
    """A result that says what was looked at and found, of what passed too.

    Args:
        asset: the asset that was checked.
        name: of the check.
        passed: whether all is well.
        sentence: one or some, for people.
        metadata: the numbers that it speaks of, and others.
        severity: of a result that is not well.
    """
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=name,
        passed=passed,
        severity=severity,
        description=sentence,
        metadata={key: rounded(value) for key, value in metadata.items()},
    )
