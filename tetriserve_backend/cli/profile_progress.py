"""A profile's progress: a bar with the remaining time on a terminal, a line per finished entry elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from tetriserve_profiling.profiler import Progress as Visited

# Elsewhere than on a terminal, between two signs of life.
_QUIET_S = 10.0


class ProfileProgress:
    """Shows what a profiler tells; use with `with`. Everything goes to standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._told_s = time.monotonic()

    def __enter__(self) -> "ProfileProgress":
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Tell something that stays."""
        self._console.print(f"tetriserve: {escape(text)}")

    def show(self, visited: Visited) -> None:
        """What has just been done."""
        left = _left(visited.remaining_s)
        if not self._console.is_terminal:
            is_overdue = time.monotonic() > self._told_s + _QUIET_S
            if visited.complete or visited.problem or is_overdue:
                self._told_s = time.monotonic()
                self._console.print(escape(f"[{visited.done}/{visited.total}, {left}] {visited.in_words()}"))
            return
        if visited.problem:
            self._console.print(escape(visited.in_words()))
        if self._task is None:
            self._task = self._bar.add_task("", total=visited.total, left="")
        self._bar.update(
            self._task, completed=visited.done, total=visited.total, description=escape(visited.in_words()), left=left
        )


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "time left unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}") + " left"
