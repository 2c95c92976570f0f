"""What `embedding-assets build` shows while it builds: a live picture, or lines."""

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import UnsupportedOperation
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from resources.plain_text import plain

if TYPE_CHECKING:
    import dagster as dg

    from embedding_assets.operations.build import BuildWatcher

_STAGES = ("documents", "deduplicated_chunks", "embeddings", "vector_index")
_REFRESH_PER_SECOND = 5
_WIDTH_OF_STAGE = max(map(len, _STAGES)) + 1


@contextmanager
def own_stderr() -> Iterator[Console]:
    """Somebody's terminal, whatever becomes of stderr: while assets run, Dagster keeps what is
    written there as the run's own, and passes it on late."""
    style: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
    try:
        own = os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding)
    except UnsupportedOperation:  # not a file, as in a test or a notebook
        yield Console(stderr=True, **style)
        return
    with own:
        yield Console(file=own, **style)


@contextmanager
def progress(
    console: Console, collection: str | None, *, passing: bool = False
) -> Iterator["BuildWatcher"]:
    """Shows what a build tells; there is a sign of life before Dagster is even loaded.

    Args:
        console: of stderr.
        collection: its name; None: the only one.
        passing: whether nothing of it stays on a terminal.
    """
    what = f"Building {plain(collection)}" if collection else "Building"
    if not console.is_interactive:
        console.print(f"{what} ...")
        yield _lines(console)
        return
    picture = _Picture(what)
    with Live(
        get_renderable=picture.draw,
        console=console,
        refresh_per_second=_REFRESH_PER_SECOND,
        transient=passing,
    ) as live:
        live.refresh()
        try:
            yield picture.watcher(console)
        finally:
            picture.over = True


def _lines(console: Console) -> "BuildWatcher":
    from embedding_assets.operations.build import BuildWatcher

    class Lines(BuildWatcher):
        def begin(self, run_id: str, partitions: Sequence[str]) -> None:
            console.print(f"Run {run_id} over {_over(partitions)}", soft_wrap=True)

        def message(self, level: int, asset: str, text: str) -> None:
            console.print(_line(level, asset, text), soft_wrap=True)

    return Lines()


def _line(level: int, asset: str, text: str) -> str:
    mark = "" if level < logging.WARNING else f"{logging.getLevelName(level)} "
    return f"  {asset:<{_WIDTH_OF_STAGE}}{mark}{plain(text)}"


def _over(partitions: Sequence[str]) -> str:
    first, last = plain(partitions[0]), plain(partitions[-1])
    return (
        f"partition {first}"
        if first == last
        else f"{len(partitions):,} partitions, {first}...{last}"
    )


class _Picture:
    """The stages, how far the one at work is, and the last line of the log."""

    def __init__(self, what: str) -> None:
        self.over = False
        self._title = what
        self._spinner = Spinner("dots", style="cyan")
        self._began = time.monotonic()
        self._stages: dict[str, tuple[str, float]] = {}
        """How each that has begun is, and the moment or the seconds of that."""
        self._said = ""
        self._before: Any = None
        """What was counted before the stage began."""

    def watcher(self, console: Console) -> "BuildWatcher":
        from embedding_assets.operations.build import BuildWatcher

        picture = self

        class Draws(BuildWatcher):
            def begin(self, run_id: str, partitions: Sequence[str]) -> None:
                del run_id
                picture.begin(partitions)

            def event(self, event: "dg.DagsterEvent") -> None:
                picture.event(event)

            def message(self, level: int, asset: str, text: str) -> None:
                if level >= logging.WARNING:
                    console.print(_line(level, asset, text), style="yellow")
                else:
                    picture.say(text)

        return Draws()

    def begin(self, partitions: Sequence[str]) -> None:
        self._title = f"{self._title.partition(',')[0]}, {_over(partitions)}"
        self._stages.clear()

    def say(self, text: str) -> None:
        self._said = plain(text)

    def event(self, event: "dg.DagsterEvent") -> None:
        from embedding_assets.runs.progress import newest_progress

        stage = (event.step_key or "").rpartition("__")[2]
        if event.event_type_value == "STEP_START":
            self._stages[stage] = ("at work", time.monotonic())
            self._before, self._said = newest_progress(), ""
        elif event.event_type_value in ("STEP_SUCCESS", "STEP_FAILURE"):
            _, began = self._stages.get(stage, ("", time.monotonic()))
            state = "done" if event.event_type_value == "STEP_SUCCESS" else "failed"
            self._stages[stage] = (state, time.monotonic() - began)
            self._said = ""

    def draw(self) -> RenderableType:
        now = time.monotonic()
        rows = Table.grid(padding=(0, 1))
        for stage in _STAGES:
            state, seconds = self._stages.get(stage, ("", 0.0))
            if state == "at work" and not self.over:
                rows.add_row(self._spinner, stage, *self._reached(now - seconds))
            elif state == "failed" or state == "at work":
                rows.add_row(Text("✗", "red"), stage, "", "")
            elif state == "done":
                rows.add_row(Text("✓", "green"), stage, "", Text(f"{seconds:,.1f} s", "dim"))
            else:
                rows.add_row("", Text(stage, "dim"), "", "")
        title = Text(f"{self._title}  ", "bold").append(f"{now - self._began:,.0f} s", "dim")
        if not self._stages:
            return "" if self.over else Group(title, Text("Loading Dagster ...", "dim"))
        said = [Text(self._said, "dim")] if self._said and not self.over else []
        return Group(title, rows, *said)

    def _reached(self, seconds: float) -> tuple[RenderableType, RenderableType]:
        """A bar, and what it says."""
        from embedding_assets.runs.progress import newest_progress, progress_line

        progress = newest_progress()
        if progress is None or progress is self._before:
            return "", Text(f"{seconds:,.0f} s", "dim")
        now = progress.reached()
        bar = ProgressBar(total=1.0, completed=now.share, width=24) if now.share else ""
        return bar, Text(progress_line(now, details=False))
