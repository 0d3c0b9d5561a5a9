"""Files that others wrote: each fault is an InputError that names the file and the place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import (
    file_inside,
    parse_json,
    parse_object,
    parse_toml,
    read_json,
    read_whole,
    show,
    typed,
)


@dataclass(frozen=True)
class _Point:
    x: int
    y: float = 0.0
    names: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "recursion limit"),
        (b"9" * 5000, "not valid JSON"),
        (b'"\\ud800"', "not valid JSON"),
        (b'"\xff"', "not valid JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer"),
    ],
)
def test_json_that_is_none(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=f"^a.json: .*{message}"):
        parse_json(content, "a.json")


def test_an_object_is_asked_for() -> None:
    with pytest.raises(InputError, match=r"a\.json: expected a JSON object, got list"):
        parse_object(b"[1]", "a.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a = " + b"[" * 100_000, "nested too deeply"), (b"a = \xff", "byte 4"), (b"a", "not valid TOML")],
)
def test_toml_that_is_none(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=f"^a.toml: .*{message}"):
        parse_toml(content, "a.toml")


def test_typed_values() -> None:
    assert typed(_Point, {"x": 1, "y": 2, "names": ["a"], "more": {}}, "f") == _Point(1, 2.0, ("a",))
    assert typed(dict[str, int], {"a": 1}, "f") == {"a": 1}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "f: x: field required$"),
        ({"x": "1"}, "f: x: input should be a valid integer, got '1'$"),
        ({"x": True}, "f: x: input should be a valid integer, got True$"),
        ({"x": 1.0}, "f: x: input should be a valid integer, got 1.0$"),
        ({"x": 1, "names": ["a", 5]}, "f: names.1: input should be a valid string, got 5$"),
        ([], "f: content: input should be a dictionary or an instance of _Point, got list of 0|f: content: .*"),
        ({"x": "a" * 5000}, "f: x: .{0,200}$"),
    ],
)
def test_typed_values_that_do_not_fit(value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        typed(_Point, value, "f")


def test_json_that_is_mostly_brackets() -> None:
    """A tokenizer's merges are the densest that there is: a list for ten bytes."""
    merges = b"[" + b'["a","b"],' * 200_000 + b"[]]"
    assert len(parse_json(merges, "f")) == 200_001
    for kind in (b"[],", b"{},"):
        with pytest.raises(InputError, match=r"^f: 200,002 lists and objects in 600,004 bytes"):
            parse_json(b"[" + kind * 200_000 + b"{}]", "f")


def test_values_in_messages_are_short() -> None:
    assert show("it's") == '"it\'s"'
    for value in ("x" * 5000, 10**5000, list(range(5000)), {i: i for i in range(5000)}, [["x" * 5000]]):
        assert len(show(value)) < 80


def test_a_file_that_is_missing_or_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.json: no such file; a model has one"):
        read_json(tmp_path / "a.json", "a model has one")
    with pytest.raises(InputError, match="cannot be read \\(Is a directory\\)"):
        read_whole(tmp_path)
    (tmp_path / "large").write_bytes(bytes(20))
    with pytest.raises(InputError, match="20 bytes, expected 10 at most"):
        read_whole(tmp_path / "large", limit=10)
    with pytest.raises(InputError, match="cannot be read \\(File name too long\\)"):
        read_whole(tmp_path / ("x" * 5000))


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a", "a/../../b", "", "a\0b", "a\nb", "a\u2028b", "\ud800", "x" * 5000]
)
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"^index: names '"):
        file_inside(tmp_path, name, "index")


def test_links_that_lead_out(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (tmp_path / "outside").write_text("")
    (folder / "own").write_text("")
    os.symlink("../outside", folder / "out")
    os.symlink("own", folder / "within")
    os.symlink("loop", folder / "loop")
    assert file_inside(folder, "within", "manifest") == folder / "within"
    assert file_inside(folder, "out", "index", follow=True) == folder / "out"
    for name in ("out", "loop"):
        with pytest.raises(InputError, match=f"{name}: a link that leads out of "):
            file_inside(folder, name, "manifest")
