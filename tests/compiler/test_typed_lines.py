"""What a pipe may bring to `pocketphi chat`: any bytes, under any locale."""

from __future__ import annotations

import io
import sys

import pytest

from pocketphi.compiler.typed_lines import NotText, messages, text_of


def lines(data: bytes, encoding: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of the lines; of one that is none, what is said of it."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding, newline="\n"))
    found = []
    for line in messages():
        try:
            found.append(text_of(line))
        except NotText as error:
            found.append(str(error))
    return found


MARK = b"\xef\xbb\xbf"
BAD = "the message is no UTF-8 at its byte 1, b'\\xff'; it was left out"


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", []),
        (b" \n\t\n", []),
        (b"one\ntwo", ["one", "two"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (MARK + b"one\n" + MARK + b"two\n", ["one", "\ufefftwo"]),
        ("日\n".encode(), ["日"]),
        (b"a\xff\nb\n", [BAD, "b"]),
        (b"a\0b\n", ["a\0b"]),
        (b"x" * 10**6, ["x" * 10**6]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_lines(encoding: str, data: bytes, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(data, encoding, monkeypatch) == found


def test_another_encoding_is_the_users_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(b"caf\xe9\n", "latin-1", monkeypatch) == ["café"]
