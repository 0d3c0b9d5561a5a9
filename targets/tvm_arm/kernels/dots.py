"""The product of int4 weights and int8 activations over one step, by instruction set.

Weights come as stored vectors (`interleave.py`), activations as loads from a row of int8 values in -127 … 127. What comes out
is Σ q·a in int32, one lane for each row of the matrix; where the instruction set is `signed`, 16 · Σ (q - 8)·a.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script import builder as T

from pocketphi.targets.tvm_arm.isa import Isa
from pocketphi.targets.tvm_arm.kernels.emit import Expr, Register, broadcast, intrinsic, ints, shuffle, vector

Words = Callable[[int], Expr]
"""Vector v of a unit, as it is stored: uint8 x (4 · lanes)."""

Activation = Callable[[int, int, int], Expr]
"""(row of the tile, first column in the step, count) → int8 x count, in the instruction set's order of activations."""


class Dots(ABC):
    """One instruction set's product.

    patch:  (rows, columns) of activations that lie together, row after row; several rows go through a step one patch after
            the other, a single one means all rows of a tile at the same time
    copies: of each row of a patch, one after the other
    paired: a vector of sums has half of the matrix's rows times two rows of activations, not all of them times one
    """

    patch = (1, 1)
    copies = 1
    paired = False

    def __init__(self, isa: Isa) -> None:
        self.lanes, self.signed = isa.lanes, isa.signed

    @abstractmethod
    def products(self, start: list[Expr], step: int, words: Words, activation: Activation) -> list[Expr]:
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
    def quad(self, step: int, words: Words, group: int) -> Expr:
        """q of columns 4·group … 4·group + 3, a byte each: int32 x lanes."""

    def nibbles(self, stored: Expr, high: int) -> Expr:
        """The low or the high nibbles of a stored vector as they are multiplied: int32 x lanes, a value in each byte."""
        width = 4 * self.lanes
        if self.signed:
            picked = stored & _bytes(0xF0, width) if high else stored << _bytes(4, width)
        else:
            picked = stored >> _bytes(4, width) if high else stored & _bytes(0x0F, width)
        return T.reinterpret(vector("int32", self.lanes), picked)

    def plain(self, stored: Expr, high: int) -> Expr:
        """The nibbles as q in 0 … 15."""
        width = 4 * self.lanes
        stored = stored ^ _bytes(0x88, width) if self.signed else stored
        picked = stored >> _bytes(4, width) if high else stored & _bytes(0x0F, width)
        return T.reinterpret(vector("int32", self.lanes), picked)


