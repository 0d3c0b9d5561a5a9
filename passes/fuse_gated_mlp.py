"""Before: `mul(slice(x, I, 2I), silu(slice(x, 0, I)))`.  After: `edge.gated_silu(x)`.

One operator lets each target choose: ONNX Runtime runs it as a split, one QuickGelu and one product.
"""

from __future__ import annotations

import torch

from pocketphi.graph.program import Program, shape_of
from pocketphi.passes.base import Pass, PassReport
from pocketphi.passes.pattern import Op, Var, part

aten = torch.ops.aten


class FuseGatedMlp(Pass):
    """Finds the activation between the two projections of a gated MLP."""

    name = "fuse-gated-mlp"

    def rewrite(self, program: Program, report: PassReport) -> None:
        x, axis = Var("x"), Var("axis")
        gate = Op(aten.silu.default, part(x, axis, 0, Var("middle")))
        pattern = Op(aten.mul.Tensor, part(x, axis, Var("middle"), Var("end")), gate, commutes=True)
        for node in list(program.graph.nodes):
            found = pattern.match(node)
            if not found:
                continue
            shape = shape_of(found["x"])
            width = shape[-1]
            if found["axis"] % len(shape) != len(shape) - 1 or 2 * found["middle"] != width or found["end"] < width:
                report.refuse(node.name, f"gate and up are not the two halves of {width} columns")
                continue
            node.replace_all_uses_with(program.call(torch.ops.edge.gated_silu.default, (found["x"],), before=node))
            report.applied["gated_silu"] += 1
