"""Locks that end with their process, however it ends: what is locked is in progress, what is not was left by a dead process.

Process numbers tell nothing: on a volume that containers share, several processes have the same one. `flock` works between
containers, and over NFS (Linux 2.6.12 and newer) between machines. Where a file system has no locks, nothing is ever taken
for left over.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
from pathlib import Path

ATTEMPTS = 20
"""Names that are tried for something new, each of which another process may take for left over before it is locked."""


class Lock(enum.Enum):
    """What came of trying: OURS; HELD by another process; NONE, where the file system has no locks."""

    OURS = enum.auto()
    HELD = enum.auto()
    NONE = enum.auto()


_ours: set[int] = set()


def try_lock(descriptor: int) -> Lock:
    """Lock an open file until `release`, or until this process ends: processes that are forked from it do not hold it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return Lock.HELD if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else Lock.NONE
    _ours.add(descriptor)
    return Lock.OURS


def release(descriptor: int) -> None:
    """Close the file, and with it the lock."""
    _ours.discard(descriptor)
    os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one at `path`: another process may have taken it for left over before it was locked."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _close_in_child() -> None:
    """A forked process has the descriptors too, and would keep the locks of a parent that was killed."""
    for descriptor in _ours:
        os.close(descriptor)
    _ours.clear()


os.register_at_fork(after_in_child=_close_in_child)