class FourColumns(Dots):
    """Each row's four columns in 32 bits, times the activations' four columns repeated for every row."""

    def products(self, start: list[Expr], step: int, words: Words, activation: Activation) -> list[Expr]:
        sums = [self.start(value) for value in start]
        half = step // 8
        order = [(v, high) for v in range(half) for high in (0, 1)]
        if self.patch[0] > 1:
            # all of the step's weights stay in registers: take activations in the order in which they lie
            order.sort(key=lambda each: each[1])
        for v, high in order:
            weights = self.nibbles(words(v), high)
            for row, s in enumerate(sums):
                self.add(s, weights, activation, row, 4 * (v + high * half))
        return [self.finish(s, value) for s, value in zip(sums, start)]

    def quad(self, step: int, words: Words, group: int) -> Expr:
        half = step // 8
        return self.plain(words(group % half), group // half)

    @abstractmethod
    def start(self, value: Expr) -> list[Register]:
        """Sums of one row of activations; those in int32 may begin with the start value."""

    @abstractmethod
    def add(self, sums: list[Register], weights: Expr, activation: Activation, row: int, column: int) -> None:
        """Add the products of four columns."""

    @abstractmethod
    def finish(self, sums: list[Register], start: Expr) -> Expr:
        """The sums with the start value, as int32 x lanes."""

    def repeated(self, activation: Activation, row: int, column: int) -> Expr:
        """Four activations in every lane of 32 bits."""
        four = T.reinterpret("int32", activation(row, column, 4))
        return T.reinterpret(vector("int8", 4 * self.lanes), broadcast(four, self.lanes))


class Avx512Vnni(FourColumns):
    """`vpdpbusd`: 16 rows × 4 columns; unsigned weights, signed activations, int32 sums."""

    def start(self, value: Expr) -> list[Register]:
        return [Register("int32x16", value)]

    def add(self, sums: list[Register], weights: Expr, activation: Activation, row: int, column: int) -> None:
        a, w = self.repeated(activation, row, column), T.reinterpret("uint8x64", weights)
        sums[0].set(intrinsic("int32x16", "llvm.x86.avx512.vpdpbusd.512", sums[0].value, w, a))

    def finish(self, sums: list[Register], start: Expr) -> Expr:
        return sums[0].value


class Avx2(FourColumns):
    """`vpmaddubsw`: 8 rows × 4 columns, pairs of products in int16. Eight of at most 2·15·127 stay below 2¹⁵; `vpmaddwd`
    by ones joins the pairs."""

    def start(self, value: Expr) -> list[Register]:
        return [Register("int16x16", _int16s(0, 16))]

    def add(self, sums: list[Register], weights: Expr, activation: Activation, row: int, column: int) -> None:
        a, w = self.repeated(activation, row, column), T.reinterpret("uint8x32", weights)
        sums[0].set(sums[0].value + intrinsic("int16x16", "llvm.x86.avx2.pmadd.ub.sw", w, a))

    def finish(self, sums: list[Register], start: Expr) -> Expr:
        return start + intrinsic("int32x8", "llvm.x86.avx2.pmadd.wd", sums[0].value, _int16s(1, 16))


class Neon(FourColumns):
    """`smlal`: int8 × int8 into int16, two rows a vector. Eight products of at most 15·127 stay below 2¹⁵; two pairwise
    additions join a row's four."""

    def start(self, value: Expr) -> list[Register]:
        return [Register("int16x8", _int16s(0, 8)) for _ in range(2)]

    def add(self, sums: list[Register], weights: Expr, activation: Activation, row: int, column: int) -> None:
        eight = T.reinterpret("int32x2", activation(row, column // 8 * 8, 8))
        a = T.reinterpret("int8x8", shuffle([eight], [column // 4 % 2] * 2))
        for part, s in enumerate(sums):
            w = T.reinterpret("int8x8", shuffle([weights], [2 * part, 2 * part + 1]))
            s.set(s.value + intrinsic("int16x8", "llvm.aarch64.neon.smull.v8i16", w, a))

    def finish(self, sums: list[Register], start: Expr) -> Expr:
        wide = [intrinsic("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", s.value) for s in sums]
        return start + intrinsic("int32x4", "llvm.aarch64.neon.addp.v4i32", *wide)


class DotProd(FourColumns):
    """`sdot` by element: 4 rows × 4 columns. One load of activations serves four instructions."""

    def start(self, value: Expr) -> list[Register]:
        return [Register("int32x4", value)]

    def add(self, sums: list[Register], weights: Expr, activation: Activation, row: int, column: int) -> None:
        sixteen, lane = self.sixteen(activation, row, column)
        a = T.reinterpret("int8x16", shuffle([T.reinterpret("int32x4", sixteen)], [lane] * 4))
        w = T.reinterpret("int8x16", weights)
        sums[0].set(intrinsic("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", sums[0].value, w, a))

    def finish(self, sums: list[Register], start: Expr) -> Expr:
        return sums[0].value

    def sixteen(self, activation: Activation, row: int, column: int) -> tuple[Expr, int]:
        """The load that has four columns of a row, and which quarter of it they are: here 16 columns."""
        return activation(row, column // 16 * 16, 16), column // 4 % 4


class DotProdTile(DotProd):
    """The same for several rows: a load has four columns of four rows."""

    patch = (4, 4)

    def sixteen(self, activation: Activation, row: int, column: int) -> tuple[Expr, int]:
        return activation(row // 4 * 4, column, 16), row % 4


class Int8(Dots):
    """`sdot` over the order of `smmla`, for one row of activations: two rows × 8 columns, each half of them into a sum."""

    patch = (1, 8)
    copies = 2

    def products(self, start: list[Expr], step: int, words: Words, activation: Activation) -> list[Expr]:
        made = []
        for row, value in enumerate(start):
            sums = [Register("int32x4", ints(0, 4)) for _ in range(2)]
            for group in range(step // 8):
                self.add("sdot", sums, row, group, step, words, activation)
            made.append(value + intrinsic("int32x4", "llvm.aarch64.neon.addp.v4i32", *(s.value for s in sums)))
        return made

    def quad(self, step: int, words: Words, group: int) -> Expr:
        both = [self.plain(v, high) for v, high in self._vectors(step, words, group // 2)]
        return shuffle(both, [group % 2 + 2 * row for row in range(4)])

    def add(
        self, name: str, sums: list[Register], row: int, group: int, step: int, words: Words, activation: Activation
    ) -> None:
        """Add the products of 8 columns, by an instruction, to the sums of rows 0 and 1, and 2 and 3, of the matrix."""
        a = activation(row, 8 * group, 16)
        for s, (stored, high) in zip(sums, self._vectors(step, words, group)):
            w = T.reinterpret("int8x16", self.nibbles(stored, high))
            s.set(intrinsic("int32x4", f"llvm.aarch64.neon.{name}.v4i32.v16i8", s.value, w, a))

    def _vectors(self, step: int, words: Words, group: int) -> list[tuple[Expr, int]]:
        """Where columns 8·group … of rows 0 and 1, and of rows 2 and 3, are stored: a vector and which of its nibbles."""
        half = step // 16
        return [(words(2 * (group % half) + pair), group // half) for pair in range(2)]


class Int8MatMul(Int8):
    """`smmla`: 2 rows × 2 activations × 8 columns; its four sums stay together."""

    patch = (4, 8)
    copies = 1
    paired = True

    def products(self, start: list[Expr], step: int, words: Words, activation: Activation) -> list[Expr]:
        sums = [Register("int32x4", value) for value in start]
        for group in range(step // 8):
            for row in range(0, len(start), 2):
                self.add("smmla", sums[row : row + 2], row, group, step, words, activation)
        return [s.value for s in sums]


def _bytes(value: int, lanes: int) -> Expr:
    return broadcast(tirx.IntImm("uint8", value), lanes)


def _int16s(value: int, lanes: int) -> Expr:
    return broadcast(tirx.IntImm("int16", value), lanes)


_CLASSES: dict[str, type[Avx2 | Avx512Vnni | DotProd | Int8 | Neon]] = {
    "neon": Neon,
    "dotprod": DotProd,
    "i8mm": Int8,
    "avx2": Avx2,
    "avx512vnni": Avx512Vnni,
}
_TILES: dict[str, type[DotProdTile | Int8MatMul]] = {"dotprod": DotProdTile, "i8mm": Int8MatMul}


def dots_of(isa: Isa, tile: bool = False) -> Dots:
    """The products of rows one by one, or of a tile of several, whose activations some instruction sets want together."""
    return ((tile and _TILES.get(isa.name)) or _CLASSES[isa.name])(isa)
