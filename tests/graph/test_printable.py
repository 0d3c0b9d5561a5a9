"""Texts from files for a terminal: what it would obey is written out, what people write stays."""

from __future__ import annotations

from pocketphi.graph.errors import InputError
from pocketphi.graph.printable import one_line, printable_lines


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert one_line("a\x1b[2J\r\n\x07\x9b\u2028\u202e\udcff") == r"a\x1b[2J\r\n\x07\x9b\u2028\u202e\udcff"
    assert printable_lines("a\tb\n\x1b\n") == "a       b\n\\x1b\n"
    assert str(InputError("a\nb")) == r"a\nb"


def test_what_people_write_stays() -> None:
    text = "10\xa0km \u3000東京 \u0645\u06cc\u200c\u062e \N{FAMILY}\u200d e\u0301 co\xadop"
    assert one_line(text) == text
