"""A checkpoint that takes the BLAKE3 digest of what is read, on the way: the source is read once, and known by its bytes."""

from __future__ import annotations

import mmap
import threading

import torch
from blake3 import blake3

from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.int4 import Int4, tensor_bytes

_SLOT = blake3().digest_size + 1


class HashedCheckpoint(Checkpoint):
    """Wraps a checkpoint. A tensor's digest is complete once its rows have been read in order, first to last, by one process;
    it then lies in memory that forked processes share."""

    def __init__(self, inner: Checkpoint) -> None:
        self._inner = inner
        self.label, self.config, self.tensors = inner.label, inner.config, inner.tensors
        self.tokenizer_files = inner.tokenizer_files  # type: ignore[method-assign]
        self._next = dict.fromkeys(inner.tensors, 0)
        self._hashes = {name: blake3() for name in inner.tensors}
        self._slots = {name: _SLOT * i for i, name in enumerate(inner.tensors)}
        self._done = mmap.mmap(-1, _SLOT * len(self._slots))  # zeros; a slot is a digest and a 1
        self._lock = threading.Lock()

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        rows = self._inner.read(name, start, stop)
        with self._lock:
            in_order = self._next[name] == start
            if in_order:
                self._next[name] = stop
        if in_order:
            self._hashes[name].update(tensor_bytes(rows))
            if stop == self.tensors[name].rows:
                slot = self._slots[name]
                self._done[slot : slot + _SLOT - 1] = self._hashes[name].digest()
                self._done[slot + _SLOT - 1] = 1
        return rows

    def int4_kind(self, name: str) -> str | None:
        return self._inner.int4_kind(name)

    def read_int4(self, name: str, start: int, stop: int) -> Int4:
        return self._inner.read_int4(name, start, stop)

    def digest(self, name: str) -> str:
        """BLAKE3 (hex) of a tensor's bytes as stored, or as float32 where it is packed; reads what was not read yet."""
        slot = self._slots[name]
        if not self._done[slot + _SLOT - 1]:
            for _, stop in self.chunks(name):
                if stop > self._next[name]:
                    self.read(name, self._next[name], stop)
        return self._done[slot : slot + _SLOT - 1].hex()

    def digest_all(self) -> str:
        """One digest for the whole checkpoint: of its tensors' names and digests in order."""
        lines = "".join(f"{name} {self.digest(name)}\n" for name in self.tensors)
        return blake3(lines.encode()).hexdigest()
