"""Stream weights to a file: each weight is computed chunk by chunk and written where it was planned to lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from blake3 import blake3

from pocketphi.graph.errors import CompilerBug, InputError
from pocketphi.graph.formats import PartSpec
from pocketphi.graph.lazy_weights import LazyWeight, combine
from pocketphi.graph.packing import tensor_bytes
from pocketphi.graph.processes import in_workers
from pocketphi.graph.writing import read_at, write_at

_LARGE, _LARGE_ALIGN, _SMALL_ALIGN = 1 << 16, 1 << 14, 1 << 6
"""Large tensors start on 16 KiB, the largest page of a phone, so that they can be mapped alone."""

_WORTH_A_PROCESS = 1 << 26
_HASHED_TOGETHER = 1 << 19

Progress = Callable[[int], None]
"""Called with the number of bytes just written; from any thread."""

Rows = dict[str, torch.Tensor]
Encode = Callable[[str, Rows], Rows]
"""Canonical rows of a weight → the rows to write, by the parts of the layout. Called in order, in any worker."""


@dataclass(frozen=True)
class Layout:
    """Where each part of each weight lies. offsets: (weight, part) → bytes from the start; size: of the whole file."""

    offsets: dict[tuple[str, str], int]
    size: int


class HasParts(Protocol):
    """A weight, or what a target makes of one."""

    @property
    def parts(self) -> Mapping[str, PartSpec]: ...


@dataclass(frozen=True)
class Stored:
    """A weight's parts as they lie in a file, where that is not in canonical form."""

    parts: Mapping[str, PartSpec]


def plan_layout(weights: Mapping[str, HasParts]) -> Layout:
    """Parts in order, one after the other, aligned."""
    offsets, end = {}, 0
    for name, weight in weights.items():
        for part, spec in weight.parts.items():
            align = _LARGE_ALIGN if spec.bytes >= _LARGE else _SMALL_ALIGN
            end = -(-end // align) * align
            offsets[name, part] = end
            end += spec.bytes
    return Layout(offsets, end)


@dataclass(frozen=True)
class Written:
    """digests: of each weight's canonical bytes (`digest`), whatever the encoding; sha256: of the file."""

    digests: dict[str, str]
    sha256: str


def write_weights(
    path: Path,
    weights: Mapping[str, LazyWeight],
    layout: Layout,
    progress: Progress,
    encode: Encode | None = None,
    between: Mapping[int, bytes] | None = None,
) -> Written:
    """Compute and write every weight. encode: None where rows stay in canonical form; between: what stands elsewhere in the
    file, by offset; all the rest are zeros.

    Two workers with a weight each, in the order of the file, whose SHA-256 follows them: processes for a large file, threads
    for a small one, whose bytes are written sooner than a process is made. Peak memory is a few chunks.
    """
    with path.open("w+b") as file:
        descriptor = file.fileno()
        os.truncate(descriptor, layout.size)  # not allocated: writing into allocated extents takes six times as long
        for at, data in (between or {}).items():
            write_at(descriptor, data, at)
        hashed = _FileHash(descriptor, weights, layout)

        def write(name: str, progress: Progress) -> str:
            return _write_weight(descriptor, name, weights[name], layout, progress, encode)

        long = layout.size >= _WORTH_A_PROCESS
        digests = in_workers(list(weights), write, progress, hashed.written, long=long)
        if (size := os.fstat(descriptor).st_size) != layout.size:
            raise CompilerBug(f"{path.name}: {size} bytes were written, {layout.size} were planned")
        return Written({name: digests[name] for name in weights}, hashed.hexdigest())


def _write_weight(
    descriptor: int, name: str, weight: LazyWeight, layout: Layout, progress: Progress, encode: Encode | None
) -> str:
    hashes = {part: blake3() for part in weight.parts}
    written: dict[str, int] = {}
    for start, stop in weight.chunks():
        rows = weight.read(start, stop)
        for part, tensor in rows.items():
            hashes[part].update(tensor_bytes(tensor))
        for part, tensor in (encode(name, rows) if encode else rows).items():
            data = tensor_bytes(tensor)
            at = layout.offsets[name, part] + written.get(part, 0)
            write_at(descriptor, data, at)
            written[part] = written.get(part, 0) + len(data)
            progress(len(data))
    return combine(hashes)


class _FileHash:
    """SHA-256 of a file while it is written: of as much from its beginning on as is complete."""

    def __init__(self, descriptor: int, weights: Iterable[str], layout: Layout) -> None:
        self._descriptor, self._size = descriptor, layout.size
        self._hash, self._at = hashlib.sha256(), 0
        self._open = dict.fromkeys(weights, layout.size)
        for (name, _), offset in layout.offsets.items():
            if name in self._open:  # the layout may have what is no weight, too
                self._open[name] = min(self._open[name], offset)

    def written(self, name: str) -> None:
        """A weight is complete: hash on to the first that is not."""
        del self._open[name]
        self._advance(min(self._open.values(), default=self._size))

    def hexdigest(self) -> str:
        self._advance(self._size)
        return self._hash.hexdigest()

    def _advance(self, end: int) -> None:
        while self._at < end:
            wanted = min(_HASHED_TOGETHER, end - self._at)
            data = read_at(self._descriptor, wanted, self._at)
            if len(data) < wanted:
                raise InputError(
                    f"a file that is being written ended at byte {self._at + len(data)}: another process cut it"
                )
            self._hash.update(data)
            self._at += len(data)
