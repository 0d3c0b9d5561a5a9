"""Before: `s = add(x, y); n = edge.rms_norm(s, w, eps)`, s also read later.
After: `n, s = edge.add_rms_norm(x, y, w, eps)`.
"""

from __future__ import annotations

import operator

import torch

from pocketphi.graph.program import Program, shape_of
from pocketphi.passes.base import Pass, PassReport
from pocketphi.passes.pattern import Op, Var


class FuseResidualNorm(Pass):
    """Takes the residual add into the norm that reads it."""

    name = "fuse-residual-norm"

    def rewrite(self, program: Program, report: PassReport) -> None:
        total = Op(torch.ops.aten.add.Tensor, Var("x"), Var("y"), name="sum", keywords=True)
        pattern = Op(torch.ops.edge.rms_norm.default, total, Var("weight"), Var("eps"))
        for node in list(program.graph.nodes):
            found = pattern.match(node)
            if not found:
                continue
            add = found["sum"]
            if add.kwargs or not isinstance(found["y"], torch.fx.Node):
                report.refuse(node.name, "the add has a scalar operand or a factor")
                continue
            if shape_of(found["x"]) != shape_of(found["y"]):
                report.refuse(node.name, "the add broadcasts")
                continue
            arguments = (found["x"], found["y"], found["weight"], found["eps"])
            # where the add stood, so that its other readers come later
            weight = found["weight"]
            if add < weight:
                add.prepend(weight)
            fused = program.call(torch.ops.edge.add_rms_norm.default, arguments, before=add)
            normed = program.call(operator.getitem, (fused, 0), before=add)
            node.replace_all_uses_with(normed)
            add.replace_all_uses_with(program.call(operator.getitem, (fused, 1), before=add))
            report.applied["add_rms_norm"] += 1
