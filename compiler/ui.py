"""What a user sees while something long runs. The library only calls these hooks; the command line draws them."""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from pocketphi.graph.stopping import held

Advance = Callable[[int], None]


class Ui:
    """Silent: for library use, and for `--json`."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    @contextlib.contextmanager
    def task(self, title: str, total: int, unit: str = "") -> Iterator[Advance]:
        """A long step of known size; the value is called with how much was done, from any thread."""
        yield lambda amount: None

    def say(self, text: str) -> None:
        """One line of news."""

    def say_once(self, text: str) -> None:
        """One line of news, which several steps may find."""
        if text not in self._said:
            self._said.add(text)
            self.say(text)


class PlainUi(Ui):
    """For logs: a line for each step as it ends, and one every half a minute while it runs; all on standard error."""

    _EVERY = 30.0

    @contextlib.contextmanager
    def task(self, title: str, total: int, unit: str = "") -> Iterator[Advance]:
        begin = said = time.perf_counter()
        done = 0
        lock = threading.Lock()

        def advance(amount: int) -> None:
            nonlocal done, said
            with lock:
                done += amount
                now = time.perf_counter()
                if now - said >= self._EVERY:
                    said = now
                    self.say(f"{title}: {done / max(total, 1):.0%} after {now - begin:.0f} s")

        yield advance
        self.say(f"{title}: {time.perf_counter() - begin:.1f} s")

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201


class RichUi(Ui):
    """Progress bars, for a terminal; all on standard error."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)

    @contextlib.contextmanager
    def task(self, title: str, total: int, unit: str = "") -> Iterator[Advance]:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        begin = time.perf_counter()
        size = DownloadColumn() if unit == "bytes" else TextColumn("{task.completed}/{task.total}")
        columns = (TextColumn("{task.description:<22}"), BarColumn(), size, TimeRemainingColumn())
        with held(), Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(title, total=total)
            yield lambda amount: progress.advance(task, amount)
        self.say(f"{title}: {time.perf_counter() - begin:.1f} s")

    def say(self, text: str) -> None:
        self.console.print(text, style="dim", soft_wrap=True, markup=False)


def ui_of(a: argparse.Namespace) -> Ui:
    """For a command's arguments: nothing with `--json`, bars on a terminal, lines elsewhere."""
    return Ui() if a.json else RichUi() if sys.stderr.isatty() else PlainUi()
