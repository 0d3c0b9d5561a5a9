"""The bytes of a GGUF header as plain values: every length is checked against the file before anything is read or made.

Metadata and tensors are taken as llama.cpp's own parser takes them (ggml/src/gguf.cpp): version 2 and 3, no key and no name
twice, no arrays of arrays, up to four dimensions. The specification is
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import lfs_pointer, show

VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_LONGEST_NAME = 1 << 16  # of a key or a tensor: the specification's limit for keys
_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class TensorRecord:
    """One tensor as the header declares it. shape: rows first, as everywhere but in GGUF itself; offset: into the data."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class ParsedHeader:
    """A whole header.

    fields: key → str, int, float, bool, list of str, or numpy array; in the file's order
    data:   where tensors begin, in bytes from the file's start
    size:   bytes of the file
    """

    fields: Mapping[str, Any]
    tensors: list[TensorRecord]
    alignment: int
    data: int
    size: int


def parse_header(path: Path) -> ParsedHeader:
    """Takes about as much memory as the header has bytes, and as little time.

    Raises InputError for a file that is not GGUF, of another version or byte order, damaged, or cut short.
    """
    try:
        with path.open("rb") as file:
            return _parse(_Cursor(file, path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def shown(value: object) -> str:
    """A value of the metadata as it stands in a message."""
    if isinstance(value, np.ndarray):
        return show(value.tolist()) if len(value) <= 60 else f"list of {len(value)}"
    return show(value)


class _Cursor:
    """A place in a file that never reads beyond its end."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.path, self.at = path, 0
        self.size = os.fstat(file.fileno()).st_size
        self._file = file

    def take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise InputError(
                f"{self.path}: truncated: {self.size} bytes, expected {self.at + count} or more; download it again"
            )
        found = self._file.read(count)
        if len(found) < count:
            raise InputError(f"{self.path}: ended while its header was read: another program writes to it")
        self.at += count
        return found

    def number(self, kind: str) -> int:
        return int(struct.unpack(kind, self.take(struct.calcsize(kind)))[0])

    def text(self) -> str:
        count = self.number("<Q")
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError:
            raise self.damage(f"the text at byte {self.at - count} is not UTF-8") from None

    def name(self) -> str:
        """A key, or a tensor's name."""
        at = self.at
        text = self.text()
        if not text or len(text) > _LONGEST_NAME:
            raise self.damage(f"the name at byte {at} has {len(text)} characters")
        return text

    def damage(self, what: str) -> InputError:
        return InputError(f"{self.path}: damaged GGUF file ({what}); download it again")


def _parse(cursor: _Cursor) -> ParsedHeader:
    _check_start(cursor)
    tensor_count, field_count = cursor.number("<Q"), cursor.number("<Q")
    fields: dict[str, Any] = {}
    for _ in range(field_count):
        key = cursor.name()
        if key in fields:
            raise cursor.damage(f"the key {show(key)} stands twice")
        fields[key] = _value(cursor, cursor.number("<I"), key)
    tensors: dict[str, TensorRecord] = {}
    for _ in range(tensor_count):
        tensor = _tensor(cursor)
        if tensor.name in tensors:
            raise cursor.damage(f"the tensor {show(tensor.name)} stands twice")
        tensors[tensor.name] = tensor
    alignment = fields.get("general.alignment", _DEFAULT_ALIGNMENT)
    if isinstance(alignment, bool) or not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.damage(f"general.alignment is {shown(alignment)}, expected a power of two")
    data = cursor.at + -cursor.at % alignment
    return ParsedHeader(fields, list(tensors.values()), alignment, data, cursor.size)


def _check_start(cursor: _Cursor) -> None:
    magic = cursor.take(min(4, cursor.size))
    if magic == b"vers":
        raise lfs_pointer(str(cursor.path))
    if magic != b"GGUF":
        raise InputError(f"{cursor.path}: not a GGUF file: it starts with {magic!r}, expected b'GGUF'")
    version = cursor.number("<I")
    if version in (number << 24 for number in VERSIONS):
        raise InputError(f"{cursor.path}: a big-endian GGUF file, expected little-endian; convert the model again")
    if version not in VERSIONS:
        raise InputError(f"{cursor.path}: GGUF version {version}, expected 2 or 3; convert the model again")


def _value(cursor: _Cursor, kind: int, key: str) -> Any:
    if kind == _STRING:
        return cursor.text()
    if kind == _BOOL:
        return cursor.take(1) != b"\0"
    if kind == _ARRAY:
        return _array(cursor, cursor.number("<I"), cursor.number("<Q"), key)
    dtype = _number(cursor, kind, key)
    return np.frombuffer(cursor.take(dtype.itemsize), dtype)[0].item()


def _array(cursor: _Cursor, kind: int, count: int, key: str) -> Any:
    if kind == _STRING:
        return [cursor.text() for _ in range(count)]
    if kind == _BOOL:
        return np.frombuffer(cursor.take(count), "u1") != 0
    dtype = _number(cursor, kind, key)
    return np.frombuffer(cursor.take(count * dtype.itemsize), dtype)


def _number(cursor: _Cursor, kind: int, key: str) -> np.dtype[Any]:
    if kind not in _NUMBERS:
        raise cursor.damage(f"{show(key)} has the unknown type {kind}")
    return np.dtype(_NUMBERS[kind])


def _tensor(cursor: _Cursor) -> TensorRecord:
    name = cursor.name()
    count = cursor.number("<I")
    if not 1 <= count <= _MOST_DIMENSIONS:
        raise cursor.damage(f"{show(name)} has {count} dimensions, expected 1 to {_MOST_DIMENSIONS}")
    shape = struct.unpack(f"<{count}Q", cursor.take(8 * count))[::-1]
    if not all(0 < size < 1 << 63 for size in shape):
        raise cursor.damage(f"{show(name)} has the shape {list(shape)}")
    return TensorRecord(name, shape, cursor.number("<I"), cursor.number("<Q"))
