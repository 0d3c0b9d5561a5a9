"""What a user types, or a pipe brings, a line at a time."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import show


class NotText(InputError):
    """A line whose bytes are no text."""


def messages() -> Iterator[str]:
    """The lines of standard input until its end, without those that hold only space.

    A line may end as on Windows, and the first one begin with a mark of the bytes' order. Bytes that the locale's encoding
    cannot read are kept as Python keeps them in names of files; see `text_of`.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    begun = False
    while True:
        try:
            line = input("> ").removesuffix("\r")
        except EOFError:
            sys.stdout.write("\n")
            sys.stdout.flush()
            return
        if not begun:
            begun, line = True, line.removeprefix("\ufeff").removeprefix("\udcef\udcbb\udcbf")
        if line.strip():
            yield line


def text_of(line: str) -> str:
    """The text of a line. What the locale cannot read may be UTF-8. Raises NotText."""
    if not any("\udc80" <= character <= "\udcff" for character in line):
        return line
    data = line.encode(sys.stdin.encoding or "utf-8", "surrogateescape")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        part = show(data[error.start : error.start + 4])
        raise NotText(f"the message is no UTF-8 at its byte {error.start}, {part}; it was left out") from None
