"""A traced model in pieces that run one after the other, cut where the fewest values pass from one to the next.

Of a decoder that is between its layers, where only the residual stream passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pocketphi.graph.config import layer_of
from pocketphi.graph.program import Program, Weights, ancestors, evaluate, split_target

aten = torch.ops.aten

_GIVEN = {"get_attr", "placeholder"}
"""Kinds of nodes whose values are asked for anew in each run: weights, and inputs, which are of one text."""


@dataclass(frozen=True)
class Segments:
    """cuts: the values that pass into each piece, and, last, the logits; fixed: values that depend on no token, by node, the
    same for every text of a length."""

    cuts: Sequence[Sequence[fx.Node]]
    fixed: Mapping[fx.Node, Any]

    @staticmethod
    def of(program: Program, tokens: torch.Tensor) -> Segments:
        """tokens: int64 [1, S], of the length that will be run."""
        logits = program.outputs["logits"]
        moving = _moving(program)
        order = [node for node in ancestors([logits], ()) if node in moving]
        read = {node for one in order for node in one.all_input_nodes if node not in moving and node.op not in _GIVEN}
        fixed = evaluate(read, program.prefill_inputs(tokens), Weights(program.weights, keep=False))
        place = {node: i for i, node in enumerate(order)}
        last = {node: max((place[user] for user in node.users if user in place), default=len(order)) for node in order}
        cuts = [_narrowest(order, last, start, stop) for start, stop in _gaps(order)]
        return Segments([*cuts, [logits]], fixed)


def _moving(program: Program) -> set[fx.Node]:
    """What depends on which tokens there are."""
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.target is aten.embedding.default or any(arg in found for arg in node.all_input_nodes):
            found.add(node)
    return found


def _gaps(order: Sequence[fx.Node]) -> list[tuple[int, int]]:
    """Where cuts may be: (place behind the last weight of a piece, place of the first weight of the next)."""
    gaps, before, since = [], object(), 0
    for place, node in enumerate(order):
        layers = {layer_of(split_target(str(arg.target))[0]) for arg in node.all_input_nodes if arg.op == "get_attr"}
        if node.target is aten.embedding.default:
            before, since = object(), place + 1
        elif layers:
            (layer,) = layers
            if layer != before:
                gaps.append((since, place))
            before, since = layer, place + 1
    return gaps


def _narrowest(order: Sequence[fx.Node], last: Mapping[fx.Node, int], start: int, stop: int) -> list[fx.Node]:
    """The values that live across the place between `start` and `stop` where they are fewest."""
    alive = ([node for node in order[:place] if last[node] >= place] for place in range(start, stop + 1))
    return min(alive, key=len)
