"""Repeat the last traced decoder layer to the model's depth.

Before: embedding → layer 0 → layer 1 → norm → head. After: … → layer 1 → layer 2 → … → layer L-1 → norm → head, where
layer i ≥ 2 is a copy of layer 1 that reads `model.layers.i.*` and `past_key_values.i.*`.

The copy is refused (CompilerBug) unless layers 0 and 1 are the same graph up to their own weights and caches: then
nothing depends on the layer's number, and a copy is what tracing the whole depth would have given.
"""

from __future__ import annotations

import re
from typing import Any

from torch import fx

from pocketphi.graph.config import layer_of
from pocketphi.graph.errors import CompilerBug
from pocketphi.graph.program import Program, op_name


def repeat_layer(program: Program, last: int, depth: int) -> None:
    """Append layers last + 1 … depth - 1, each a copy of layer `last`. Changes the program in place."""
    if last + 1 >= depth:
        return
    if last < 1:
        raise CompilerBug("at least two layers must be traced before the last can be repeated")
    graph = program.graph
    template, before = _layer_nodes(graph, last), _layer_nodes(graph, last - 1)
    _check_same(before, template)
    hidden_in, hidden_out = _stream(template, last, graph), _stream_out(template, graph)
    outputs = program.outputs
    last_input = [node for node in graph.nodes if node.op == "placeholder"][-1]
    anchor = template[-1]
    stream = hidden_out
    readers = [user for user in hidden_out.users if user not in template]
    for layer in range(last + 1, depth):
        copies: dict[fx.Node, fx.Node] = {hidden_in: stream}
        for node in template:
            for arg in node.all_input_nodes:
                if arg not in copies and arg.op in ("placeholder", "get_attr") and layer_of(str(arg.target)) == last:
                    with graph.inserting_after(last_input):
                        copies[arg] = _rename(graph, arg, last, layer)
                    if arg.op == "placeholder":
                        last_input = copies[arg]
            with graph.inserting_after(anchor):
                anchor = graph.node_copy(node, _Copied(copies))
            copies[node] = anchor
        for kind in ("key", "value"):
            outputs[f"present.{layer}.{kind}"] = copies[outputs[f"present.{last}.{kind}"]]
        stream = copies[hidden_out]
    for reader in readers:
        reader.replace_input_with(hidden_out, stream)
    graph.output_node().args = (outputs,)


class _Copied:
    """Maps a node to its copy, and others to themselves."""

    def __init__(self, copies: dict[fx.Node, fx.Node]) -> None:
        self._copies = copies

    def __call__(self, node: fx.Node) -> fx.Node:
        return self._copies.get(node, node)


def _layer_nodes(graph: fx.Graph, layer: int) -> list[fx.Node]:
    """The calls that the module `model.layers.N` made, in order."""
    wanted = re.compile(rf"\.layers\.{layer}(\.|$)")
    nodes = []
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        if node.op == "call_function" and any(wanted.search(path) for path, _ in stack.values()):
            nodes.append(node)
    return nodes


def _check_same(first: list[fx.Node], second: list[fx.Node]) -> None:
    """Same operators in the same order, with the same constants and the same wiring inside."""
    place = [{node: i for i, node in enumerate(nodes)} for nodes in (first, second)]

    def shape_of_call(node: fx.Node, inside: dict[fx.Node, int]) -> Any:
        return fx.map_arg((node.args, node.kwargs), lambda n: f"#{inside[n]}" if n in inside else "outside")

    for a, b in zip(first, second, strict=False):
        if a.target is not b.target or str(shape_of_call(a, place[0])) != str(shape_of_call(b, place[1])):
            raise CompilerBug(f"decoder layers differ at {op_name(a)} ({a.name}) and {op_name(b)} ({b.name})")
    if len(first) != len(second):
        raise CompilerBug(f"decoder layers have {len(first)} and {len(second)} operators")


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


def _rename(graph: fx.Graph, node: fx.Node, old: int, new: int) -> fx.Node:
    target = str(node.target).replace(f".{old}.", f".{new}.", 1)
    made = graph.placeholder(target) if node.op == "placeholder" else graph.get_attr(target)
    made.meta = dict(node.meta)
    return made
