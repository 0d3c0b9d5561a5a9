"""Before: logits of all S positions.  After: of one. `edge.last_token` stands where positions stop to depend on each other.

A phone never reads the others: over a 512-token prompt the head is a fifth of a small model's work. What follows the last
attention works position by position too, its projection and the last MLP: it sees one position as well, 2.3 % of the work of a
model of 32 layers.

    x, attended ──► add_rms_norm ──► MLP ──► … ──► head          last_token(x), last_token(attended) ──► … ──► head
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from pocketphi.graph.program import Program, op_name
from pocketphi.passes.base import Pass, PassReport

_BY_POSITION = (
    *("add", "mul", "layer_norm", "edge.rms_norm", "edge.add_rms_norm", "edge.gated_silu", "edge.gegelu"),
    *("edge.route", "edge.combine"),
)
"""Operators whose result at a position comes from their inputs at that position; so does that of projections."""


class LastLogits(Pass):
    """Computes logits for the last real token of each row only."""

    name = "last-logits"

    def rewrite(self, program: Program, report: PassReport) -> None:
        head = program.outputs["logits"]
        if not _is_projection(head) and not _is_projection_with_bias(head):
            report.refuse(head.name, f"logits come from {op_name(head)}, not from a projection")
            return
        late = _late(program, head)
        read = (arg for node in late for arg in node.all_input_nodes if arg.op not in ("get_attr", "placeholder"))
        sources = dict.fromkeys(arg for arg in read if arg not in late)
        if all(op_name(source) == "edge.last_token" for source in sources):
            return
        inputs = {str(node.target): node for node in program.inputs}
        made: dict[fx.Node, fx.Node] = {}
        for source in sources:
            arguments = (source, inputs["attention_mask"], inputs["position_ids"])
            made[source] = program.call(torch.ops.edge.last_token.default, arguments, before=head)
            report.applied["last_token"] += 1
        for node in late:
            remade: Any = fx.map_arg(node.args, lambda arg: made.get(arg, arg))
            made[node] = program.call(node.target, remade, before=head)  # type: ignore[arg-type]
        head.replace_all_uses_with(made[head])


def _late(program: Program, head: fx.Node) -> list[fx.Node]:
    """The head and what nothing else needs, as far up as positions are apart; in the graph's order."""
    late = {head}
    for node in reversed(list(program.graph.nodes)):
        by_position = _is_projection(node) or op_name(node) in _BY_POSITION or _is_item(node)
        if by_position and node.users and set(node.users) <= late:
            late.add(node)
    # one of two results may be needed at every position: then its operator is, and the other result is picked from it
    return [node for node in program.graph.nodes if node in late and (not _is_item(node) or node.args[0] in late)]


def _is_projection(node: fx.Node) -> bool:
    """A product with a weight, of whatever format, or one with an adapter."""
    named = op_name(node)
    return named in ("linear", "edge.add_low_rank") or named.startswith(("edge.matmul_", "edge.experts"))


def _is_projection_with_bias(node: fx.Node) -> bool:
    product, bias = (*node.args, None, None)[:2]
    given = isinstance(bias, fx.Node) and bias.op == "get_attr"
    return op_name(node) == "add" and given and isinstance(product, fx.Node) and _is_projection(product)


def _is_item(node: fx.Node) -> bool:
    return node.target is operator.getitem
