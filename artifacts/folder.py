"""Folders that are either complete or not there: made beside their place and put there at the end, in one step.

Beside `out` stands `.out.TOKEN.partial` meanwhile. In it are `lock`, which the process holds as long as it lives, `new`, the
folder that is being made, and `old`, the one that it replaces, where the file system cannot let the two change places.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pocketphi.graph.errors import CannotWrite, InputError
from pocketphi.graph.locks import ATTEMPTS, Lock, is_at, release, try_lock
from pocketphi.graph.reading import resolved
from pocketphi.graph.renaming import Unsupported, exchange, rename_new
from pocketphi.graph.stopping import held
from pocketphi.graph.writing import left_over_names, partial_name

_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG),
    *(errno.EIO, errno.ESTALE, errno.ENAMETOOLONG),
)
_INSTEAD = "choose another -o"


@contextlib.contextmanager
def new_folder(path: Path, needed_bytes: int, replace: bool = False) -> Iterator[Path]:
    """A folder that is put at `path` when the block ends without an error, and vanishes otherwise.

    replace: what stands at `path` then may be replaced; it stands there until the new folder does. Raises InputError where it
    may not be, where the folder cannot be written, or where the disk has less free space than needed.
    """
    path = resolved(path)
    with held(), workspace(path) as work:
        made = work / "new"
        try:
            made.mkdir()
            free = shutil.disk_usage(made).free
            if free < needed_bytes:
                raise CannotWrite(f"{path}: needs {needed_bytes:,} bytes, the disk has {free:,} free", _INSTEAD)
            yield made
            put(made, path, work, replace)
        except OSError as error:
            if error.errno in _DISK_ERRORS:
                raise _unwritable(path, error) from None
            if not made.is_dir():
                raise InputError(f"{path}: its folder was removed while it was made; make it again") from None
            raise


@contextlib.contextmanager
def workspace(path: Path, instead: str = _INSTEAD) -> Iterator[Path]:
    """A folder beside `path` for what is being made, on the same disk; removed at the end, with what was left by processes that
    were killed while making `path`. instead: what a user can do where there can be none: InputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left_over(path.parent, path.name)
        work, lock = _locked(path)
    except OSError as error:
        raise _unwritable(path, error, instead) from None
    try:
        yield work
    finally:
        release(lock)
        shutil.rmtree(work, ignore_errors=True)


def remove_left_over(folder: Path, name: str | None = None) -> None:
    """Delete what processes left that were killed while making `name`, or anything in this folder if None. A folder that one
    had moved aside goes back where nothing took its place."""
    for path in left_over_names(folder, name):
        with contextlib.suppress(OSError):
            if path.is_symlink() or not path.is_dir():
                continue
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                if try_lock(lock) is not Lock.OURS or not is_at(lock, path / "lock"):
                    continue
                own_name = path.name[1:].rsplit(".", 2)[0]
                with contextlib.suppress(OSError):
                    rename_new(path / "old", folder / own_name)
                doomed = folder / partial_name(own_name)  # whoever has just made it sees that it is gone
                path.rename(doomed)
            finally:
                release(lock)
            shutil.rmtree(doomed, ignore_errors=True)


def _locked(path: Path) -> tuple[Path, int]:
    """A workspace and the descriptor of its lock."""
    for _ in range(ATTEMPTS):
        work = path.parent / partial_name(path.name)
        work.mkdir()
        try:
            lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # another process took it for left over, before it was locked
            continue
        except OSError:
            shutil.rmtree(work, ignore_errors=True)
            raise
        if try_lock(lock) is not Lock.HELD and is_at(lock, work / "lock"):
            return work, lock
        release(lock)
    raise OSError(errno.EAGAIN, "another process removes what is begun there")


def put(made: Path, path: Path, work: Path, replace: bool) -> None:
    """Put a folder where `path` is; what was there lies in the workspace then. Raises InputError where something is there that
    may not be replaced."""
    aside = work / "old"
    while True:
        try:
            rename_new(made, path)
            return
        except FileExistsError:
            if not replace:
                raise InputError(
                    f"{path}: another process has made it meanwhile; choose another -o or pass --force to replace it"
                ) from None
        try:
            exchange(made, path)
            return
        except FileNotFoundError:
            if not made.is_dir():
                raise
        except Unsupported:
            path.rename(aside)
            try:
                made.rename(path)
            except BaseException:
                aside.rename(path)
                raise
            return


def _unwritable(path: Path, error: OSError, instead: str = _INSTEAD) -> CannotWrite:
    reason = f"{path.parent} is not a folder" if path.parent.is_file() else error.strerror
    return CannotWrite(f"{path}: cannot be written: {reason}", instead)
