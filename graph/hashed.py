"""A checkpoint that takes the BLAKE3 digest of what is read, on the way or ahead of it: the source is known by its bytes."""

from __future__ import annotations

import contextlib
import mmap
import threading
from pathlib import Path

import torch
from blake3 import blake3

from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.errors import InputError
from pocketphi.graph.packing import tensor_bytes
from pocketphi.graph.processes import beside

_SLOT = blake3().digest_size + 1


class HashedCheckpoint(Checkpoint):
    """Wraps a checkpoint. A tensor's digest is complete once its rows have been read in order, first to last, by one process;
    it then lies in memory that forked processes share."""

    def __init__(self, inner: Checkpoint) -> None:
        self._inner = inner
        self.wrap(inner, "tensors", "files", "forget_behind", "kept", "read_kept", "check_kept")
        self._next = dict.fromkeys(inner.tensors, 0)
        self._hashes = {name: blake3() for name in inner.tensors}
        self._slots = {name: _SLOT * i for i, name in enumerate(inner.tensors)}
        self._done = mmap.mmap(-1, _SLOT * len(self._slots))  # zeros; a slot is a digest and a 1
        self._lock = threading.Lock()
        self._opened = [_version(path) for path in self.files]

    @property
    def file_bytes(self) -> int:
        """Size of the files, as they were opened."""
        return sum(version[0] for version in self._opened if version)

    def ahead(self, limit: int) -> contextlib.AbstractContextManager[None]:
        """While its body works on something else, another process reads files and takes digests, `limit` bytes at most. What it
        comes to is then in the system's memory when it is read for good, and known."""
        return beside(lambda: self._digest_files(limit)) if self.files else contextlib.nullcontext()

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        rows = self._inner.read(name, start, stop)
        with self._lock:
            if not self._is_done(name):
                self._take(name, rows, start, stop)
        return rows

    def _take(self, name: str, rows: torch.Tensor, start: int, stop: int) -> None:
        """Add rows to a digest if they are the next ones. Row 0 begins anew: the first rows may have been looked at before."""
        if start == 0:
            self._hashes[name], self._next[name] = blake3(), 0
        if self._next[name] == start:
            self._next[name] = stop
            self._hashes[name].update(tensor_bytes(rows))
            if stop == self.tensors[name].rows:
                slot = self._slots[name]
                self._done[slot : slot + _SLOT - 1] = self._hashes[name].digest()
                self._done[slot + _SLOT - 1] = 1

    def digest(self, name: str) -> str:
        """BLAKE3 (hex) of a tensor's bytes as stored, or as float32 where it is packed; reads what was not read yet."""
        if not self._is_done(name):
            for _, stop in self.chunks(name):
                if stop > self._next[name]:
                    self.read(name, self._next[name], stop)
        slot = self._slots[name]
        return self._done[slot : slot + _SLOT - 1].hex()

    def digest_all(self) -> str:
        """One digest for the whole checkpoint: of its tensors' names and digests in order.

        Raises InputError where a file is no longer the one that was opened.
        """
        for path, opened in zip(self.files, self._opened):
            if _version(path) != opened:
                raise InputError(f"{path}: changed during the compile; start again when nothing writes to it")
        lines = "".join(f"{name} {self.digest(name)}\n" for name in self.tensors)
        return blake3(lines.encode()).hexdigest()

    def _is_done(self, name: str) -> bool:
        return self._done[self._slots[name] + _SLOT - 1] == 1

    def _digest_files(self, limit: int) -> None:
        sizes = {name: info.rows * info.columns for name, info in self.tensors.items()}
        left = sum(sizes.values()) * limit // self.file_bytes
        for name, size in sizes.items():
            left -= size
            if left < 0:
                return
            self.digest(name)


def _version(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written or replaced: its size, and its time in nanoseconds. None where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
