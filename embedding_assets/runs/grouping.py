"""Small partitions share what costs as much for one as for many."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import TypeVar

# None of a group is recorded before all of it is done, so it is not much.
_BYTES_TOGETHER = 1_000_000
_PARTITIONS_TOGETHER = 64  # each has some files open at a time

Opened = TypeVar("Opened")


def group_small(
    partitions: Iterable[str],
    opened: Callable[[str], AbstractContextManager[Opened]],
    size: Callable[[Opened], int],
) -> Iterator[list[Opened]]:
    """Groups partitions that are too small to be worth a lookup, a call or a commit of their own.

    Args:
        partitions: in the order in which they are wanted.
        opened: opens what is needed of a partition; it is closed when its group is done.
        size: bytes of an opened partition.

    Yields:
        Neighbours that have at most `_BYTES_TOGETHER`, or one partition.
    """
    with ExitStack() as stack:
        group: list[Opened] = []
        open_now, together = stack.enter_context(ExitStack()), 0
        for partition in partitions:
            own = stack.enter_context(ExitStack())
            one = own.enter_context(opened(partition))
            more = size(one)
            full = together + more > _BYTES_TOGETHER or len(group) == _PARTITIONS_TOGETHER
            if group and full:
                yield group
                open_now.close()
                group, together = [], 0
            group.append(one)
            together += more
            open_now.push(own.pop_all())
        if group:
            yield group
