"""Old versions of a LanceDB table go: its folder takes a small multiple of what is in the table.

Each commit makes a version, some 70 kB for a single row, and the files of older versions stay.
"""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from resources.disk_usage import bytes_in
from resources.vector_stores.table_readers import TableReaders

_SPARE_TIMES, _SPARE_BYTES = 2, 1_000_000
_NOTHING_IS_SO_OLD = timedelta(days=36_500)
# LanceDB warns of 0, as nothing is then kept for those who read.
_ALL_BUT_THE_NEWEST = timedelta(milliseconds=1)
# LanceDB takes an age, not a version, and works out later which time that means.
_MARGIN = timedelta(seconds=5)


def takes_too_much(table: Any, folder: Path) -> bool:
    """Whether the folder takes more than twice what the rows of the table do, and a megabyte."""
    statistics = table.stats()
    fragments = statistics["fragment_stats"]
    # Rows that were replaced or removed stay in their fragments until these are merged.
    stored = fragments["num_fragments"] * fragments["lengths"]["mean"]
    present = min(1.0, statistics["num_rows"] / stored) if stored else 0.0
    return bytes_in(folder) > _SPARE_TIMES * present * statistics["total_bytes"] + _SPARE_BYTES


def tidy(table: Any, keep: timedelta, folder: Path | None) -> None:
    """Merges fragments, brings the indexes up to date, and removes versions that nobody needs.

    A version is kept for an hour (`keep`) for those who read it on another machine, or through
    LanceDB itself. Where the folder still takes more than twice what the table's rows do, and a
    megabyte, younger ones go, too. The newest one stays, and each that a process of this machine is
    reading or writing to, for as long as it does; object storage goes by the hour alone.

    Args:
        table: at its newest version.
        keep: how long at least.
        folder: of the table; None: it is in object storage.
    """
    if folder is None:
        table.optimize(cleanup_older_than=max(keep, _ALL_BUT_THE_NEWEST))
        return
    # This may take long, and removes nothing that somebody reads.
    table.optimize(cleanup_older_than=_NOTHING_IS_SO_OLD)
    with readers_of(folder).nobody_begins() as oldest_used:
        _remove(table, keep, oldest_used)
        if takes_too_much(table, folder):
            _remove(table, _ALL_BUT_THE_NEWEST, oldest_used)


def readers_of(folder: Path) -> TableReaders:
    """Those who read or write a table, by its folder."""
    return TableReaders(folder / "_readers")


def _remove(table: Any, keep: timedelta, oldest_used: int | None) -> None:
    if oldest_used is not None:
        made = min(
            version["timestamp"].timestamp()
            for version in table.list_versions()
            if version["version"] >= oldest_used
        )
        keep = max(keep, timedelta(seconds=time.time() - made) + _MARGIN)
    table.optimize(cleanup_older_than=max(keep, _ALL_BUT_THE_NEWEST))
