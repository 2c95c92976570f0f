"""The check of `documents`: what was read is accounted for."""

from typing import TYPE_CHECKING

import dagster as dg

from embedding_assets.collection.collection import Collection
from embedding_assets.runs.check_results import EXAMPLES

if TYPE_CHECKING:
    from embedding_assets.documents.numbers import Ingested


class DocumentChecks:
    """`accounting`: every record of the source is stored, quarantined, or of another partition."""

    def __init__(self, collection: Collection) -> None:
        self._asset = collection.asset_key("documents")
        self.specs = [
            dg.AssetCheckSpec(
                "accounting",
                asset=self._asset,
                description="read = stored + quarantined + other partitions; every file readable.",
            )
        ]

    def results(self, ingested: "Ingested") -> list[dg.AssetCheckResult]:
        accounted = ingested.stored + sum(ingested.quarantined.values()) + ingested.elsewhere
        balanced = ingested.read == accounted
        reasons = "\n".join(f"| {why} | {n} |" for why, n in ingested.quarantined.most_common())
        return [
            dg.AssetCheckResult(
                asset_key=self._asset,
                check_name="accounting",
                passed=balanced and not ingested.broken_files,
                severity=dg.AssetCheckSeverity.WARN if balanced else dg.AssetCheckSeverity.ERROR,
                metadata={
                    "read": ingested.read,
                    "stored": ingested.stored,
                    "quarantined": sum(ingested.quarantined.values()),
                    "other_partitions": ingested.elsewhere,
                    "partitions_not_read_again": ingested.unread_partitions,
                    "retained_from_broken_files": ingested.retained,
                    "broken_files": ", ".join(ingested.broken_files[:EXAMPLES]) or "none",
                    "quarantine_reasons": dg.MetadataValue.md(
                        f"| reason | records |\n|---|---|\n{reasons}" if reasons else "none"
                    ),
                },
            )
        ]
