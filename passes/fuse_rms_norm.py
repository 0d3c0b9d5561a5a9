"""Before: `weight · (x · rsqrt(mean(x², -1) + eps))`.  After: `edge.rms_norm(x, weight, eps)`."""

from __future__ import annotations

import torch

from pocketphi.graph.program import Program, shape_of
from pocketphi.passes.base import Pass, PassReport
from pocketphi.passes.pattern import Op, Var

aten = torch.ops.aten


def _pattern() -> Op:
    x = Var("x")
    mean = Op(aten.mean.dim, Op(aten.pow.Tensor_Scalar, x, 2), [-1], True)
    inverse = Op(aten.rsqrt.default, Op(aten.add.Tensor, mean, Var("eps", lambda v: isinstance(v, float))))
    is_weight = Var("weight", lambda v: getattr(v, "op", None) == "get_attr")
    return Op(aten.mul.Tensor, is_weight, Op(aten.mul.Tensor, x, inverse, commutes=True), commutes=True)


class FuseRmsNorm(Pass):
    """Finds root-mean-square norms as transformers spells them."""

    name = "fuse-rms-norm"

    def rewrite(self, program: Program, report: PassReport) -> None:
        pattern = _pattern()
        for node in list(program.graph.nodes):
            found = pattern.match(node)
            if not found:
                continue
            if shape_of(found["weight"]) != shape_of(found["x"])[-1:]:
                report.refuse(node.name, f"its weight is {list(shape_of(found['weight']))}, not one value a column")
                continue
            arguments = (found["x"], found["weight"], found["eps"])
            node.replace_all_uses_with(program.call(torch.ops.edge.rms_norm.default, arguments, before=node))
            report.applied["rms_norm"] += 1
