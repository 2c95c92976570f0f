"""Ctrl-C while a build is under way: a word at once, and the end at once if it is pressed again."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

_SIGNALS = {signal.SIGINT, signal.SIGTERM}
_STATUS = 130


@contextmanager
def answering_interrupts(console: Console) -> Iterator[None]:
    """Says at once that a signal came; a second one ends the process at once.

    The run itself takes notice of the first: what is with the model comes to its end, which may
    last, and what is finished is recorded. After the second the next run puts all in order, as
    after any kill.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, told = os.pipe()
    os.set_blocking(told, False)
    listener = threading.Thread(target=_listen, args=(heard, console), daemon=True)
    listener.start()
    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(told)
        listener.join()
        os.close(heard)


def _listen(heard: int, console: Console) -> None:
    came = 0
    while numbers := os.read(heard, 64):
        came += sum(number in _SIGNALS for number in numbers)
        if came == 1:
            console.print(
                "Stopping: what is under way comes to its end first. Ctrl-C again ends it at once.",
                style="yellow",
            )
        elif came > 1:
            console.show_cursor()
            console.print(
                "Ended at once. What was finished is kept; the same command goes on.",
                style="yellow",
            )
            os._exit(_STATUS)
