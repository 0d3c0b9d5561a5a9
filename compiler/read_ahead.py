"""Have the system read a checkpoint while Python is still importing and tracing, which leaves the disk idle for seconds.

It runs before everything else, and imports nothing that takes time.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from pocketphi.compiler.memory import free_memory

_PIECE = 1 << 22
_AHEAD = 4 * _PIECE
"""Asked for and not read yet, at most: what others want from the disk queues behind it."""


def read_ahead(model: str) -> threading.Thread | None:
    """Start reading MODEL's weight files into the page cache, as far as half of the free memory holds them.

    A hint: what cannot be read is left to who needs it. None where MODEL has no files, or the system takes no such hints.
    """
    path = Path(model)
    paths = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.suffix == ".gguf" else []
    if not paths or not hasattr(os, "posix_fadvise"):
        return None
    thread = threading.Thread(target=_advise, args=(paths, free_memory() // 2), daemon=True)
    thread.start()
    return thread


def _advise(paths: list[Path], limit: int) -> None:
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return
        try:
            size = os.fstat(descriptor).st_size
            end = min(size, limit)
            for start in range(0, end, _PIECE):
                os.posix_fadvise(descriptor, start, _PIECE, os.POSIX_FADV_WILLNEED)
                if (behind := start - _AHEAD) >= 0:
                    os.pread(descriptor, 1, behind)
        finally:
            os.close(descriptor)
        limit -= size
        if limit <= 0:
            return
