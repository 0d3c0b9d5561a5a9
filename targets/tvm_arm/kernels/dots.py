"""The product of weights and int8 activations over one step, by instruction set.

Weights come as chunks (`chunks.py`), activations as loads from a row of int8 values in -127 … 127. What comes out is Σ w·a in
int32, one lane for each row of the matrix: w = q, or (q - middle) · 2^shift where the matrix is signed. A step's sum is
at most 32 · 255 · 127 < 2²⁰, which float32 has exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script import builder as T

from pocketphi.targets.tvm_arm.isa import Isa
from pocketphi.targets.tvm_arm.kernels.chunks import Chunks
from pocketphi.targets.tvm_arm.kernels.emit import Expr, Register, broadcast, intrinsic, ints, shuffle, vector

Activation = Callable[[int, int, int], Expr]
"""(row of the tile, first column in the step, count) → int8 x count, in the instruction set's order of activations."""

_INT16 = (1 << 15) - 1
_LARGEST_ACTIVATION = 127


class Dots(ABC):
    """One instruction set's product.

    patch:  (rows, columns) of activations that lie together, row after row; several rows go through a step one patch after
            the other, a single one means all rows of a tile at the same time
    copies: of each row of a patch, one after the other
    whole:  whether a tile with all of its rows goes through a step at once, and not patch after patch
    paired: a vector of sums has half of the matrix's rows times two rows of activations, not all of them times one
    """

    patch = (1, 1)
    copies = 1
    whole = False
    paired = False

    def __init__(self, isa: Isa) -> None:
        self.lanes = isa.lanes

    @abstractmethod
    def products(self, start: list[Expr], weights: Chunks, activation: Activation) -> list[Expr]:
        """start + the products' sum over a step, for each row of activations: int32 x lanes. Where sums are `paired`, for two
        rows of activations and each half of the matrix's."""

    def spread(self, values: Expr) -> list[Expr]:
        """A value for each of the matrix's rows, as vectors of sums have them: one, or two where they are `paired`."""
        return [shuffle([values], lanes) for lanes in ([0, 0, 1, 1], [2, 2, 3, 3])] if self.paired else [values]

    def by_row(self, sums: list[Expr]) -> list[Expr]:
        """The vectors of sums of a tile, as one for each row of activations."""
        if not self.paired:
            return sums
        return [shuffle(sums[2 * (row // 2) :][:2], [row % 2 + 2 * i for i in range(4)]) for row in range(len(sums))]

    @abstractmethod
    def quad(self, weights: Chunks, group: int) -> Expr:
        """q of columns 4·group … 4·group + 3, a byte each: int32 x lanes."""


class FourColumns(Dots):
    """Each row's four columns in 32 bits, times the activations' four columns repeated for every row."""

    def products(self, start: list[Expr], weights: Chunks, activation: Activation) -> list[Expr]:
        order = weights.order
        if 1 < len(start) == self.patch[0]:
            # all of the step's weights stay in registers: take activations in the order in which they lie
            order = sorted(order)
        values, count = start, self.at_once(weights.largest)
        for first in range(0, len(order), count):
            sums = [self.start(value) for value in values]
            for chunk in order[first : first + count]:
                for row, s in enumerate(sums):
                    self.add(s, weights, chunk, activation, row)
            values = [self.finish(s, value) for s, value in zip(sums, values)]
        return values

    def quad(self, weights: Chunks, group: int) -> Expr:
        return weights.plain(group)

    def at_once(self, largest: int) -> int:
        """Chunks whose products the sums of `start` hold, where a weight's magnitude is `largest` at most."""
        return (1 << 31) // (4 * largest * _LARGEST_ACTIVATION)

    def start(self, value: Expr) -> list[Register]:
        """Sums of one row of activations; those in int32 begin with the start value."""
        return [Register(vector("int32", self.lanes), value)]

    @abstractmethod
    def add(self, sums: list[Register], weights: Chunks, chunk: int, activation: Activation, row: int) -> None:
        """Add the products of a chunk, four columns."""

    def finish(self, sums: list[Register], start: Expr) -> Expr:
        """The sums with the start value, as int32 x lanes."""
        return sums[0].value

    def repeated(self, activation: Activation, row: int, chunk: int) -> Expr:
        """A chunk's four activations in every lane of 32 bits."""
        four = T.reinterpret("int32", activation(row, 4 * chunk, 4))
        return T.reinterpret(vector("int8", 4 * self.lanes), broadcast(four, self.lanes))


class Avx512Vnni(FourColumns):
    """`vpdpbusd`: 16 rows × 4 columns; unsigned weights, signed activations, int32 sums."""

    def add(self, sums: list[Register], weights: Chunks, chunk: int, activation: Activation, row: int) -> None:
        a, w = self.repeated(activation, row, chunk), T.reinterpret("uint8x64", weights.multiplied(chunk))
        sums[0].set(intrinsic("int32x16", "llvm.x86.avx512.vpdpbusd.512", sums[0].value, w, a))


class Avx512VnniTile(Avx512Vnni):
    """The same for several rows, of which a short call has some: a full tile would lose a seventh of its speed to the jumps
    between them."""

    patch = (2, 16)
    whole = True


class Avx2(FourColumns):
    """`vpmaddubsw`: 8 rows × 4 columns, unsigned times signed, pairs of products in int16: eight of at most 2·15·127 stay below
    2¹⁵, four of 2·31·127, two of 2·63·127 and one of 2·128·127. `vpmaddwd` by ones joins the pairs. Signed weights are
    multiplied as their magnitude times the activation with their sign."""

    def at_once(self, largest: int) -> int:
        return _INT16 // (2 * largest * _LARGEST_ACTIVATION)

    def start(self, value: Expr) -> list[Register]:
        return [Register("int16x16", _int16s(0, 16))]

    def add(self, sums: list[Register], weights: Chunks, chunk: int, activation: Activation, row: int) -> None:
        a, w = self.repeated(activation, row, chunk), T.reinterpret("int8x32", weights.multiplied(chunk))
        if weights.signed:
            a, w = (intrinsic("int8x32", "llvm.x86.avx2.psign.b", value, w) for value in (a, w))
        sums[0].set(sums[0].value + intrinsic("int16x16", "llvm.x86.avx2.pmadd.ub.sw", T.reinterpret("uint8x32", w), a))

    def finish(self, sums: list[Register], start: Expr) -> Expr:
        return start + intrinsic("int32x8", "llvm.x86.avx2.pmadd.wd", sums[0].value, _int16s(1, 16))


class Neon(FourColumns):
    """`smlal`: int8 × int8 into int16, two rows a vector: eight products of at most 31·127 stay below 2¹⁵, four of 63·127 and
    two of 128·127. Two pairwise additions join a row's four."""

    def at_once(self, largest: int) -> int:
        return _INT16 // (largest * _LARGEST_ACTIVATION)

    def start(self, value: Expr) -> list[Register]:
        return [Register("int16x8", _int16s(0, 8)) for _ in range(2)]

    def add(self, sums: list[Register], weights: Chunks, chunk: int, activation: Activation, row: int) -> None:
        eight = T.reinterpret("int32x2", activation(row, chunk // 2 * 8, 8))
        a = T.reinterpret("int8x8", shuffle([eight], [chunk % 2] * 2))
        for part, s in enumerate(sums):
            w = T.reinterpret("int8x8", shuffle([weights.multiplied(chunk)], [2 * part, 2 * part + 1]))
            s.set(s.value + intrinsic("int16x8", "llvm.aarch64.neon.smull.v8i16", w, a))

    def finish(self, sums: list[Register], start: Expr) -> Expr:
        wide = [intrinsic("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", s.value) for s in sums]
        return start + intrinsic("int32x4", "llvm.aarch64.neon.addp.v4i32", *wide)


class DotProd(FourColumns):
    """`sdot` by element: 4 rows × 4 columns. One load of activations serves four instructions."""

    def add(self, sums: list[Register], weights: Chunks, chunk: int, activation: Activation, row: int) -> None:
        sixteen, lane = self.sixteen(activation, row, chunk)
        a = T.reinterpret("int8x16", shuffle([T.reinterpret("int32x4", sixteen)], [lane] * 4))
        w = T.reinterpret("int8x16", weights.multiplied(chunk))
        sums[0].set(intrinsic("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", sums[0].value, w, a))

    def sixteen(self, activation: Activation, row: int, chunk: int) -> tuple[Expr, int]:
        """The load that has a chunk's columns of a row, and which quarter of it they are: here 16 columns."""
        return activation(row, chunk // 4 * 16, 16), chunk % 4


class DotProdTile(DotProd):
    """The same for several rows: a load has four columns of four rows."""

    patch = (4, 4)

    def sixteen(self, activation: Activation, row: int, chunk: int) -> tuple[Expr, int]:
        return activation(row // 4 * 4, 4 * chunk, 16), row % 4


class Int8(Dots):
    """`sdot` over the order of `smmla`, for one row of activations: two rows × 8 columns, each half of them into a sum."""

    patch = (1, 8)
    copies = 2

    def products(self, start: list[Expr], weights: Chunks, activation: Activation) -> list[Expr]:
        made = []
        for row, value in enumerate(start):
            sums = [Register("int32x4", ints(0, 4)) for _ in range(2)]
            for group in range(len(weights.order) // 2):
                self.add("sdot", sums, row, group, weights, activation)
            made.append(value + intrinsic("int32x4", "llvm.aarch64.neon.addp.v4i32", *(s.value for s in sums)))
        return made

    def quad(self, weights: Chunks, group: int) -> Expr:
        both = [weights.plain(group // 2 * 2 + pair) for pair in range(2)]
        return shuffle(both, [group % 2 + 2 * row for row in range(4)])

    def add(
        self, name: str, sums: list[Register], row: int, group: int, weights: Chunks, activation: Activation
    ) -> None:
        """Add the products of 8 columns, by an instruction, to the sums of rows 0 and 1, and 2 and 3, of the matrix."""
        a = activation(row, 8 * group, 16)
        for pair, s in enumerate(sums):
            w = T.reinterpret("int8x16", weights.multiplied(2 * group + pair))
            s.set(intrinsic("int32x4", f"llvm.aarch64.neon.{name}.v4i32.v16i8", s.value, w, a))


class Int8MatMul(Int8):
    """`smmla`: 2 rows × 2 activations × 8 columns; its four sums stay together."""

    patch = (4, 8)
    copies = 1
    paired = True

    def products(self, start: list[Expr], weights: Chunks, activation: Activation) -> list[Expr]:
        sums = [Register("int32x4", value) for value in start]
        for group in range(len(weights.order) // 2):
            for row in range(0, len(start), 2):
                self.add("smmla", sums[row : row + 2], row, group, weights, activation)
        return [s.value for s in sums]


def _int16s(value: int, lanes: int) -> Expr:
    return broadcast(tirx.IntImm("int16", value), lanes)


_CLASSES: dict[str, type[Avx2 | Avx512Vnni | DotProd | Int8 | Neon]] = {
    "neon": Neon,
    "dotprod": DotProd,
    "i8mm": Int8,
    "avx2": Avx2,
    "avx512vnni": Avx512Vnni,
}
_TILES: dict[str, type[Avx512VnniTile | DotProdTile | Int8MatMul]] = {
    "dotprod": DotProdTile,
    "i8mm": Int8MatMul,
    "avx512vnni": Avx512VnniTile,
}


def dots_of(isa: Isa, tile: bool = False) -> Dots:
    """The products of rows one by one, or of a tile of several, whose activations some instruction sets want together."""
    return ((tile and _TILES.get(isa.name)) or _CLASSES[isa.name])(isa)
