"""Texts from files as people may see them: whatever a file holds, a terminal shows it and does nothing else."""

from __future__ import annotations

import unicodedata


def one_line(text: str) -> str:
    """The text on one line, with `\\n` for the end of one: control characters of a terminal's are written out."""
    return "".join(c if c.isprintable() or _is_harmless(c) else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """The text with its lines, and spaces for tabs."""
    return "\n".join(one_line(line.expandtabs(8)) for line in text.split("\n"))


def _is_harmless(c: str) -> bool:
    """Spaces of any width, and what joins or parts letters of Persian, of pictures, or of a word at a line's end."""
    return c in "\u00ad\u200c\u200d" or unicodedata.category(c) == "Zs"
