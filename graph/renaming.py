"""Renames that the system does in one step and Python has no name for: never over something, and one against another."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
_AT_FDCWD = -100
_LINUX = {"new": 1, "exchange": 2}  # RENAME_NOREPLACE, RENAME_EXCHANGE of renameat2
_MACOS = {"new": 4, "exchange": 2}  # RENAME_EXCL, RENAME_SWAP of renamex_np


class Unsupported(OSError):
    """Neither the system nor the file system can do it in one step."""


def rename_new(source: Path, target: Path) -> None:
    """Rename, unless something is at `target`. Raises FileExistsError then.

    Where the file system cannot do it in one step, what appears at `target` in the moment between looking and renaming is
    replaced only if it is an empty folder (or a file, for a file): a full one makes the rename fail.
    """
    try:
        _rename("new", source, target)
    except Unsupported:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        try:
            os.rename(source, target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
            raise


def exchange(one: Path, other: Path) -> None:
    """Let two paths change places, so that each is always there. Raises Unsupported, FileNotFoundError and other OSErrors."""
    _rename("exchange", one, other)


def _rename(how: str, source: Path, target: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    old, new = os.fsencode(source), os.fsencode(target)
    try:
        if sys.platform == "darwin":
            failed = libc.renamex_np(old, new, _MACOS[how])
        else:
            failed = libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, _LINUX[how])
    except AttributeError:
        raise Unsupported(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if failed:
        code = ctypes.get_errno()
        kind = Unsupported if code in _UNSUPPORTED else OSError
        raise kind(code, os.strerror(code), str(target))
