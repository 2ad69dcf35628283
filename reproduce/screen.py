"""What a phase says in, lines on the terminal out: a live bar where a person watches, now and then a line elsewhere."""

import time
from typing import TextIO

from reproduce.progress import Progress, render_progress
from reproduce.terminal import printable_lines

QUIET_S = 30.0  # between two lines of a log that nobody watches live


class PlainScreen:
    """Lines for files and pipes: one when k-NN was evaluated, at the end, and every half minute between."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.newest: Progress | None = None
        self.printed: Progress | None = None
        self.printed_at = float("-inf")

    def say(self, text: str) -> None:
        """Print one line at once: a log is read while it grows."""
        print(printable_lines(text), file=self.stream, flush=True)

    def show(self, progress: Progress) -> None:
        """Print where the run stands if there is news."""
        self.newest = progress
        known = self.printed.knn if self.printed else None
        if progress.done and (progress.knn != known or time.monotonic() - self.printed_at >= QUIET_S):
            self.end()

    def end(self) -> None:
        """Print what was shown last, if that was not printed yet."""
        if self.newest is not None and self.newest != self.printed:
            self.say(render_progress(self.newest))
            self.printed, self.printed_at = self.newest, time.monotonic()


class LiveScreen:
    """One bar that moves, above it the lines said."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        self.console = Console(stderr=True, highlight=False)
        text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
        self.bars = Bars(BarColumn(bar_width=20), TaskProgressColumn(), text, console=self.console)

    def say(self, text: str) -> None:
        """Print one line above the bar."""
        self.console.print(printable_lines(text), markup=False, soft_wrap=True)

    def show(self, progress: Progress) -> None:
        """Move the bar."""
        if not self.bars.tasks:
            self.bars.add_task("", total=progress.target)
            self.bars.start()
        self.bars.update(self.bars.tasks[0].id, completed=progress.done, description=render_progress(progress))

    def end(self) -> None:
        """Leave the bar as it stands and give the terminal back."""
        if self.bars.tasks:
            self.bars.stop()
            self.bars.remove_task(self.bars.tasks[0].id)
