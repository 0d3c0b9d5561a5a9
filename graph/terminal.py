"""Texts for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from pocketphi.graph.printable import one_line


def plain(text: str) -> Text:
    """A text from a file as it is, on one line: no markup of ours, no control characters of a terminal's."""
    return Text(one_line(text))


class _Pipe(Console):
    """A reader that has enough, such as `head`, is none of the errors that rich ends with: the command line knows it."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console() -> Console:
    """Standard output, 150 wide where it is none."""
    return _Pipe(highlight=False, emoji=False, width=None if Console().is_terminal else 150)
