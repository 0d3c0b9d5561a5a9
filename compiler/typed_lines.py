"""What a user types, or a pipe brings, a line at a time."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator

from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import show


def messages() -> Iterator[Callable[[], str]]:
    """The lines of standard input until its end, without those that hold only space: each is what gives its text, and may raise.

    Texts are UTF-8 whatever the locale says. A line may end as on Windows, and the first one begin with a mark of order.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    first = True
    while True:
        try:
            line = input("> ").removesuffix("\r")
        except EOFError:
            sys.stdout.write("\n")
            sys.stdout.flush()
            return
        if first:
            first, line = False, _without_mark(line)
        if line.strip():
            yield lambda line=line: _text(line)  # type: ignore[misc]


def _without_mark(line: str) -> str:
    return line.removeprefix("\ufeff").removeprefix("\udcef\udcbb\udcbf")


def _text(line: str) -> str:
    """Raises InputError for bytes that are no text."""
    if line.isascii():
        return line
    encoding = getattr(sys.stdin, "encoding", None) or "utf-8"
    try:
        data = line.encode(encoding, "surrogateescape")
    except UnicodeEncodeError:  # typed in a terminal that has another idea
        data = line.encode("utf-8", "surrogatepass")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if encoding.lower().replace("_", "-") not in (
            "utf-8",
            "ascii",
            "us-ascii",
            "ansi-x3.4-1968",
        ) and "\udc80" > max(line):
            return line  # what the terminal's own encoding says
        part = data[error.start : error.start + 4]
        raise InputError(f"the message is not UTF-8 at its byte {error.start}: {show(part)}; it was left out") from None
