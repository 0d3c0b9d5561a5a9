"""The file `weight.bin` of an ML package: a header, then for each blob a record of 64 bytes and its data, 64-aligned.

    header  u32 count, u32 version = 2, zeros to 64 bytes
    record  u32 0xDEADBEEF, u32 data type, u64 bytes, u64 offset of the data, u64 padding bits, zeros to 64 bytes

A `BlobFileValue` in the model gives the offset of the *record*. Four-bit values lie two a byte, the first one low; an odd
count leaves 4 padding bits; values of 1, 2, 3 and 6 bits lie one after the other in the same way, across bytes.
Little-endian. Format: coremltools 9.0, mlmodel/src/MILBlob/Blob/StorageFormat.hpp.
"""

from __future__ import annotations

import string
import struct
from dataclasses import dataclass
from enum import IntEnum

ALIGN = 64
VERSION = 2
_SENTINEL = 0xDEADBEEF
_HEADER = struct.Struct("<II56x")
_RECORD = struct.Struct("<IIQQQ32x")


class BlobType(IntEnum):
    """Data types of blobs that this product reads or writes, by their codes in the file."""

    FLOAT16 = 1
    FLOAT32 = 2
    UINT8 = 3
    INT8 = 4
    INT16 = 6
    UINT16 = 7
    INT4 = 8
    UINT1 = 9
    UINT2 = 10
    UINT4 = 11
    UINT3 = 12
    UINT6 = 13
    INT32 = 14
    UINT32 = 15

    @property
    def bits(self) -> int:
        return int(self.name.lstrip(string.ascii_uppercase))


@dataclass(frozen=True)
class Blob:
    """One record. count: elements; offset: of the data, in bytes from the start of the file."""

    type: BlobType
    count: int
    offset: int

    @property
    def nbytes(self) -> int:
        return -(-self.count * self.type.bits // 8)

    def record(self) -> bytes:
        """The 64 bytes that lie in front of the data."""
        padding = self.nbytes * 8 - self.count * self.type.bits
        return _RECORD.pack(_SENTINEL, self.type, self.nbytes, self.offset, padding)

    @staticmethod
    def parse(record: bytes) -> Blob:
        """The blob that a record describes. Raises ValueError saying what is wrong with it."""
        if len(record) < _RECORD.size:
            raise ValueError("the file ends within a blob's record")
        sentinel, code, size, offset, padding = _RECORD.unpack(record[: _RECORD.size])
        if sentinel != _SENTINEL:
            raise ValueError(f"a blob's record must start with 0xDEADBEEF, not {sentinel:#010x}")
        try:
            type_ = BlobType(code)
        except ValueError:
            raise ValueError(f"blob data type {code} is unknown") from None
        bits = 8 * size - padding
        if bits < 0 or bits % type_.bits:
            raise ValueError(f"{size} bytes less {padding} bits hold no whole number of {type_.name.lower()} values")
        return Blob(type_, bits // type_.bits, offset)


def header(count: int) -> bytes:
    """The first 64 bytes of a file with `count` blobs."""
    return _HEADER.pack(count, VERSION)


def parse_header(data: bytes) -> int:
    """The number of blobs. Raises ValueError where this is no blob file of the version that is understood."""
    if len(data) < _HEADER.size:
        raise ValueError(f"{len(data)} bytes are too few for a blob file")
    count, version = _HEADER.unpack(data[: _HEADER.size])
    if version != VERSION:
        raise ValueError(f"blob file version {version}, expected {VERSION}")
    return int(count)
