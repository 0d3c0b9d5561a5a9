"""Files that others wrote: read once, typed, and every fault an InputError that names the file and the place in it.

JSON goes through pydantic's parser, whose depth is bounded and which refuses what Python cannot hold: numbers of thousands of
digits, half of a surrogate pair. A schema is a frozen dataclass; `typed` makes one from what a file says.
"""

from __future__ import annotations

import difflib
import errno
import functools
import os
import stat
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pocketphi.graph.errors import InputError

T = TypeVar("T")

LARGEST = 1 << 28
"""Bytes of the largest file that is read whole: a tokenizer of a million tokens has a tenth of it."""

_SHOWN = 60
_FEW_BRACKETS = 100_000


def show(value: object, most: int = _SHOWN) -> str:
    """A value from a file as it stands in a message: its repr on one line, cut after `most` characters."""
    if isinstance(value, str | bytes):
        value = value[: most + 1]  # the repr of a large one would be made whole first
    elif isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    elif isinstance(value, list | tuple | dict) and len(value) > most:
        return f"{type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= most else text[:most] + "…"


def named(value: object) -> str:
    """A name from a file as it stands in a message: as it is where it is short and printable, else as `show` has it."""
    text = str(value)
    return text if text.isprintable() and len(text) <= _SHOWN else show(text)


def either(names: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def some(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean …?`, or the choices."""
    choices = list(known)
    close = difflib.get_close_matches(name[:60], choices, n=1)
    return f"did you mean {close[0]}?" if close else f"expected one of {', '.join(choices)}"


def path_of(text: str | Path) -> Path:
    """The path of this name. Raises InputError for an empty one, which pathlib takes for the current folder."""
    if text == "":
        raise InputError("an empty name: expected a file or a folder")
    return Path(text)


def place_of(text: str | Path) -> Path:
    """The path of something that will be made, without `..`: that leads elsewhere once the folder before it exists.

    Raises InputError as `path_of` and `resolved` do.
    """
    path = path_of(text)
    return resolved(path) if ".." in path.parts else path


def read_whole(path: Path, what: str = "", limit: int = LARGEST) -> bytes:
    """The content of a regular file. what: what the user lacks where it is missing, for the message.

    Raises InputError where it is missing, cannot be read, is no file, or is larger than `limit` bytes.
    """
    try:
        # without waiting for the writer of a pipe
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path}: expected a file")
            if status.st_size > limit:
                raise InputError(f"{path}: {status.st_size:,} bytes, expected {limit:,} at most")
            return file.read()
    except OSError as error:
        if lost := lost_link(path):
            raise lost from None
        if isinstance(error, FileNotFoundError):
            raise InputError(f"{path}: no such file{'; ' + what if what else ''}") from None
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def parse_json(content: bytes, where: str) -> Any:
    """A JSON text as Python values. Raises InputError for anything that is not one, is nested deeper than 200, or is mostly
    brackets: an empty list takes 2 bytes of a file, and 20 times as many of memory."""
    from pydantic_core import from_json

    brackets = content.count(b"[") + content.count(b"{")
    if brackets > _FEW_BRACKETS + len(content) // 8:
        raise InputError(
            f"{where}: {brackets:,} lists and objects in {len(content):,} bytes, which is no file of a model"
        )
    try:
        return from_json(content, allow_inf_nan=True)
    except ValueError as error:
        if is_lfs_pointer(content):
            raise lfs_pointer(where) from None
        raise InputError(f"{where}: not valid JSON ({error})") from None


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """A JSON object. Raises InputError for anything else."""
    data = parse_json(content, where)
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(data).__name__}")
    return data


def read_json(path: Path, what: str = "") -> dict[str, Any]:
    """The JSON object in a file; see `read_whole` and `parse_object`."""
    return parse_object(read_whole(path, what), str(path))


def parse_toml(content: bytes, where: str) -> dict[str, Any]:
    """A TOML document. Raises InputError for anything that is not one."""
    try:
        return tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise InputError(f"{where}: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{where}: not valid TOML ({error})") from None


def typed(kind: type[T], value: object, where: str) -> T:
    """What a file says as a value of `kind`: a dataclass, whose fields are the schema, or any other type.

    Nothing is converted (a number in quotes is a text) but lists to tuples and whole numbers to floats; keys that the
    dataclass does not name are left out. Raises InputError naming the first place that does not fit.
    """
    from pydantic import ValidationError
    from pydantic_core import to_json

    try:  # by way of JSON: its strict mode takes a list for a tuple, and an object for a dataclass
        adapter: Any = _adapter(kind)  # type: ignore[arg-type]  # types can be hashed; mypy 2.4 does not know
        return adapter.validate_json(to_json(value, inf_nan_mode="constants"), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "content"
        place = place if len(place) <= 200 and place.isprintable() else show(place)
        came = "" if first["type"] == "missing" else f", got {show(first['input'])}"
        raise InputError(f"{where}: {place}: {first['msg'][:1].lower()}{first['msg'][1:]}{came}") from None


def file_inside(folder: Path, name: str, where: str, follow: bool = False) -> Path:
    """The file that an index or a manifest names, relative to its folder.

    follow: let a symbolic link lead out of the folder, as in the cache of Hugging Face's hub; the name itself may not.

    Raises InputError for an absolute name, one with `..`, one that no file can have or no line can show, or a link that leads
    outside.
    """
    path = Path(name)
    if len(name) > 1024 or not name or not name.isprintable():
        raise InputError(f"{where}: names {show(name)}, which cannot be the name of a file")
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{where}: names {show(name)}, which lies outside of {folder}")
    found = folder / path
    if not follow and (_is_loop(found) or not found.resolve().is_relative_to(folder.resolve())):
        raise InputError(f"{found}: a link that leads out of {folder}; put the file itself there")
    return found


def size_inside(folder: Path, name: str) -> int:
    """Bytes of a file of a bundle. Raises InputError where there is none, or a link leads outside; see `file_inside`."""
    path = file_inside(folder, name, str(folder))
    if not path.is_file():
        raise InputError(f"{path}: no such file; copy or compile it again")
    return path.stat().st_size


def lost_link(path: Path) -> InputError | None:
    """The error for a symbolic link that leads to nothing, or to itself; None for anything else."""
    if not os.path.islink(path) or os.path.exists(path):
        return None
    return InputError(
        f"{path}: a link to {named(os.readlink(path))}, which is not there; put the file itself in its place"
    )


def resolved(path: Path) -> Path:
    """The path without links. Raises InputError for a link that leads to itself: Python raises what is no OSError."""
    if _is_loop(path):
        raise InputError(f"{path}: a link that leads to itself; remove it")
    return path.resolve()


def _is_loop(path: Path) -> bool:
    """Whether it is a link that leads to itself, which `resolve` of Python 3.13 does not say any more."""
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def is_lfs_pointer(content: bytes) -> bool:
    """Whether Git LFS left this in place of a file's content."""
    return content[:8] == b"version " and b"git-lfs" in content[:100]


def lfs_pointer(where: str) -> InputError:
    """The error for a file that Git LFS left in place of its content."""
    return InputError(f"{where}: a Git LFS pointer, not the file itself; run 'git lfs pull' in its folder")


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
