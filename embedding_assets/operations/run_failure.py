"""Why a run failed: in a sentence if somebody can mend it, with the traceback if we must."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import dagster as dg
from dagster_shared.error import SerializableErrorInfo

from resources.errors import EmbeddingAssetsError

_INTERRUPTED = dg.DagsterExecutionInterruptedError.__name__
_CHECK_FAILED = "DagsterAssetCheckFailedError"


@dataclass(frozen=True)
class RunFailure:
    """Why a run failed.

    Attributes:
        asset: at which; "" if at none.
        sentence: what was wrong.
        traceback: of a bug of ours; "" where the sentence says all that there is to know.
        by_check: a check that ends the run did not pass.
        interrupted: somebody wanted it.
    """

    asset: str
    sentence: str
    traceback: str = ""
    by_check: bool = False
    interrupted: bool = False


def run_failure(events: Sequence[dg.DagsterEvent], collection: str) -> RunFailure:
    """Judges the failures of a run.

    Args:
        events: those of steps, and of the run, in their order.
        collection: its name, with which the steps' names begin.
    """
    first = events[0]
    asset = (first.step_key or "").removeprefix(f"{collection}__")
    data = first.step_failure_data if first.is_step_failure else first.job_failure_data
    errors = list(_chain(data.error))
    if first.is_step_failure and (raised := first.step_failure_data.user_failure_data):
        return RunFailure(asset, raised.description or "It failed without a word.")
    if any(error.cls_name == _INTERRUPTED for error in errors):
        return RunFailure(asset, "It was interrupted.", interrupted=True)
    if any(error.cls_name == _CHECK_FAILED for error in errors):
        return RunFailure(asset, "A check that ends the run failed.", by_check=True)
    on_purpose = _names(EmbeddingAssetsError)
    for error in errors:
        if error.cls_name in on_purpose:
            return RunFailure(asset, _said(error))
    if not errors:
        return RunFailure(asset, first.message or "It failed without a word.")
    # The first only says that a step failed.
    bug = errors[1] if first.is_step_failure and len(errors) > 1 else errors[0]
    return RunFailure(asset, f"{bug.cls_name}: {_said(bug)}", bug.to_string())


def _chain(error: SerializableErrorInfo | None) -> Iterator[SerializableErrorInfo]:
    while error is not None:
        yield error
        error = error.cause


def _names(kind: type) -> set[str]:
    return {kind.__name__}.union(*map(_names, kind.__subclasses__()))


def _said(error: SerializableErrorInfo) -> str:
    """An error's own words, before which Python puts the name of its class."""
    return error.message.partition(": ")[2].strip() or error.message.strip()
