"""What files take on a local disk."""

import os
from contextlib import suppress
from pathlib import Path


def bytes_in(path: Path) -> int:
    """Of a file, or of all that is in a folder; 0 where there is neither."""
    if path.is_file():
        return path.stat().st_size
    taken = 0
    for where, _, names in os.walk(path):  # passes over folders that are removed meanwhile
        for name in names:
            with suppress(FileNotFoundError):
                taken += Path(where, name).stat().st_size
    return taken
