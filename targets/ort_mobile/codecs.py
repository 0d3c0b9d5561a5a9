"""How ONNX Runtime's files hold each format: as blocks that `MatMulNBits` and `GatherBlockQuantized` read.

Importing this loads neither torch nor onnx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pocketphi.graph.formats import Format, Int2, Int4, Int8, Layout, bytes_of

if TYPE_CHECKING:
    from torch import fx

    from pocketphi.targets.ort_mobile.lower import Emitter

MS = "com.microsoft"


class Blocks:
    """A format in blocks: values, scales and perhaps zero points, which lie in the file in canonical form.

    values: its part with the values, which a product reads as [N, blocks, bytes of a block]
    """

    def __init__(self, form: type[Format]) -> None:
        self.format = form
        self.values = form.part_names()[0]

    def bytes_of(self, layout: Layout) -> int:
        """What a weight takes in the file."""
        return bytes_of(layout)

    def lower_matmul(self, e: Emitter, node: fx.Node) -> None:
        self.product(e, node, e.result(node))

    def lower_embedding(self, e: Emitter, node: fx.Node) -> None:
        self.rows(e, node, e.result(node))

    def product(self, e: Emitter, node: fx.Node, result: str) -> str:
        held: Any = node.args[:4]
        x, values, scale, *more = held
        (rows, stored), blocks, block = e.shape(values), e.shape(scale)[1], self.block(e, node)
        inputs = [e.name(x), e.weight(values, (rows, blocks, stored // blocks)), e.name(scale)]
        inputs += [e.name(zero) for zero in more if zero is not None]
        sizes = {"K": block * blocks, "N": rows, "bits": self.format.bits, "block_size": block}
        return e.emit("MatMulNBits", inputs, [result], domain=MS, **sizes, accuracy_level=e.accuracy_level)

    def rows(self, e: Emitter, node: fx.Node, result: str) -> str:
        ids, values, scale, *more = node.args[:4]
        inputs = [e.name(values), e.name(ids), e.name(scale), *(e.name(zero) for zero in more if zero is not None)]
        sizes = {"bits": self.format.bits, "block_size": self.block(e, node), "gather_axis": 0, "quantize_axis": 1}
        return e.emit("GatherBlockQuantized", inputs, [result], domain=MS, **sizes)

    def block(self, e: Emitter, node: fx.Node) -> int:
        """Values that share a scale."""
        values, scale = node.args[1:3]
        return e.shape(values)[1] * 8 // self.format.bits // e.shape(scale)[1]


class Int4Blocks(Blocks):
    """int4, perhaps with offsets. Float zero points would say the same in one operator, but make MatMulNBits dequantize the
    matrix at each call."""

    def lower_matmul(self, e: Emitter, node: fx.Node) -> None:
        """x · (offset repeated over its block)ᵀ = (sums of x over blocks) · offsetᵀ: a float product of 1/block of the size."""
        x, offset = node.args[0], node.args[4]
        if offset is None:
            super().lower_matmul(e, node)
            return
        scaled, name, block = self.product(e, node, f"{node.name}_scaled"), e.name(offset), self.block(e, node)
        blocks = self._in_blocks(e, node, e.name(x), block)
        sums = e.emit("ReduceSum", [blocks, e.constant("axis_last", [-1])], [f"{node.name}_sums"], keepdims=0)
        lowest = e.emit("MatMul", [sums, e.turned(name)], [f"{node.name}_offsets"])
        e.emit("Add", [scaled, lowest], [e.result(node)])

    def lower_embedding(self, e: Emitter, node: fx.Node) -> None:
        ids, offset, name = node.args[0], node.args[4], node.name
        if offset is None:
            super().lower_embedding(e, node)
            return
        blocks = self._in_blocks(e, node, self.rows(e, node, f"{name}_scaled"), self.block(e, node))
        rows = e.emit("Gather", [e.name(offset), e.name(ids)], [f"{name}_offsets"], axis=0)
        column = e.emit("Unsqueeze", [rows, e.constant("axis_last", [-1])], [f"{name}_offset_column"])
        total = e.emit("Add", [blocks, column], [f"{name}_sum"])
        e.emit("Reshape", [total, e.constant("rows", [0, 0, -1])], [e.result(node)])

    @staticmethod
    def _in_blocks(e: Emitter, node: fx.Node, x: str, block: int) -> Any:
        shape = e.constant(f"blocks_of_{block}", [0, 0, -1, block])
        return e.emit("Reshape", [x, shape], [f"{node.name}_blocks"])


CODECS: dict[str, Blocks] = {
    "int2": Blocks(Int2),
    "int4": Int4Blocks(Int4),
    "int8": Blocks(Int8),
}
