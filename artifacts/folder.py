"""Folders that are either complete or not there: written beside their place and renamed at the end."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pocketphi.graph.errors import InputError

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG)


@contextlib.contextmanager
def new_folder(path: Path, needed_bytes: int) -> Iterator[Path]:
    """A temporary folder that replaces `path` when the block ends without an error, and vanishes otherwise.

    Raises InputError when it cannot be written or the disk has less free space than needed.
    """
    path = path.resolve()
    partial = path.parent / f".{path.name}.{os.getpid()}.partial"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(path)
        partial.mkdir()
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        free = shutil.disk_usage(partial).free
        if free < needed_bytes:
            raise InputError(f"{path}: needs {needed_bytes:,} bytes, the disk has {free:,} free; choose another -o")
        yield partial
        _swap(partial, path)
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise _unwritable(path, error) from None
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(made: Path, path: Path) -> None:
    """Put `made` where `path` is; what was there goes only after that."""
    old = path.parent / f".{path.name}.{os.getpid()}.old"
    if path.exists():
        path.rename(old)
    made.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _remove_left_over(path: Path) -> None:
    """Delete what processes left that were killed while making the same folder."""
    for found in path.parent.glob(f".{path.name}.*.partial"):
        pid = found.name.split(".")[-2]
        if pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(found, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _unwritable(path: Path, error: OSError) -> InputError:
    reason = f"{path.parent} is not a folder" if path.parent.is_file() else error.strerror
    return InputError(f"{path}: cannot be written: {reason}; choose another -o")
