"""How values of 2 to 8 bits share bytes: a value is cut into planes, and a plane has 1, 2, 4 or 8 bits of every value.

    8 bits: 8    6: 4 + 2    5: 4 + 1    4: 4    3: 2 + 1    2: 2        the highest bits first

A kernel multiplies a *chunk* at a time: a vector with a byte for each of 4·lanes values. A step of columns is step / 4 chunks.
In a plane of p bits, a byte holds the bits of one place in 8 / p chunks. With V vectors in the plane, chunk c is in vector
c % V, in the bits p · (c // V) and up of its bytes. So one load, a shift and a mask give a plane's part of a chunk.

In blocks of 16, a plane of one bit has four chunks, which fill half a vector: its low nibbles are the first half of each chunk.

Plain data: it is read without torch and TVM.
"""

from __future__ import annotations

from dataclasses import dataclass

PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}
"""Bits of each plane by the bits of a value, the highest bits first."""


@dataclass(frozen=True)
class Plane:
    """One plane of a step. bits: of each value; low: the lowest of them, counted from the lowest of the value; above: bits of a
    value in the planes before; chunks: of a step."""

    bits: int
    low: int
    above: int
    chunks: int

    @property
    def halves(self) -> int:
        """2 where the plane is half a vector, else 1."""
        return max(1, 8 // self.bits // self.chunks)

    @property
    def vectors(self) -> int:
        return max(1, self.chunks * self.bits // 8)

    def place(self, chunk: int) -> tuple[int, int]:
        """The vector that a chunk is in, and the lowest of its bits there."""
        return chunk % self.vectors, self.bits * (chunk // self.vectors)

    def start(self, lanes: int) -> int:
        """Bytes of a step's unit before this plane."""
        return self.chunks * self.above * lanes // 2


def planes_of(bits: int, step: int) -> tuple[Plane, ...]:
    """The planes of values of so many bits, in a step of so many columns: in the order in which they lie in a unit."""
    made, above = [], 0
    for part in PLANES[bits]:
        made.append(Plane(part, bits - above - part, above, step // 4))
        above += part
    return tuple(made)
