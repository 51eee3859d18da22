"""Progress bars of the commands, shown on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from hatlib import signals

if TYPE_CHECKING:
    from rich.progress import Progress


def progress_bar(visible: bool = True) -> Progress:
    """Creates a progress bar, which is shown only if `visible` is true and stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),  # descriptions may be file names with brackets
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (visible and console.is_terminal),
        # rich must print output above the bar on a terminal, and must not touch the output in a pipe.
        redirect_stdout=sys.stdout.isatty(),
    )


def track(progress: Progress, description: str) -> Callable[[float, int], None]:
    """Adds a task and returns a callback(done, total) that updates it and raises `Interrupted` after a signal."""
    task = progress.add_task(description, total=None)

    def callback(done: float, total: int) -> None:
        signals.check()
        progress.update(task, completed=done, total=total)

    return callback
