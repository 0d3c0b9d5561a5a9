"""Before: `y = matmul(x, W)`.  After: `y' = add_low_rank(y, x, A, B)`, whose factors are inputs of the program.

Each projection that one of a program's adapters changes gets a pair of inputs; an adapter that leaves it alone, or none, gives
them rank 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from pocketphi.graph.adapters import input_names, shape_of
from pocketphi.graph.config import EMBEDDING, HEAD
from pocketphi.graph.program import Program, op_name, split_target
from pocketphi.graph.types import Size, TensorType
from pocketphi.passes.base import Pass, PassReport

_OPERATOR = torch.ops.edge.add_low_rank.default


class CarryAdapters(Pass):
    """Gives projections the inputs that the adapters of a program want."""

    name = "carry-adapters"

    def rewrite(self, program: Program, report: PassReport) -> None:
        wanted = {weight for factors in program.adapters.values() for weight in factors.ranks}
        for weight, node in projections(program).items():
            if weight in wanted and not any(user.target is _OPERATOR for user in node.users):
                _carry(program, weight, node)
                report.applied["add_low_rank"] += 1


def projections(program: Program) -> dict[str, fx.Node]:
    """The products of a program with one weight each, by its name; that of a head, even where it is tied to the embedding."""
    found = {}
    for node in program.graph.nodes:
        if op_name(node) == "linear" or op_name(node).startswith("edge.matmul_"):
            source: Any = node.args[1]
            if source.op == "get_attr":
                weight = split_target(str(source.target))[0]
                found[HEAD if weight == EMBEDDING else weight] = node
    return found


def _carry(program: Program, weight: str, node: fx.Node) -> None:
    rows, columns = shape_of(program.config, weight)
    rank = Size.of({"rank": 1})
    factors = []
    for name, shape in zip(input_names(weight), ((columns, rank), (rank, rows)), strict=True):
        last = program.inputs[-1]
        with program.graph.inserting_after(last):
            made = program.graph.placeholder(name)
        made.meta["val"] = TensorType(shape, torch.float32)
        factors.append(made)
    sum_of = program.call(_OPERATOR, (node, node.args[0], *factors), before=node.next)
    node.replace_all_uses_with(sum_of, delete_user_cb=lambda user: user is not sum_of)
