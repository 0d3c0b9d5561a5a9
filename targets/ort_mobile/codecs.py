"""How ONNX Runtime's files hold each format: as blocks that `MatMulNBits` and `GatherBlockQuantized` read.

Both read scales in float32. Where rows have scales too, the file holds those of blocks as int8, in units of their row's, and
the graph multiplies them: ONNX Runtime does that once, when it loads the model. The same holds of offsets.

Importing this loads neither torch nor onnx.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pocketphi.graph.formats import Affine4, Format, Int2, Int4, Int8, Layout, PartSpec, bytes_of, format_of
from pocketphi.graph.formats.blocks import scale_codes

if TYPE_CHECKING:
    from torch import fx

    from pocketphi.artifacts.stream import Rows
    from pocketphi.targets.ort_mobile.lower import Emitter

MS = "com.microsoft"

FAST = {2: (32, 64, 128), 4: (32, 64, 128, 256), 8: (32, 64, 128, 256)}
"""By bits: the blocks for which `MatMulNBits` has an int8 kernel. In 4 and 8 bits, blocks of 16 have a kernel in float, three
to four times slower than blocks of 32. Others give the same values some 200 times slower (one row times 3072 × 8192 in 2 bits:
blocks of 16 take 518 ms, of 32 1.8 ms; onnxruntime 1.32, one core of an x86 machine)."""


UNITS = {"scale": "row_scale", "offset": "row_offset"}
"""Parts that may lie in the file as whole numbers, and the part that these are multiples of."""


class Blocks:
    """A format in blocks: values, scales and perhaps zero points, which lie in the file in canonical form (but see `stored`).

    values: its part with the values, which a product reads as [N, blocks, bytes of a block]
    """

    def __init__(self, form: type[Format]) -> None:
        self.format = form
        self.values = form.part_names()[0]

    def bytes_of(self, layout: Layout) -> int:
        """What a weight takes in the file."""
        return bytes_of(layout, {part: 8 for part, unit in UNITS.items() if unit in layout})

    def held(self, node: fx.Node) -> dict[str, Any]:
        """What an operator reads of a weight: the node of each part, None for one that is not there."""
        return dict(zip(self.format.part_names(), node.args[1:]))

    def lower_matmul(self, e: Emitter, node: fx.Node) -> None:
        self.product(e, node, e.result(node))

    def lower_embedding(self, e: Emitter, node: fx.Node) -> None:
        self.rows(e, node, e.result(node))

    def product(self, e: Emitter, node: fx.Node, result: str) -> str:
        held, block = self.held(node), self.block(e, node)
        values = held[self.values]
        (rows, stored), blocks = e.shape(values), e.shape(held["scale"])[1]
        inputs = [e.name(node.args[0]), e.weight(values, (rows, blocks, stored // blocks)), *self.scales(e, held)]
        sizes = {"K": block * blocks, "N": rows, "bits": self.format.bits, "block_size": block}
        return e.emit("MatMulNBits", inputs, [result], domain=MS, **sizes, accuracy_level=e.accuracy_level)

    def rows(self, e: Emitter, node: fx.Node, result: str) -> str:
        held = self.held(node)
        inputs = [e.name(held[self.values]), e.name(node.args[0]), *self.scales(e, held)]
        sizes = {"bits": self.format.bits, "block_size": self.block(e, node), "gather_axis": 0, "quantize_axis": 1}
        return e.emit("GatherBlockQuantized", inputs, [result], domain=MS, **sizes)

    def scales(self, e: Emitter, held: dict[str, Any]) -> list[str]:
        """The names of the scales, and of zero points where there are some."""
        zero, found = held.get("zero"), [self.floats(e, held, "scale")]
        return [*found, e.name(zero)] if zero is not None else found

    def floats(self, e: Emitter, held: dict[str, Any], part: str) -> str:
        """The name of a part in float32, whose file may hold it in units of its row's."""
        name, unit = e.name(held[part]), held.get(UNITS[part])
        return name if unit is None else e.multiplied(name, e.name(unit))

    def block(self, e: Emitter, node: fx.Node) -> int:
        """Values that share a scale."""
        held = self.held(node)
        return e.shape(held[self.values])[1] * 8 // self.format.bits // e.shape(held["scale"])[1]


class OffsetBlocks(Blocks):
    """Blocks that may have offsets. Float zero points would say the same in one operator, but make MatMulNBits dequantize the
    matrix at each call."""

    def lower_matmul(self, e: Emitter, node: fx.Node) -> None:
        """x · (offset repeated over its block)ᵀ = (sums of x over blocks) · offsetᵀ: a float product of 1/block of the size."""
        x, held = node.args[0], self.held(node)
        if held["offset"] is None:
            super().lower_matmul(e, node)
            return
        scaled, block = self.product(e, node, f"{node.name}_scaled"), self.block(e, node)
        name, blocks = self.floats(e, held, "offset"), self._in_blocks(e, node, e.name(x), block)
        sums = e.emit("ReduceSum", [blocks, e.constant("axis_last", [-1])], [f"{node.name}_sums"], keepdims=0)
        lowest = e.emit("MatMul", [sums, e.turned(name)], [f"{node.name}_offsets"])
        e.emit("Add", [scaled, lowest], [e.result(node)])

    def lower_embedding(self, e: Emitter, node: fx.Node) -> None:
        ids, held, name = node.args[0], self.held(node), node.name
        if held["offset"] is None:
            super().lower_embedding(e, node)
            return
        blocks = self._in_blocks(e, node, self.rows(e, node, f"{name}_scaled"), self.block(e, node))
        rows = e.emit("Gather", [self.floats(e, held, "offset"), e.name(ids)], [f"{name}_offsets"], axis=0)
        column = e.emit("Unsqueeze", [rows, e.constant("axis_last", [-1])], [f"{name}_offset_column"])
        total = e.emit("Add", [blocks, column], [f"{name}_sum"])
        e.emit("Reshape", [total, e.constant("joined_blocks", [0, 0, -1])], [e.result(node)])

    @staticmethod
    def _in_blocks(e: Emitter, node: fx.Node, x: str, block: int) -> Any:
        shape = e.constant(f"blocks_of_{block}", [0, 0, -1, block])
        return e.emit("Reshape", [x, shape], [f"{node.name}_blocks"])


CODECS: dict[str, Blocks] = {
    "int2": Blocks(Int2),
    "int4": OffsetBlocks(Int4),
    "int8": OffsetBlocks(Int8),
    "affine4": OffsetBlocks(Affine4),
}


def stored(parts: Mapping[str, PartSpec]) -> dict[str, PartSpec]:
    """The parts of a weight as they lie in the file: in canonical form, but for scales that are multiples of their row's. They
    are in the format's order, whoever holds the weight."""
    import torch

    form = format_of(parts)
    ordered = {part: parts[part] for part in form.part_names() if part in parts} if form else dict(parts)
    for part, unit in UNITS.items():
        if unit in parts:
            ordered[part] = replace(ordered[part], dtype=torch.int8)
    return ordered


def encode(name: str, rows: Rows) -> Rows:
    """Rows of a weight's parts as they are written."""
    whole = {part: scale_codes(rows[part], rows[unit]).char() for part, unit in UNITS.items() if unit in rows}
    return {**rows, **whole}


def decode(rows: Rows) -> Rows:
    """The inverse."""
    floats = {part: rows[part] * rows[unit] for part, unit in UNITS.items() if unit in rows}
    return {**rows, **floats}
