"""How a run tells what its assets refused."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from resources.plain_text import plain

if TYPE_CHECKING:
    from embedding_assets.artifacts.quarantine import QuarantineReason

_COLUMNS = {
    "reason": "string",
    "records": "int",
    "file": "string",
    "line": "int",
    "detail": "string",
}


def refusals_table(reasons: Sequence["QuarantineReason"]) -> dict[str, dg.TableMetadataValue]:
    """What was refused, by reason and with an example, as metadata; nothing if nothing was."""
    if not reasons:
        return {}
    rows = [{name: getattr(reason, name) for name in _COLUMNS} for reason in reasons]
    records = [
        dg.TableRecord({k: plain(v) if isinstance(v, str) else v for k, v in row.items()})
        for row in rows
    ]
    columns = [dg.TableColumn(name, kind) for name, kind in _COLUMNS.items()]
    return {"refused": dg.TableMetadataValue(records, dg.TableSchema(columns))}


def warn_of_refusals(
    log: logging.Logger, collection: str, reasons: Sequence["QuarantineReason"]
) -> None:
    """A line for each reason, with an example."""
    for reason in reasons:
        log.warning(
            f"Refused as {reason.told}. All of them: `embedding-assets quarantine {collection} "
            f"--reason {reason.reason}`"
        )
