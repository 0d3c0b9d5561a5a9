"""Before: `linear(x, W)`, `embedding(W, ids)`.  After: `edge.matmul_nbits(x, q, scale, zero)`, `edge.embedding_nbits(ids, …)`.

Only the graph and the recipes change: nothing is read or computed here. A weight that both the embedding and the head
read (tied) stays one weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from pocketphi.graph.blocks import BLOCKS
from pocketphi.graph.errors import InputError
from pocketphi.graph.int4 import Int4
from pocketphi.graph.program import Program, shape_of
from pocketphi.graph.recipe import FloatWeight, PartSpec, Recipe, as_parts
from pocketphi.passes.base import Pass, PassReport
from pocketphi.passes.quantizers import Feedback, Quantizer

aten = torch.ops.aten


@dataclass(frozen=True)
class Int4Weight:
    """A float weight [N, K], quantized row by row when it is read."""

    source: FloatWeight
    quantizer: Quantizer
    feedback: Feedback | None = field(default=None, repr=False)

    @property
    def parts(self) -> Mapping[str, PartSpec]:
        return self.quantizer.parts(self.source)

    def chunks(self) -> Iterator[tuple[int, int]]:
        return self.source.checkpoint.chunks(self.source.tensor)

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        return as_parts(self.quantize(start, stop))

    def quantize(self, start: int, stop: int) -> Int4:
        """Rows [start, stop) in the canonical form. Raises InputError where they are not finite."""
        return self.quantizer.quantize_rows(self.source, start, stop, self.feedback)

    def describe(self) -> str:
        return f"{self.source.describe()} → {self.quantizer.describe()}"


class QuantizeWeights(Pass):
    """int4 for every linear layer, the head and the embedding."""

    name = "quantize-weights"

    def __init__(self, quantizer: Quantizer, stored: Mapping[str, Recipe] | None = None) -> None:
        """stored: weights that calibration has quantized already, by name."""
        self.quantizer = quantizer
        self.stored = stored or {}

    def rewrite(self, program: Program, report: PassReport) -> None:
        for node in list(program.graph.nodes):
            if node.target is aten.linear.default:
                self._linear(program, node, report)
            elif node.target is aten.embedding.default:
                self._embedding(program, node, report)

    def _linear(self, program: Program, node: fx.Node, report: PassReport) -> None:
        if len(node.args) > 2:
            report.refuse(node.name, "it has a bias")
            return
        parts = self._quantized(program, node, node.args[1], report)
        if parts:
            made = program.call(torch.ops.edge.matmul_nbits.default, (node.args[0], *parts), before=node)
            node.replace_all_uses_with(made)
            report.applied["matmul_nbits"] += 1

    def _embedding(self, program: Program, node: fx.Node, report: PassReport) -> None:
        parts = self._quantized(program, node, node.args[0], report)
        if parts:
            made = program.call(torch.ops.edge.embedding_nbits.default, (node.args[1], *parts), before=node)
            node.replace_all_uses_with(made)
            report.applied["embedding_nbits"] += 1

    def _quantized(
        self, program: Program, node: fx.Node, weight: Any, report: PassReport
    ) -> list[fx.Node | None] | None:
        """Nodes of q, scale and zero; None where the weight cannot be quantized."""
        name = str(weight.target)
        recipe = program.weights[name] if weight.op == "get_attr" else None
        if recipe is None or not (isinstance(recipe, FloatWeight) or "q" in recipe.parts):
            report.refuse(node.name, f"{name} is not a weight of the checkpoint")
            return None
        if not _only_projections(program, name):
            report.refuse(node.name, f"another operator reads {name} too")
            return None
        if isinstance(recipe, FloatWeight):  # a tied weight may be int4 already, by its other reader
            check_block(name, int(shape_of(weight)[1]), self.quantizer.block)
            remark = self.quantizer.remark(recipe)
            if remark and name not in self.stored:
                report.refuse(node.name, remark)
            recipe = self.stored.get(name) or Int4Weight(recipe, self.quantizer)
        nodes = program.weight(name, recipe, before=node)
        return [nodes["q"], nodes["scale"], nodes.get("zero"), nodes.get("offset")]


def _only_projections(program: Program, name: str) -> bool:
    """Whether all readers of a weight can read it as int4: linear layers without a bias and embeddings."""
    weights = [node for node in program.graph.nodes if node.op == "get_attr" and node.target == name]
    return all(_is_projection(user, node) for node in weights for user in node.users)


def _is_projection(node: fx.Node, weight: fx.Node) -> bool:
    places = [i for i, arg in enumerate(node.args) if arg is weight]
    if node.target is aten.linear.default:
        return places == [1] and len(node.args) == 2
    return node.target is aten.embedding.default and places == [0]


def check_block(name: str, columns: int, block: int) -> None:
    """Raise InputError unless `block` divides K, offering the blocks that do."""
    if columns % block:
        fitting = [str(b) for b in BLOCKS if columns % b == 0]
        choice = f"choose --block {' or '.join(fitting)}" if fitting else "no block size fits"
        raise InputError(f"{name}: K={columns} is not a multiple of block {block}; {choice}")
