"""How model.params holds each format, and which kernels read it. Importing this loads neither torch nor TVM."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import (
    Affine4,
    Blocks,
    Int2,
    Int3,
    Int4,
    Int5,
    Int6,
    Int8,
    Layout,
    Levels3,
    Levels4,
    PartSpec,
    Values,
    bytes_of,
)
from pocketphi.targets.tvm_arm.held import held

if TYPE_CHECKING:
    from torch import fx

    from pocketphi.targets.tvm_arm.description import Matrix
    from pocketphi.targets.tvm_arm.kernels.matmul import Form
    from pocketphi.targets.tvm_arm.lower import Function


@dataclass(frozen=True)
class BlocksCodec:
    """Blocks of whole numbers, or of numbers of levels, in the order in which the kernels load them (`Interleaved`)."""

    format: type[Blocks]

    def bytes_of(self, layout: Layout, lanes: int) -> int:
        """What a weight takes in the file: rows fill vectors, scales are float16, or bytes where rows have scales too, and zero
        points are bytes. lanes: `Isa.lanes`."""
        filled = {p: Values((-(-v.shape[0] // lanes) * lanes, v.shape[1]), v.bits) for p, v in held(layout).items()}
        return bytes_of(filled, {"scale": 8 if "row_scale" in layout else 16, "zero": 8, "row_scale": 16})

    def described(self, parts: Mapping[str, PartSpec]) -> dict[str, int | str | None]:
        """What model.json says of a weight (`Matrix`), the format where it is not int4."""
        rows, columns = self.format.shape_of(parts)
        more = {} if self.format is Int4 else {"format": self.format.name}
        return {"rows": rows, "columns": columns, "block": self.format.block_of(parts), **more}

    def layout(self, matrix: Matrix, names: Collection[str]) -> Layout:
        """The parts of a weight, by what model.json says. names: of its parts in the file."""
        more = {"offset": True} if "offset" in names else {}
        shape, by_row = (matrix.rows, matrix.columns), "row_scale" in names
        return self.format.layout(shape, matrix.block, "zero" not in names, by_row, **more)

    def lower_matmul(self, f: Function, node: fx.Node) -> None:
        form, args = self._form(f, node)
        args = [f.value(node.args[0]), *args]
        f.values[node] = f.call(f.kernels.matmul(form), args, form.matrix.rows, f.rows(node))

    def lower_embedding(self, f: Function, node: fx.Node) -> None:
        from pocketphi.targets.tvm_arm.kernels.elementwise import embedding

        form, args = self._form(f, node)
        kernel = f.kernels.get("embedding", embedding, form)
        f.values[node] = f.call(kernel, [f.value(node.args[0]), *args], form.matrix.columns, f.rows(node))

    def lower_experts(self, f: Function, node: fx.Node) -> None:
        from pocketphi.targets.tvm_arm.kernels.experts import Routed, experts

        x, chosen, count = node.args[:3]
        form, args = self._form(f, node, 3)
        apart = len(x.meta["val"].shape) == 4  # type: ignore[union-attr]
        routed = Routed(form, int(count), int(node.meta["val"].shape[2]), apart)  # type: ignore[arg-type]
        if routed.rows % f.isa.lanes:
            raise InputError(
                f"tvm-arm: an expert has {routed.rows} rows, which are no multiple of {f.isa.lanes}, as {f.isa.name} wants "
                "them; choose another --cpu, or compile for ort-mobile"
            )
        kernel = f.kernels.get("experts", experts, routed)
        f.values[node] = f.call(kernel, [f.value(chosen), f.value(x), *args], routed.rows, f.rows(node))

    def _form(self, f: Function, node: fx.Node, first: int = 1) -> tuple[Form, list[Any]]:
        """The form of a kernel, and the parameters in its order. first: of the node's arguments that are parts."""
        from pocketphi.targets.tvm_arm.interleave import Interleaved
        from pocketphi.targets.tvm_arm.kernels.matmul import Form

        parts = held(f.parts_read(node))
        form = Form(
            Interleaved.of(parts, f.isa),
            "zero" in parts,
            "offset" in parts,
            f.way.exact,
            isinstance(f.rows(node), int),
        )
        named = dict(zip(self.format.part_names(), node.args[first:]))
        return form, [f.value(named[part]) for part in self.format.part_names() if part in parts]


CODECS = {form.name: BlocksCodec(form) for form in (Int2, Int3, Int4, Int5, Int6, Int8, Levels3, Levels4, Affine4)}
