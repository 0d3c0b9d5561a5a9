"""What a user sees while something long runs. The library only calls these hooks; the command line draws them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

Advance = Callable[[int], None]


class Ui:
    """Silent: for library use, and for `--json`."""

    @contextlib.contextmanager
    def task(self, title: str, total: int, unit: str = "") -> Iterator[Advance]:
        """A long step of known size; the value is called with how much was done, from any thread."""
        yield lambda amount: None

    def say(self, text: str) -> None:
        """One line of news."""


class RichUi(Ui):
    """Progress bars on a terminal, one line for each step elsewhere; all on standard error."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)

    @contextlib.contextmanager
    def task(self, title: str, total: int, unit: str = "") -> Iterator[Advance]:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        begin = time.perf_counter()
        if self.console.is_terminal:
            size = DownloadColumn() if unit == "bytes" else TextColumn("{task.completed}/{task.total}")
            columns = (TextColumn("{task.description:<22}"), BarColumn(), size, TimeRemainingColumn())
            with Progress(*columns, console=self.console, transient=True) as progress:
                task = progress.add_task(title, total=total)
                yield lambda amount: progress.advance(task, amount)
        else:
            yield lambda amount: None
        self.say(f"{title}: {time.perf_counter() - begin:.1f} s")

    def say(self, text: str) -> None:
        self.console.print(text, style="dim", soft_wrap=True)
