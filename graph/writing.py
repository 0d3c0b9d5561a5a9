"""Write files that are either whole or not there: beside their place, and renamed at the end."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from pocketphi.graph.errors import InputError
from pocketphi.graph.locks import ATTEMPTS, Lock, is_at, release, try_lock

Buffer = bytes | bytearray | memoryview


def write_at(descriptor: int, data: Buffer, at: int) -> None:
    """Write all of `data` at an offset: the system may take less at a time than it is given. Raises OSError."""
    left = memoryview(data).cast("B")
    while left:
        written = os.pwrite(descriptor, left, at)
        left, at = left[written:], at + written


def read_at(descriptor: int, size: int, at: int) -> bytearray:
    """`size` bytes from an offset on, fewer where the file ends; the system may give less at a time than it is asked for."""
    data = bytearray(size)
    return data[: read_into(descriptor, memoryview(data), at)]


def read_into(descriptor: int, buffer: memoryview, at: int) -> int:
    """Fill `buffer` from an offset on; how many bytes came before the file's end."""
    got = 0
    while got < len(buffer):
        more = os.preadv(descriptor, [buffer[got:]], at + got)
        if not more:
            break
        got += more
    return got


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that replaces `path` when the block ends without an error, and vanishes otherwise. A link stays one. What is no
    ordinary file, such as /dev/stdout, is written to directly. Raises OSError."""
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    remove_left_over(target.parent, target.name)
    partial, descriptor = _locked(target)
    try:
        if target.exists():
            os.fchmod(descriptor, stat.S_IMODE(target.stat().st_mode))
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            yield file
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
        release(descriptor)


def write_whole(path: Path, data: str | Buffer, what: str = "") -> None:
    """Write a file at once: it holds what it held before, or all of `data` (text as UTF-8).

    what: the option that named it, for the message. Raises InputError where it cannot be written.
    """
    try:
        with new_file(path) as file:
            file.write(data.encode() if isinstance(data, str) else data)
    except OSError as error:
        raise InputError(f"{what} {path}: cannot be written: {error.strerror}".lstrip()) from None


def check_writable(path: Path, what: str) -> None:
    """Raise InputError where `write_whole` could write no file: to be asked before the work whose result it will be."""
    if path.exists() and not path.is_file() and not path.is_dir():
        return  # /dev/stdout
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        target = Path(os.path.realpath(path))
        with held_file(target.parent, target.name):
            pass
    except OSError as error:
        raise InputError(f"{what} {path}: cannot be written: {error.strerror}") from None


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """By name, which may lie in a folder of its own."""
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def partial_name(name: str) -> str:
    """A name of its own for what will be `name`; `left_over_names` finds it."""
    return f".{name}.{secrets.token_hex(8)}.partial"


def left_over_names(folder: Path, name: str | None) -> list[Path]:
    """What lies in a folder under a name that `partial_name` gave, for `name`, or for any if None."""
    of = ".+" if name is None else re.escape(name)
    pattern = re.compile(rf"\.?{of}\.[0-9a-f]+\.partial", re.DOTALL)
    try:
        return [folder / found for found in os.listdir(folder) if pattern.fullmatch(found)]
    except OSError:
        return []


def remove_left_over(folder: Path, name: str | None) -> None:
    """Delete the files that processes left which were killed while writing `name`, or any file if None."""
    for path in left_over_names(folder, name):
        with contextlib.suppress(OSError):
            if not stat.S_ISREG(path.lstat().st_mode):
                continue
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if try_lock(descriptor) is Lock.OURS and is_at(descriptor, path):
                    path.unlink()
            finally:
                release(descriptor)


@contextlib.contextmanager
def held_file(folder: Path, name: str) -> Iterator[Path]:
    """A file with its own name as its content, which is there while the body runs. Where the process is killed meanwhile,
    `remove_left_over` takes it away. Raises OSError."""
    path, descriptor = _locked(folder / name)
    try:
        write_at(descriptor, path.name.encode(), 0)
        yield path
    finally:
        path.unlink(missing_ok=True)
        release(descriptor)


def _locked(target: Path) -> tuple[Path, int]:
    for _ in range(ATTEMPTS):
        path = target.parent / partial_name(target.name)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        if try_lock(descriptor) is not Lock.HELD and is_at(descriptor, path):
            return path, descriptor
        release(descriptor)
    raise OSError(errno.EAGAIN, "another process removes what is begun there")
