"""Before: `linear(x, W)`, `embedding(W, ids)`.  After: `edge.matmul_nbits(x, q, scale, zero)`, `edge.embedding_nbits(ids, …)`,
or the operators of another format. `linear(x, W, b)` becomes the product and the sum behind it, and
`edge.experts(x, chosen, W, count)` becomes `edge.experts_nbits(x, chosen, count, q, scale, zero)`.

Only the graph and the lazy weights change: nothing is read or computed here. A weight that both the embedding and the head
read (tied) stays one weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from pocketphi.graph.checkpoint import ROWS_TOGETHER
from pocketphi.graph.edge_ops import MATRIX_READERS, operators_of
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import Format, PartSpec, format_of, known_format
from pocketphi.graph.lazy_weights import FloatWeight, LazyWeight
from pocketphi.graph.program import Program, shape_of
from pocketphi.passes.base import Pass, PassReport
from pocketphi.passes.policy import Policy
from pocketphi.passes.quantizers import Feedback, Quantizer

aten = torch.ops.aten


@dataclass(frozen=True)
class QuantizedWeight:
    """A float weight [N, K], quantized row by row, or group by group, when it is read."""

    source: FloatWeight
    quantizer: Quantizer
    feedback: Feedback | None = field(default=None, repr=False)

    @property
    def parts(self) -> Mapping[str, PartSpec]:
        return self.quantizer.parts(self.source)

    def chunks(self) -> Iterator[tuple[int, int]]:
        group = self.quantizer.group
        for start, stop in self.source.checkpoint.chunks(self.source.tensor, math.lcm(group, ROWS_TOGETHER)):
            yield start // group, stop // group

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        return self.quantize(start, stop).tensors()

    def quantize(self, start: int, stop: int) -> Format:
        """Rows [start, stop) of the parts. Raises InputError where they are not finite."""
        group = self.quantizer.group
        return self.quantizer.quantize_rows(self.source, group * start, group * stop, self.feedback)

    def describe(self) -> str:
        return f"{self.source.describe()} → {self.quantizer.describe()}"


class QuantizeWeights(Pass):
    """Linear layers, the head and the embedding get the formats that a policy gives them."""

    name = "quantize-weights"

    def __init__(self, policy: Policy, stored: Mapping[str, LazyWeight] | None = None) -> None:
        """stored: weights that are quantized already, by name."""
        self.policy = policy
        self.stored = stored or {}

    def rewrite(self, program: Program, report: PassReport) -> None:
        for node in list(program.graph.nodes):
            if node.target is aten.linear.default:
                self._replace(program, node, node.args[:1], node.args[1], 0, report)
            elif node.target is aten.embedding.default:
                self._replace(program, node, node.args[1:2], node.args[0], 1, report)
            elif node.target is torch.ops.edge.experts.default:
                x, chosen, weight, count = node.args
                self._replace(program, node, (x, chosen, count), weight, 2, report)

    def _replace(
        self, program: Program, node: fx.Node, inputs: tuple[Any, ...], weight: Any, which: int, report: PassReport
    ) -> None:
        """which: 0 for a product, 1 for an embedding, 2 for the products of experts."""
        lazy = self._quantized(program, node, weight, report)
        if lazy:
            form = known_format(lazy.parts)
            nodes = program.weight(str(weight.target), lazy, before=node)
            operator = operators_of(form)[which]
            made = program.call(operator, (*inputs, *map(nodes.get, form.part_names())), before=node)
            if which == 0 and len(node.args) > 2:
                made = program.call(aten.add.Tensor, (made, node.args[2]), before=node)
            node.replace_all_uses_with(made)
            report.applied[operator._schema.name.removeprefix("edge::")] += 1

    def _quantized(self, program: Program, node: fx.Node, weight: Any, report: PassReport) -> LazyWeight | None:
        """The quantized weight; None where it cannot be quantized."""
        name = str(weight.target)
        lazy = program.weights[name] if weight.op == "get_attr" else None
        if lazy is None or not (isinstance(lazy, FloatWeight) or format_of(lazy.parts)):
            report.refuse(node.name, f"{name} is not a weight of the checkpoint")
            return None
        if not _only_projections(program, name):
            report.refuse(node.name, f"another operator reads {name} too")
            return None
        if not isinstance(lazy, FloatWeight):  # a tied weight, which its other reader has met before
            return lazy
        if name in self.stored:
            return self.stored[name]
        quantizer = self.policy.quantizer(name)
        if quantizer is None:
            report.refuse(node.name, f"no rule of the policy matches {name}")
            return None
        quantizer.check_weight(lazy)
        if node.target is torch.ops.edge.experts.default:
            check_experts(name, shape_of(node)[-1], quantizer)
        remark = quantizer.remark(lazy)
        if remark:
            report.refuse(node.name, remark)
        return QuantizedWeight(lazy, quantizer)


def check_experts(name: str, rows: Any, quantizer: Quantizer) -> None:
    """rows: of an expert. Raises InputError where rows of two experts would share a table."""
    if rows % quantizer.group:
        raise InputError(
            f"{name}: an expert has {rows} rows, which are no multiple of the {quantizer.group} that share a table; "
            "choose another --palette"
        )


def _only_projections(program: Program, name: str) -> bool:
    """Whether all readers of a weight can read it in parts: linear layers, experts and embeddings."""
    for weight in (node for node in program.graph.nodes if node.op == "get_attr" and node.target == name):
        for user in weight.users:
            places = [i for i, arg in enumerate(user.args) if arg is weight]
            if places != [MATRIX_READERS.get(user.target)]:
                return False
    return True
