"""The check of `documents`: what was read is accounted for, and nothing goes in silence."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import dagster as dg

from embedding_assets.collection.collection import CollectionAssets
from embedding_assets.runs.check_results import EXAMPLES

if TYPE_CHECKING:
    from embedding_assets.documents.numbers import Ingested


_WARN, _ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR


class DocumentChecks:
    """`accounting`: every record of the source is stored, quarantined, or of another partition."""

    def __init__(self, collection: CollectionAssets) -> None:
        self._asset = collection.asset_key("documents")
        self.specs = [
            dg.AssetCheckSpec(
                "accounting",
                asset=self._asset,
                description="read = stored + quarantined + other partitions; every file readable; "
                "no deletion withheld.",
            )
        ]

    def results(self, ingested: "Ingested") -> list[dg.AssetCheckResult]:
        problems = _problems(ingested)
        return [
            dg.AssetCheckResult(
                asset_key=self._asset,
                check_name="accounting",
                passed=not problems,
                severity=_ERROR if any(severity is _ERROR for severity, _ in problems) else _WARN,
                description=" ".join(sentence for _, sentence in problems) or None,
                metadata=_metadata(ingested),
            )
        ]


def _problems(ingested: "Ingested") -> list[tuple[dg.AssetCheckSeverity, str]]:
    """What is wrong, as sentences."""
    found = []
    quarantined = sum(ingested.quarantined.values())
    accounted = ingested.stored + quarantined + ingested.elsewhere
    if ingested.read != accounted:
        found.append(
            (_ERROR, f"{ingested.read:,} records were read, but {accounted:,} are accounted for.")
        )
    if ingested.withheld.documents:
        found.append((_ERROR, ingested.withheld.sentence))
    if quarantined and quarantined == ingested.read and ingested.read > 1:
        found.append((_ERROR, f"All {quarantined:,} records that were read were refused."))
    for one in ingested.refused_files[:EXAMPLES]:
        sentence = f"{one.refused:,} of {one.read:,} records of {one.file} were refused, such as: "
        found.append((_WARN, f"{sentence}{one.detail}."))
    if ingested.broken_files:
        found.append((_WARN, f"Not read to their end: {_some(ingested.broken_files)}."))
    return found


def _metadata(ingested: "Ingested") -> dict[str, Any]:
    reasons = "\n".join(f"| {why} | {n} |" for why, n in ingested.quarantined.most_common())
    withheld = ingested.withheld
    return {
        "read": ingested.read,
        "stored": ingested.stored,
        "quarantined": sum(ingested.quarantined.values()),
        "other_partitions": ingested.elsewhere,
        "partitions_not_read_again": ingested.unread_partitions,
        "deletions_withheld": withheld.documents,
        "deletions_withheld_of_files": _some(
            f"{file} ({n:,})" for file, n in withheld.files.items()
        ),
        "broken_files": _some(ingested.broken_files),
        "quarantine_reasons": dg.MetadataValue.md(
            f"| reason | records |\n|---|---|\n{reasons}" if reasons else "none"
        ),
    }


def _some(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - EXAMPLES:,} more" if len(listed) > EXAMPLES else ""
    return ", ".join(listed[:EXAMPLES]) + more or "none"
