"""The line that a person watches while a bench runs. On what is no terminal it says nothing but the phases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from bench.run import Status


class Line:
    """One line: phase, bar, devices, deliveries."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self._phase = ""
        self.stage = ""  # said before each phase

    def show(self, status: Status) -> None:
        """What the run says of itself."""
        self.say(status.phase)
        done = min(1.0, status.elapsed_s / status.whole_s)
        what = f"{status.live} devices, {status.accepted} accepted, {status.deliveries} deliveries"
        self._progress.update(self._task, completed=done, what=what)

    def say(self, phase: str) -> None:
        """A new phase."""
        phase = self.stage + phase
        if phase != self._phase:
            self._phase = phase
            self._progress.update(self._task, description=phase, what="")
            if not self._progress.console.is_terminal:
                self._progress.console.print(phase)


@contextmanager
def progress_line(console: Console) -> Iterator[Line]:
    """Shown while the block runs."""
    columns = (TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn(), TextColumn("{task.fields[what]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Line(progress, progress.add_task("", total=1.0, what=""))
