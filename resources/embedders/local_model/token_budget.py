"""How many tokens a device takes at a time: found once, remembered, and bent by out of memory."""

import json
from collections.abc import Callable
from pathlib import Path

from resources.embedders.local_model.model_files import write_json

PROBE_TOKENS = 4_096
MEMORY_SHARE = 0.8
"""Of the free memory; the rest is for fragmentation and for what else uses the device."""
MIN_GAIN = 1.03
"""A doubled batch must bring so many times the tokens per second, or the search ends."""
MAX_TOKENS = 1 << 20
PATIENCE = 32


class TokenBudget:
    """How many tokens a batch may have; for one thread at a time."""

    def __init__(self, ceiling: int) -> None:
        """Starts at the ceiling.

        Args:
            ceiling: where it starts, and the most it ever is.
        """
        self.ceiling = ceiling
        self.tokens = ceiling
        self._patience = PATIENCE
        self._successes = 0
        self._grown = False

    def shrink(self, failed_tokens: int) -> None:
        """After a batch of so many tokens ran out of memory."""
        self.tokens = max(1, min(self.tokens, failed_tokens) // 2)
        self._successes = 0
        if self._grown:  # what keeps failing is tried again ever more rarely
            self._patience = min(2 * self._patience, 64 * PATIENCE)
        self._grown = False

    def succeeded(self, tokens: int) -> None:
        """After a batch: doubles the budget when enough batches of about its size went well."""
        if self.tokens == self.ceiling or 2 * tokens < self.tokens:
            return
        self._successes += 1
        if self._successes >= self._patience:
            self.tokens = min(self.ceiling, 2 * self.tokens)
            self._successes = 0
            self._grown = True


def search_budget(
    peak_bytes: Callable[[int], int],
    seconds: Callable[[int], float],
    free_bytes: int,
) -> int:
    """Finds the budget by two probes of memory, then doubles while speed grows.

    Args:
        peak_bytes: the most memory that a batch of so many tokens takes, beside the weights.
        seconds: the time that a batch of so many tokens takes.
        free_bytes: memory beside the weights.

    Returns:
        Tokens, a power of two times `PROBE_TOKENS`, or less than one where memory is small.
    """
    small, large = peak_bytes(PROBE_TOKENS), peak_bytes(2 * PROBE_TOKENS)
    slope = max((large - small) / PROBE_TOKENS, 1e-9)
    fixed = max(0.0, small - slope * PROBE_TOKENS)
    affordable = int((MEMORY_SHARE * free_bytes - fixed) / slope)
    limit = max(1, min(MAX_TOKENS, affordable))
    best = min(PROBE_TOKENS, limit)
    speed = best / seconds(best)
    while 2 * best <= limit:
        doubled = 2 * best / seconds(2 * best)
        if doubled < MIN_GAIN * speed:
            break
        best, speed = 2 * best, doubled
    return best


def remembered_budget(path: Path | None, key: str, search: Callable[[], int]) -> int:
    """The budget that the file has for a key; where it has none, one is searched and written down.

    Args:
        path: a JSON file of budgets; None remembers nothing.
        key: names the device, the model and the precision.
        search: finds the budget where the file has none.
    """
    known = _read(path)
    if not isinstance(known.get(key), int) or known[key] < 1:
        known = {key: search()}
        if path is not None:
            write_json(path, _read(path) | known)
    return known[key]


def _read(path: Path | None) -> dict[str, int]:
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
