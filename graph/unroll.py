"""Repeat the last traced decoder layers to the model's depth: one, or a period where kinds of layers take turns.

Before: embedding → layer 0 → layer 1 → norm → head. After: … → layer 1 → layer 2 → … → layer L-1 → norm → head, where
layer i ≥ 2 is a copy of layer 1 that reads `model.layers.i.*` and `past_key_values.i.*`. With a period of two, layers 0 to 3
are traced, and layers 4, 5, 6 … are copies of 2, 3, 2 ….

The copy is refused (CompilerBug) unless a layer and the one a period before it are the same graph up to their own weights
and caches: then nothing else depends on the layer's number, and a copy is what tracing the whole depth would have given.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import fx

from pocketphi.graph.config import layer_of
from pocketphi.graph.errors import CompilerBug
from pocketphi.graph.program import Program, op_name


def repeat_layer(program: Program, last: int, depth: int, period: int = 1) -> None:
    """Append layers last + 1 … depth - 1, copies of the last `period` layers in turn. Changes the program in place."""
    if last + 1 >= depth:
        return
    if last + 1 < 2 * period:
        traced = "two layers" if period == 1 else f"{2 * period} layers, twice their period,"
        raise CompilerBug(f"at least {traced} must be traced before the last can be repeated")
    graph = program.graph
    templates = [_Template.of(graph, layer) for layer in range(last + 1 - period, last + 1)]
    for template in templates:
        _check_same(graph, template.layer - period, template)
    outputs, stream = program.outputs, templates[-1].leaves
    readers = [user for user in stream.users if user not in templates[-1].nodes]
    last_input = [node for node in graph.nodes if node.op == "placeholder"][-1]
    anchor = templates[-1].nodes[-1]
    for layer in range(last + 1, depth):
        template = templates[(layer - last - 1) % period]
        copies: dict[fx.Node, fx.Node] = {template.enters: stream}
        for node in template.nodes:
            for arg in node.all_input_nodes:
                if arg not in copies and _is_own(arg, template.layer):
                    with graph.inserting_after(last_input):
                        copies[arg] = graph.create_node(arg.op, _renamed(arg, template.layer, layer))
                    copies[arg].meta = dict(arg.meta)
                    if arg.op == "placeholder":
                        last_input = copies[arg]
            with graph.inserting_after(anchor):
                anchor = graph.node_copy(node, {arg: copies.get(arg, arg) for arg in node.all_input_nodes}.__getitem__)
            copies[node] = anchor
        for kind in ("key", "value"):
            outputs[f"present.{layer}.{kind}"] = copies[outputs[f"present.{template.layer}.{kind}"]]
        stream = copies[template.leaves]
    for reader in readers:
        reader.replace_input_with(templates[-1].leaves, stream)
    graph.output_node().args = (outputs,)


@dataclass(frozen=True)
class _Template:
    """A traced layer: its calls, and the residual stream before and behind it."""

    layer: int
    nodes: list[fx.Node]
    enters: fx.Node
    leaves: fx.Node

    @staticmethod
    def of(graph: fx.Graph, layer: int) -> _Template:
        nodes = _layer_nodes(graph, layer)
        return _Template(layer, nodes, _stream(nodes, layer, graph), _stream_out(nodes, graph))


def _is_own(node: fx.Node, layer: int) -> bool:
    """Whether it is a weight or a cache of this layer."""
    return node.op in ("placeholder", "get_attr") and layer_of(str(node.target)) == layer


def _layer_nodes(graph: fx.Graph, layer: int) -> list[fx.Node]:
    """The calls that the module `model.layers.N` made, in order."""
    wanted = re.compile(rf"\.layers\.{layer}(\.|$)")
    stacks = {node: node.meta.get("nn_module_stack") or {} for node in graph.nodes if node.op == "call_function"}
    return [node for node, stack in stacks.items() if any(wanted.search(path) for path, _ in stack.values())]


def _check_same(graph: fx.Graph, earlier: int, later: _Template) -> None:
    """Same operators in the same order, with the same constants, the same wiring inside, and the same values from outside."""
    first, second = _layer_nodes(graph, earlier), later.nodes
    place = [{node: i for i, node in enumerate(nodes)} for nodes in (first, second)]

    def shape_of_call(node: fx.Node, inside: dict[fx.Node, int]) -> Any:
        return fx.map_arg((node.args, node.kwargs), lambda n: f"#{inside[n]}" if n in inside else "outside")

    entered = set()
    for a, b in zip(first, second, strict=False):
        if a.target is not b.target or str(shape_of_call(a, place[0])) != str(shape_of_call(b, place[1])):
            raise CompilerBug(f"decoder layers differ at {op_name(a)} ({a.name}) and {op_name(b)} ({b.name})")
        outside = [(x, y) for x, y in zip(_arguments(a), _arguments(b)) if x not in place[0]]
        entered |= {x for x, y in outside if y is later.enters}
        for x, y in outside:
            shared = x is y and not _is_own(x, earlier)
            own = _is_own(x, earlier) and _is_own(y, later.layer)
            twins = own and _renamed(x, earlier, later.layer) == str(y.target)
            if not shared and y is not later.enters and not twins:
                raise CompilerBug(
                    f"decoder layers differ at {op_name(b)} ({b.name}): one reads {x.name}, the other {y.name}"
                )
    if len(first) != len(second):
        raise CompilerBug(f"decoder layers have {len(first)} and {len(second)} operators")
    if len(entered) != 1:
        raise CompilerBug(f"layer {earlier} reads {sorted(n.name for n in entered)} as its stream, expected one value")


def _arguments(node: fx.Node) -> list[fx.Node]:
    """Each as often as it occurs, in order."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


def _stream(template: list[fx.Node], layer: int, graph: fx.Graph) -> fx.Node:
    """The one value of the layer before that this layer reads: the residual stream."""
    earlier = set(_layer_nodes(graph, layer - 1))
    found = {arg for node in template for arg in node.all_input_nodes if arg in earlier}
    if len(found) != 1:
        raise CompilerBug(
            f"layer {layer} reads {sorted(n.name for n in found)} of the layer before, expected one value"
        )
    return found.pop()


def _stream_out(template: list[fx.Node], graph: fx.Graph) -> fx.Node:
    """The one value of this layer that later operators read, besides the caches that go out."""
    inside, result = set(template), graph.output_node()
    found = [n for n in template if any(user not in inside and user is not result for user in n.users)]
    if len(found) != 1:
        raise CompilerBug(f"{[n.name for n in found]} leave the layer, expected one value")
    return found[0]


def _renamed(node: fx.Node, old: int, new: int) -> str:
    return str(node.target).replace(f".{old}.", f".{new}.", 1)
