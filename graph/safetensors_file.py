"""safetensors files: their headers, checked as safetensors' own reader checks them, and rows of their tensors by `pread`.

That reader maps the file: the mapped pages of a 7.6 GB checkpoint would count as resident memory of the compile.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from pocketphi.graph.checkpoint import TensorInfo
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import PartSpec
from pocketphi.graph.packing import tensor_bytes
from pocketphi.graph.reading import lfs_pointer, parse_object, show, typed
from pocketphi.graph.writing import read_into

DTYPES = {"BF16": ("bf16", torch.bfloat16), "F16": ("fp16", torch.float16), "F32": ("fp32", torch.float32)}
"""What is read: name in the file → name in `TensorInfo`, dtype."""
_READ = {name: dtype for name, (_, dtype) in DTYPES.items()}
_READ |= {"I8": torch.int8, "I32": torch.int32, "U32": torch.int32, "I64": torch.int64}
"""And of what packed weights are made of; the bits of a U32 are those of an int32."""
_NAMES = {**{dtype: name for name, (_, dtype) in DTYPES.items()}, torch.uint8: "U8"}

_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
_BITS |= {"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64}
_BITS |= {"C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_LONGEST_HEADER = 1 << 23  # 50,000 tensors; Phi-3 has 200
_STRIP, _STRIPS = 1 << 22, 3 << 23
"""Bytes of a strip of columns, and of all that are kept."""
_AHEAD = 1 << 22
"""Bytes of a tensor that are asked for before they are read."""

_WILL_NEED, _DO_NOT_NEED = (getattr(os, f"POSIX_FADV_{name}", None) for name in ("WILLNEED", "DONTNEED"))
_Number = Annotated[int, Field(ge=0, le=1 << 62)]
Version = tuple[int, int, int, int]
"""Device, inode, size and time of a file: other ones where it is written or replaced."""


@dataclass(frozen=True)
class _Entry:
    """A tensor in a header; offsets count from the header's end."""

    dtype: str
    shape: Annotated[tuple[_Number, ...], Field(max_length=16)]
    data_offsets: tuple[_Number, _Number]


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies. dtype: as the file names it."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def info(self) -> TensorInfo:
        return TensorInfo(self.shape, DTYPES[self.dtype][0])

    def in_rows(self) -> Stored:
        """The tensor with the rows of all of its blocks [B, R, K] one after the other: [B · R, K]."""
        return replace(self, shape=(self.shape[0] * self.shape[1], self.shape[2])) if len(self.shape) > 2 else self


@dataclass(frozen=True)
class SafetensorsFile:
    """One file and the tensors that it holds. version: as it was when its header was read."""

    path: Path
    version: Version
    tensors: Mapping[str, Stored]

    @staticmethod
    def open(path: Path) -> SafetensorsFile:
        """Read the header: u64 length, JSON, then the data (https://github.com/huggingface/safetensors#format).

        Raises InputError for a file that is missing or cut, and for whatever safetensors' own reader refuses.
        """
        try:
            if not path.is_file():  # before it is opened: a pipe would wait for its writer
                raise InputError(f"{path}: this file is missing; download the checkpoint again")
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                text = file.read(_header_length(file.read(8), status.st_size, path))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        return SafetensorsFile(path, _version_of(status), _tensors(path, text, status.st_size))


