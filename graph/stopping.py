"""Ctrl-C, a closed terminal and `kill`: a command stops with one line and exit code 130, wherever it is.

A signal is a KeyboardInterrupt, so that whoever has begun something cleans up. Only an import is never interrupted: libraries
turn the exception into errors of their own, or end the process in the middle of it. Where nothing is held (`held`), the
process simply ends then; elsewhere the exception comes as soon as the import is over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

LINE = "pocketphi: stopped; nothing was left half-written"
EXIT_CODE = 130
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_AGAIN = 0.05
"""Seconds until a signal that came during an import is looked at again."""


class _State:
    heard = 0
    last = 0
    holds = 0


def listen() -> None:
    """Hear the signals from now on; those that the caller has chosen to ignore (`nohup`) stay so. For a process of its own."""
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _hear)
    signal.signal(signal.SIGALRM, _again)
    sys.unraisablehook = _unraisable


def ignore() -> None:
    """For a worker process: its parent hears the signals too, and ends it."""
    for name in _SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """While the body runs, there is something to clean up."""
    _State.holds += 1
    try:
        yield
    finally:
        _State.holds -= 1


def done() -> None:
    """The work is over, and so is what could be stopped."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    ignore()


def obeyed() -> None:
    """What was asked to stop has stopped, and the process goes on, as a conversation does: the next signal is a first one."""
    _State.heard = 0


def is_for_all() -> bool:
    """Whether the process was told to end: by `kill`, or as the terminal was closed. Ctrl-C may be for a part of its work."""
    return _State.last not in (0, signal.SIGINT)


def was_heard() -> bool:
    """Whether a signal asked this process to stop: then any error is what became of it."""
    return _State.heard > 0


def end() -> NoReturn:
    """Say so and end the process at once. The terminal may be gone."""
    with contextlib.suppress(OSError):
        os.write(2, f"{LINE}\n".encode())
    os._exit(EXIT_CODE)


def _hear(number: int, frame: FrameType | None) -> None:
    """The first signal stops; the second changes nothing while the first is obeyed; the third ends the process."""
    _State.heard += 1
    _State.last = number
    if _State.heard > 2:
        end()
    if _State.heard == 1:
        _again(number, frame)


def _again(number: int, frame: FrameType | None) -> None:
    if not _importing(frame):
        raise KeyboardInterrupt
    if not _State.holds:
        end()
    signal.setitimer(signal.ITIMER_REAL, _AGAIN)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _unraisable(raised: Any) -> None:
    """A KeyboardInterrupt that came where none can be raised, in a finalizer, comes again."""
    if raised.exc_type is KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
    elif not was_heard():
        sys.__unraisablehook__(raised)
