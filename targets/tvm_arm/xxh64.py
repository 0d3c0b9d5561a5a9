"""XXH64 with seed 0 (Collet, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md), for texts: it takes its time."""

from __future__ import annotations

import struct

_MASK = 2**64 - 1
_PRIMES = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)


def _turned(value: int, by: int) -> int:
    return (value << by | value >> (64 - by)) & _MASK


def _mixed(total: int, lane: int) -> int:
    return _turned((total + lane * _PRIMES[1]) & _MASK, 31) * _PRIMES[0] & _MASK


def xxh64(data: bytes) -> int:
    """Of some bytes. `runtime/session.h` has the same."""
    p1, p2, p3, p4, p5 = _PRIMES
    sums = [(p1 + p2) & _MASK, p2, 0, -p1 & _MASK]
    whole = len(data) // 32 * 32
    for stripe in struct.iter_unpack("<4Q", data[:whole]):
        sums = [_mixed(total, lane) for total, lane in zip(sums, stripe)]
    total = p5
    if whole:
        total = sum(_turned(one, by) for one, by in zip(sums, (1, 7, 12, 18))) & _MASK
        for one in sums:
            total = ((total ^ _mixed(0, one)) * p1 + p4) & _MASK
    total, rest = (total + len(data)) & _MASK, data[whole:]
    while len(rest) >= 8:
        total = (_turned(total ^ _mixed(0, int.from_bytes(rest[:8], "little")), 27) * p1 + p4) & _MASK
        rest = rest[8:]
    if len(rest) >= 4:
        total = (_turned(total ^ int.from_bytes(rest[:4], "little") * p1 & _MASK, 23) * p2 + p3) & _MASK
        rest = rest[4:]
    for byte in rest:
        total = _turned(total ^ byte * p5 & _MASK, 11) * p1 & _MASK
    total = (total ^ total >> 33) * p2 & _MASK
    total = (total ^ total >> 29) * p3 & _MASK
    return total ^ total >> 32