class RowReader:
    """Rows of the tensors in some files. Safe to call from several threads, and in forked processes.

    Each process opens the files for itself: the system reads ahead by descriptor, and two readers would confuse it.
    """

    def __init__(self, files: Mapping[Path, Version]) -> None:
        self.forgets = False
        self._versions = dict(files)
        self._descriptors: dict[tuple[int, Path], int] = {}
        self._lock, self._strip_lock = threading.Lock(), threading.Lock()
        self._strips: dict[tuple[int, Path, int, int], torch.Tensor] = {}

    def read(self, stored: Stored, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) as stored. Raises InputError where the file is no longer the one that was opened."""
        dtype = _READ[stored.dtype]
        row = math.prod(stored.shape[1:]) * dtype.itemsize
        want = (stop - start) * row
        buffer = torch.empty(want, dtype=torch.uint8)
        end, at = stored.offset + stored.shape[0] * row, stored.offset + start * row
        ahead = at + _AHEAD if start else at
        try:
            descriptor = self._descriptor(stored.file)
            _advise(descriptor, ahead, min(at + want + _AHEAD, end) - ahead, _WILL_NEED)
            got = read_into(descriptor, tensor_bytes(buffer), at)
            changed = _version_of(os.fstat(descriptor)) != self._versions[stored.file]
            if self.forgets and at + want == end:
                _advise(descriptor, stored.offset, end - stored.offset, _DO_NOT_NEED)
        except OSError as error:
            raise InputError(f"{stored.file}: cannot be read ({error.strerror})") from None
        if changed or got != want:
            raise _changed(stored, name)
        return buffer.view(dtype).view(stop - start, *stored.shape[1:])

    def read_columns(self, stored: Stored, name: str, start: int, stop: int) -> torch.Tensor:
        """Columns [start, stop) of all rows of a matrix [R, C], as stored: [R, stop - start].

        They are read in strips of some megabytes, of which the last are kept: what lies across the rows is asked for a few
        columns at a time. Raises InputError as `read` does.
        """
        size = _READ[stored.dtype].itemsize
        rows, columns = stored.shape
        width = max(64, _STRIP // max(1, rows * size) // 64 * 64)
        strips = []
        for first in range(start // width * width, max(stop, start + 1), width):
            strip = self._strip(stored, name, first, min(first + width, columns))
            strips.append(strip[:, max(start - first, 0) : stop - first])
        return strips[0] if len(strips) == 1 else torch.cat(strips, 1)

    def _strip(self, stored: Stored, name: str, start: int, stop: int) -> torch.Tensor:
        key = os.getpid(), stored.file, stored.offset, start
        with self._strip_lock:
            if key in self._strips:
                self._strips[key] = self._strips.pop(key)
                return self._strips[key]
            if (start, stop) == (0, stored.shape[1]):
                made = self.read(stored, name, 0, stored.shape[0])
            else:
                made = self._read_strip(stored, name, start, stop)
            self._strips[key] = made
            while sum(strip.nbytes for strip in self._strips.values()) > _STRIPS and len(self._strips) > 1:
                del self._strips[next(iter(self._strips))]
            return made

    def _read_strip(self, stored: Stored, name: str, start: int, stop: int) -> torch.Tensor:
        dtype = _READ[stored.dtype]
        rows, columns = stored.shape
        buffer = torch.empty(rows, (stop - start) * dtype.itemsize, dtype=torch.uint8)
        view, want, got = tensor_bytes(buffer), buffer.shape[1], 0
        try:
            descriptor = self._descriptor(stored.file)
            for row in range(rows):
                at = stored.offset + (row * columns + start) * dtype.itemsize
                got += read_into(descriptor, view[row * want : (row + 1) * want], at)
            changed = _version_of(os.fstat(descriptor)) != self._versions[stored.file]
        except OSError as error:
            raise InputError(f"{stored.file}: cannot be read ({error.strerror})") from None
        if changed or got != rows * want:
            raise _changed(stored, name)
        return buffer.view(dtype)

    def _descriptor(self, path: Path) -> int:
        key = os.getpid(), path
        with self._lock:
            if key not in self._descriptors:
                self._descriptors[key] = os.open(path, os.O_RDONLY)
            return self._descriptors[key]

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)


def _changed(stored: Stored, name: str) -> InputError:
    return InputError(f"{stored.file}: changed while {show(name, 200)} was read; start again when nothing writes to it")


def header_of(tensors: Mapping[str, PartSpec], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a file, its length field and JSON, and where each tensor begins in the file, in this order."""
    header: dict[str, Any] = {"__metadata__": metadata}
    offsets, end = {}, 0
    for name, spec in tensors.items():
        offsets[name], end = end, end + spec.bytes
        header[name] = {"dtype": _NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [offsets[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: begin + offset for name, offset in offsets.items()}


def _header_length(first: bytes, size: int, path: Path) -> int:
    """Bytes of a header. first: the eight before it."""
    if first == b"version ":  # Git LFS begins its pointers so
        raise lfs_pointer(str(path))
    length = int.from_bytes(first, "little")
    if size < 8 or length > size - 8:
        raise InputError(f"{path}: truncated: {size} bytes, its header alone takes {8 + length}; download it again")
    if length > _LONGEST_HEADER:
        raise InputError(f"{path}: its header takes {length:,} bytes, expected {_LONGEST_HEADER:,} at most")
    return length


def _tensors(path: Path, text: bytes, size: int) -> dict[str, Stored]:
    """What a header lists: the tensors lie one behind the other, without holes, up to the file's end."""
    where = f"{path}: its header"
    data = parse_object(text, where)
    metadata = data.pop("__metadata__", None)
    if metadata is not None:
        typed(dict[str, str], metadata, f"{where}: __metadata__")
    begin = 8 + len(text)
    entries = {name: typed(_Entry, entry, f"{where}: {show(name)}") for name, entry in data.items()}
    stored, at = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        first, last = entry.data_offsets
        if entry.dtype not in _BITS:
            raise InputError(f"{where}: {show(name)} has the unknown dtype {show(entry.dtype)}")
        if first != at or last < first:
            raise InputError(f"{where}: {show(name)} lies at {first} to {last}, expected it to begin at {at}")
        if (last - first) * 8 != _BITS[entry.dtype] * math.prod(entry.shape):
            raise InputError(
                f"{where}: {show(name)} takes {last - first} bytes, its shape {show(entry.shape)} says otherwise"
            )
        if begin + last > size:
            raise InputError(
                f"{path}: truncated: {size} bytes, but {show(name)} ends at {begin + last}; download it again"
            )
        stored[name] = Stored(path, begin + first, entry.shape, entry.dtype)
        at = last
    if begin + at != size:
        raise InputError(f"{path}: {size} bytes, but its tensors end at {begin + at}; download it again")
    return stored


def _version_of(status: os.stat_result) -> Version:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _advise(descriptor: int, offset: int, size: int, advice: int | None) -> None:
    """Tell the system what will be read of a file, where it listens (not on macOS)."""
    if size > 0 and advice is not None:
        os.posix_fadvise(descriptor, offset, size, advice)
