"""The source sensor's look at a source, for a process that asks for itself what has changed."""

from collections.abc import Collection

import dagster as dg

from embedding_assets.automation.run_requests import partitions_of
from embedding_assets.automation.source_sensor import SourceTick


class SourceWatch:
    """Remembers what it has seen for as long as it lives; the sensor's own memory stays as it is.

    Args:
        tick: looks; what it writes into its artifacts is of no use to anybody else.
    """

    def __init__(self, tick: SourceTick) -> None:
        self._tick = tick
        self._cursor: str | None = None

    def changed(self, within: Collection[str]) -> list[list[str]]:
        """The partitions that hold something else than what was ingested, neighbours together.

        Args:
            within: of these alone.
        """
        found = self._tick.evaluate(self._cursor)
        if isinstance(found, dg.SkipReason):
            return []
        self._cursor = found.cursor
        known = self._tick.collection.partitions.get_partition_keys()
        asked = (partitions_of(request, known) for request in found.run_requests or ())
        some = ([partition for partition in run if partition in within] for run in asked)
        return [run for run in some if run]
