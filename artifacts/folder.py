"""Folders that are either complete or not there: written beside their place and renamed at the end."""

from __future__ import annotations

import contextlib
import errno
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
    path = path.absolute()
    partial = path.parent / f".{path.name}.partial"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
        partial.mkdir()
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        free = shutil.disk_usage(partial).free
        if free < needed_bytes:
            raise InputError(f"{path}: needs {needed_bytes:,} bytes, the disk has {free:,} free; choose another -o")
        yield partial
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise _unwritable(path, error) from None
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unwritable(path: Path, error: OSError) -> InputError:
    reason = f"{path.parent} is not a folder" if path.parent.is_file() else error.strerror
    return InputError(f"{path}: cannot be written: {reason}; choose another -o")
