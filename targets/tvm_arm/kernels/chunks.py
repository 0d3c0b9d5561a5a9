"""The chunks of a stored unit, put together from its planes: what an instruction multiplies, or the values themselves."""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script import builder as T

from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.kernels.emit import Expr, broadcast, load, looked_up, shuffle, vector
from pocketphi.targets.tvm_arm.planes import Plane


class Chunks:
    """One step of a group of rows. buffer: the matrix's values, as stored; base: the byte at which the unit begins.

    signed:  whether bytes to multiply are signed
    largest: magnitude of a byte to multiply
    order:   of chunks, those that share bytes of the first plane one after the other
    """

    def __init__(self, matrix: Interleaved, buffer: tirx.Buffer, base: Expr) -> None:
        self._matrix, self._buffer, self._base = matrix, buffer, base
        self._width = 4 * matrix.lanes
        first = matrix.planes[0]
        self.signed = matrix.signed
        self.largest = matrix.middle << matrix.shift if matrix.signed else (1 << matrix.width) - 1
        self.order = sorted(range(matrix.step // 4), key=first.place)

    def multiplied(self, chunk: int) -> Expr:
        """(q - middle) · 2^shift where the matrix is signed, else q: int32 x lanes, a value in each byte. Of levels, q is
        level + middle."""
        if self._matrix.levels:
            return self._looked_up(chunk, 0 if self._matrix.signed else self._matrix.middle)
        return self._as_ints(self._together(chunk, self._matrix.shift))

    def plain(self, chunk: int) -> Expr:
        """q, in the same form."""
        if self._matrix.levels:
            return self._looked_up(chunk, self._matrix.middle)
        return self._as_ints(self._together(chunk, 0, self._matrix.signed))

    def _looked_up(self, chunk: int, more: int) -> Expr:
        levels = [(level + more) & 0xFF for level in self._matrix.levels or ()]
        return self._as_ints(looked_up(levels, self._together(chunk, 0), self._width))

    def _as_ints(self, values: Expr) -> Expr:
        return T.reinterpret(vector("int32", self._matrix.lanes), values)

    def _together(self, chunk: int, shift: int, turned: bool = False) -> Expr:
        """The values of a chunk, uint8 x (4 · lanes). turned: the file has q - middle, whose highest bit is not that of q."""
        found = None
        for plane in self._matrix.planes:
            index, bit = plane.place(chunk)
            stored = self._load(plane, index)
            if turned and plane.above == 0:
                stored = stored ^ self._bytes(sum(1 << at for at in range(plane.bits - 1, 8, plane.bits)))
            part = self._moved(stored, bit, plane.bits, plane.low + shift)
            found = part if found is None else found | part
        return found

    def _load(self, plane: Plane, index: int) -> Expr:
        """A vector of a plane, with both halves where the file has them in one."""
        at = self._base + (plane.start(self._matrix.lanes) + self._width * index)
        if plane.halves == 1:
            return load(self._buffer, [at], self._width)
        half = load(self._buffer, [at], self._width // 2)
        return shuffle([half, half >> broadcast(tirx.IntImm("uint8", 4), self._width // 2)], list(range(self._width)))

    def _moved(self, stored: Expr, bit: int, bits: int, to: int) -> Expr:
        """`bits` bits of each byte from `bit` to `to`, and zeros beside them; no mask where the shift leaves none."""
        if to > bit:
            moved, masked = stored << self._bytes(to - bit), bit > 0 or to + bits < 8
        elif to < bit:
            moved, masked = stored >> self._bytes(bit - to), to > 0 or bit + bits < 8
        else:
            moved, masked = stored, bits < 8
        return moved & self._bytes(((1 << bits) - 1) << to) if masked else moved

    def _bytes(self, value: int) -> Expr:
        return broadcast(tirx.IntImm("uint8", value), self._width)
