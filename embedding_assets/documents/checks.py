"""The check of `documents`: what was read is accounted for, and nothing goes in silence."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import dagster as dg

from embedding_assets.collection.collection import CollectionAssets
from embedding_assets.runs.check_results import EXAMPLES, check_result
from embedding_assets.runs.refusals import refusals_table
from resources.plain_text import plain

if TYPE_CHECKING:
    from embedding_assets.documents.numbers import Ingested


_WARN, _ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR


class DocumentChecks:
    """`accounting`: every record of the source is stored, quarantined, or of another partition."""

    def __init__(self, collection: CollectionAssets) -> None:
        self._asset = collection.asset_key("documents")
        self._collection = collection.name
        self._limit = collection.settings.checks.max_refused_records
        self.specs = [
            dg.AssetCheckSpec(
                "accounting",
                asset=self._asset,
                description="read = stored + quarantined + other partitions; every file readable; "
                "few records refused; no deletion withheld.",
            )
        ]

    def results(self, ingested: "Ingested") -> list[dg.AssetCheckResult]:
        problems = _problems(ingested, self._limit)
        sentences = [sentence for _, sentence in problems]
        sentences += [_looked_at(ingested), *self._refusals(ingested)]
        return [
            check_result(
                self._asset,
                "accounting",
                not problems,
                " ".join(sentences),
                _metadata(ingested),
                _ERROR if any(severity is _ERROR for severity, _ in problems) else _WARN,
            )
        ]

    def _refusals(self, ingested: "Ingested") -> list[str]:
        """Each reason with an example, of what is no problem too."""
        if not ingested.reasons:
            return []
        told = "; ".join(reason.told for reason in ingested.reasons[:EXAMPLES])
        return [
            f"Refused as {told}. All of them: `embedding-assets quarantine {self._collection}`."
        ]


def _looked_at(ingested: "Ingested") -> str:
    said = []
    if ingested.read or not ingested.unread_partitions:
        others = f", {ingested.elsewhere:,} of other partitions" if ingested.elsewhere else ""
        refused = sum(ingested.quarantined.values())
        said.append(
            f"Of {ingested.read:,} records read {ingested.stored:,} are stored and {refused:,} "
            f"refused{others}."
        )
    if ingested.unread_partitions:
        said.append(
            f"The files of {ingested.unread_partitions:,} partitions are as they were, and were "
            "not read again."
        )
    return " ".join(said)


def _problems(ingested: "Ingested", limit: float) -> list[tuple[dg.AssetCheckSeverity, str]]:
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
    if ingested.too_much_refused(limit):
        if quarantined == ingested.read > 1:
            found.append((_ERROR, f"All {quarantined:,} records that were read were refused."))
        else:
            bad = ingested.unusable
            found.append(
                (
                    _WARN,
                    f"{bad:,} of {ingested.read:,} records ({bad / ingested.read:.0%}) were "
                    f"refused, more than {limit:.0%} (checks.max_refused_records).",
                )
            )
    if ingested.refused_files:
        named = _some(
            f"{one.file} ({one.refused:,} of {one.read:,})" for one in ingested.refused_files
        )
        found.append((_WARN, f"Much was refused of: {named}."))
    if ingested.broken_files:
        found.append((_WARN, f"Not read to their end: {_some(ingested.broken_files)}."))
    return found


def refused_metadata(ingested: "Ingested") -> dict[str, Any]:
    """What was refused, and how much of it is in no partition's numbers."""
    unplaced = ingested.of_no_partition
    return {
        **({"quarantined_of_no_partition": unplaced} if unplaced else {}),
        **refusals_table(ingested.reasons),
    }


def _metadata(ingested: "Ingested") -> dict[str, Any]:
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
        **refused_metadata(ingested),
    }


def _some(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    listed = [*map(plain, names)]
    more = f" and {len(listed) - EXAMPLES:,} more" if len(listed) > EXAMPLES else ""
    return ", ".join(listed[:EXAMPLES]) + more or "none"
