"""Before: `mul(mul(g, sigmoid(mul(g, 1.702))), add(u, 1))`, g and u the clamped halves of x. After: `edge.gegelu(x, limit)`."""

from __future__ import annotations

from typing import Any

import torch

from pocketphi.graph.edge_ops import QUICK_GELU
from pocketphi.graph.program import Program, shape_of
from pocketphi.passes.base import Pass, PassReport
from pocketphi.passes.pattern import OneOf, Op, Pattern, Var, part

aten = torch.ops.aten


class FuseGegelu(Pass):
    """Finds the activation of an MLP whose gate goes through a quick GELU."""

    name = "fuse-gegelu"

    def rewrite(self, program: Program, report: PassReport) -> None:
        pattern = _pattern()
        for node in list(program.graph.nodes):
            found = pattern.match(node)
            if not found:
                continue
            width = shape_of(found["x"])[-1]
            limit, least = found.get("limit", 0.0), found.get("least", 0.0)
            halves = found["axis"] % len(shape_of(found["x"])) == len(shape_of(found["x"])) - 1
            if not halves or 2 * found["middle"] != width or found["end"] < width:
                report.refuse(node.name, f"gate and linear part are not the two halves of {width} columns")
            elif limit < 0 or least != -limit or ("limit" in found) != ("least" in found):
                report.refuse(node.name, f"the linear part is clamped to {least} … {limit}, not on both sides alike")
            else:
                fused = program.call(torch.ops.edge.gegelu.default, (found["x"], float(limit)), before=node)
                node.replace_all_uses_with(fused)
                report.applied["gegelu"] += 1


def _pattern() -> Pattern:
    x, axis, middle = Var("x"), Var("axis"), Var("middle")
    limit = Var("limit", lambda v: isinstance(v, float | int) and v != 0)
    plain_gate, plain_up = part(x, axis, 0, middle), part(x, axis, middle, Var("end"))
    gate: Any = OneOf(Op(aten.clamp.default, plain_gate, None, limit, exact=True), plain_gate)
    up = OneOf(Op(aten.clamp.default, plain_up, Var("least"), limit, exact=True), plain_up)
    power = Op(aten.sigmoid.default, Op(aten.mul.Tensor, gate, QUICK_GELU, commutes=True))
    left = Op(aten.mul.Tensor, gate, power, commutes=True)
    return Op(aten.mul.Tensor, left, Op(aten.add.Tensor, up, 1.0, commutes=True), commutes=True)
