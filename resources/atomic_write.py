"""Files that are replaced in one step."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resources.leftovers import owner, remove_leftovers


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yields a path beside the target to write to: readers see the old file or the new one.

    The target appears, or is replaced, when the block ends; if it raises, nothing changes. What a
    killed process left in the folder is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Of all files beside it: some of them are written only when they change.
    remove_leftovers(target.parent, ".*.", ".tmp")
    temporary = target.with_name(f".{target.name}.{owner()}.{threading.get_ident()}.tmp")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
