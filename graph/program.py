"""`Program`: one flat FX graph and its lazy weights, runnable in torch after every pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from pocketphi.graph import edge_ops as edge_ops  # registers the edge:: operators
from pocketphi.graph.adapters import Factors, weight_of_input
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import CompilerBug
from pocketphi.graph.lazy_weights import FloatWeight, LazyWeight, materialize
from pocketphi.graph.types import Size, TensorType, infer

Observer = Callable[[fx.Node, tuple[Any, ...]], Any]
"""Called before a node runs, with its evaluated arguments; returns its value, or None to let the node's operator give it."""

Run = Generator[tuple[fx.Node, tuple[Any, ...]], Any, dict[fx.Node, Any]]
"""Of a graph, node by node: see `stepwise`."""

Reader = Callable[[str], Any]
"""Gives the evaluator its weights, by the target of the node that reads one."""


class Weights:
    """Gives the evaluator its weights: all kept, for a model that fits, or made anew at each use."""

    def __init__(self, weights: Mapping[str, LazyWeight], keep: bool) -> None:
        self._weights = weights
        self._keep = keep
        self._made: dict[str, dict[str, torch.Tensor]] = {}

    def __call__(self, target: str) -> torch.Tensor:
        name, part = split_target(target)
        made = self._made.get(name)
        if made is None:
            if not self._keep:
                self._made = {}  # before the next is made: two of the largest would be most of what a run takes
            made = materialize(self._weights[name])
            # q, scale and zero of a weight are asked for one after the other: the last weight is always kept
            self._made[name] = made
        return made[part]


def split_target(target: str) -> tuple[str, str]:
    """A weight node's target → its name and part: `a.weight:scale` → (`a.weight`, `scale`)."""
    name, _, part = target.partition(":")
    return name, part


@dataclass
class Program:
    """A traced model.

    graph:    placeholders are the inputs by their public names (`input_ids` int64 [B, S], `attention_mask` int64 [B, T],
              `position_ids` int64 [B, S], `past_key_values.N.key|value` float32 [B, KV, P, D]); `get_attr` nodes are
              weights; the output is a dictionary (`logits` float32 [B, S, V], `present.N.key|value` [B, KV, P + S, D]);
              `meta["val"]` of a node is the type of what it gives (`graph.types`)
    config:   the model's shape
    weights:  by name, every one that the graph reads
    adapters: by name, those that `CarryAdapters` gives inputs, which are of rank 0 where none is switched on
    """

    graph: fx.Graph
    config: ModelConfig
    weights: dict[str, LazyWeight]
    adapters: dict[str, Factors] = field(default_factory=dict)

    @property
    def inputs(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    @property
    def outputs(self) -> dict[str, fx.Node]:
        (result,) = self.graph.output_node().args
        return dict(result)  # type: ignore[arg-type]

    def copy(self) -> Program:
        """The same program with a graph of its own; weights are shared."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.graph, {}))
        return Program(graph, self.config, dict(self.weights), dict(self.adapters))

    def over(self, checkpoint: Checkpoint) -> Program:
        """The same program over another checkpoint's tensors of the same names."""
        made = self.copy()
        for name, weight in self.weights.items():
            if isinstance(weight, FloatWeight):
                made.weights[name] = replace(weight, checkpoint=checkpoint)
        return made

    def operators(self) -> Counter[str]:
        """How often each operator occurs, under its short name."""
        return Counter(op_name(node) for node in self.graph.nodes if node.op == "call_function")

    def run(
        self, inputs: Mapping[str, torch.Tensor], weights: Weights | None = None, observe: Observer | None = None
    ) -> dict[str, torch.Tensor]:
        """Evaluate the graph. Unused inputs may be missing; a value is dropped after its last use."""
        outputs = self.outputs
        values = evaluate(outputs.values(), inputs, weights or Weights(self.weights, keep=False), observe)
        return {name: values[node] for name, node in outputs.items()}

    def prefill_inputs(self, tokens: torch.Tensor, past: int = 0) -> dict[str, torch.Tensor]:
        """Inputs for tokens int64 [B, S] after `past` earlier ones, with empty caches (which past > 0 must replace), and
        without an adapter."""
        batch, length = tokens.shape
        empty = torch.zeros(batch, self.config.kv_heads, 0, self.config.head_dim)
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones(batch, past + length, dtype=torch.int64),
            "position_ids": torch.arange(past, past + length).expand(batch, -1),
            **{str(node.target): empty for node in self.inputs if str(node.target).startswith("past_key_values.")},
            **{
                str(node.target): torch.zeros([size if isinstance(size, int) else 0 for size in shape_of(node)])
                for node in self.inputs
                if weight_of_input(str(node.target))
            },
        }

    def call(self, target: Callable[..., Any], args: tuple[Any, ...], before: fx.Node) -> fx.Node:
        """Insert a call before a node, with its shapes inferred."""
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args)
        given: Any = fx.map_arg(args, lambda n: n.meta["val"])
        node.meta["val"] = infer(target, given)
        return node

    def weight(self, name: str, weight: LazyWeight, before: fx.Node) -> dict[str, fx.Node]:
        """Nodes that read each part of a weight, which is added to the program if it is new."""
        self.weights[name] = weight
        nodes = {}
        for part, spec in weight.parts.items():
            with self.graph.inserting_before(before):
                node = self.graph.get_attr(f"{name}:{part}" if part else name)
            node.meta["val"] = TensorType(spec.shape, spec.dtype)
            nodes[part] = node
        return nodes

    def weights_read(self) -> dict[str, LazyWeight]:
        """The weights in the order in which the graph first reads them."""
        targets = (split_target(str(node.target))[0] for node in self.graph.nodes if node.op == "get_attr")
        return {name: self.weights[name] for name in dict.fromkeys(targets)}

    def remove_dead(self) -> int:
        """Delete what no output needs; returns how many nodes went. Inputs stay: they are the interface."""
        before = len(self.graph.nodes)
        self.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        used = self.weights_read()
        self.weights = {name: weight for name, weight in self.weights.items() if name in used}
        return before - len(self.graph.nodes)

    def check(self) -> None:
        """Raise CompilerBug unless the graph is well-formed and every weight it reads is there."""
        self.graph.lint()
        for node in self.graph.nodes:
            if node.op == "get_attr":
                name, part = split_target(str(node.target))
                if name not in self.weights or part not in self.weights[name].parts:
                    raise CompilerBug(f"{node.name} reads {node.target!r}, which has no recipe")
            elif node.op != "output" and "val" not in node.meta:
                raise CompilerBug(f"{node.name} ({op_name(node)}) has no inferred shape")

    def dump(self) -> str:
        """The graph as text: one line a node with its shape, then the weights."""
        lines = []
        for node in self.graph.nodes:
            if node.op == "output":
                lines += [f"return {name} = %{value.name}" for name, value in self.outputs.items()]
            else:
                arguments = ", ".join([*map(_show, node.args), *(f"{k}={_show(v)}" for k, v in node.kwargs.items())])
                lines.append(f"%{node.name}: {node.meta.get('val')} = {op_name(node)}({arguments})")
        lines += ["", *(f"weight {name}: {weight.describe()}" for name, weight in self.weights.items())]
        return "\n".join(lines) + "\n"


def evaluate(
    wanted: Iterable[fx.Node],
    inputs: Mapping[str, torch.Tensor],
    weights: Reader,
    observe: Observer | None = None,
    given: Mapping[fx.Node, Any] | None = None,
) -> dict[fx.Node, Any]:
    """Run the part of a graph that `wanted` needs, in graph order. Returns the values of `wanted`. given: see `stepwise`."""
    with torch.no_grad():
        return observed(stepwise(wanted, inputs, weights, given), observe)


def observed(run: Run, observe: Observer | None = None) -> dict[fx.Node, Any]:
    """Go through a run to its end. Returns its values."""
    try:
        step = next(run)
        while True:
            value = observe(*step) if observe else None
            del step  # its arguments go with their last use
            step = run.send(value)
    except StopIteration as end:
        return end.value


def side_by_side(
    runs: Sequence[Run],
    meets: Callable[[fx.Node], bool],
    observe: Callable[[fx.Node, list[tuple[Any, ...]]], Callable[..., Any] | None],
) -> list[dict[fx.Node, Any]]:
    """Go through runs of the same nodes on different inputs. Returns the values of each.

    Before a node that `meets` names all of them wait for each other, and `observe` is given their arguments. It returns what
    computes the node's value from one run's arguments, or None to let the node's operator give it. From there to the next such
    node they go one after the other, so that what is only needed between is in memory for one of them.
    """
    steps: list[tuple[fx.Node, tuple[Any, ...]] | None] = [None for _ in runs]
    results: list[dict[fx.Node, Any]] = []

    def onwards(number: int, compute: Callable[..., Any] | None) -> None:
        """One run to the next node where it waits. No value is held here while it runs."""
        step, steps[number] = steps[number], None
        value = compute(*step[1]) if compute and step else None
        del step
        sent = [value]
        del value
        try:
            step = runs[number].send(sent.pop())
            while not meets(step[0]):
                del step
                step = runs[number].send(None)
            steps[number] = step
        except StopIteration as end:
            results.append(end.value)

    with torch.no_grad():
        compute = None
        while len(results) < len(runs):
            for number in range(len(runs)):
                onwards(number, compute)
            waiting = [step for step in steps if step]
            compute = None  # it may hold a matrix
            compute = observe(waiting[0][0], [args for _, args in waiting]) if waiting else None
            del waiting
    return results


def stepwise(
    wanted: Iterable[fx.Node],
    inputs: Mapping[str, torch.Tensor],
    weights: Reader,
    given: Mapping[fx.Node, Any] | None = None,
) -> Run:
    """The same as a generator, so that several graphs can be run side by side.

    Before a node runs it is yielded with its evaluated arguments. What is sent is its value, or None to let it be computed.

    given: values that need not be computed, nor anything that only they need

    A value is dropped after its last use, a given one too, and a weight is not asked for before its first.
    """
    wanted = list(wanted)
    values: dict[fx.Node, Any] = dict(given or {})
    del given
    order = ancestors(wanted, values)
    uses = Counter(arg for node in order for arg in node.all_input_nodes)
    uses.update(wanted)

    def value_of(node: fx.Node) -> Any:
        if node.op == "get_attr" and node not in values:
            values[node] = weights(str(node.target))
        return values[node]

    for node in order:
        if node.op == "placeholder":
            values[node] = inputs[str(node.target)]
        elif node.op != "get_attr":
            args = fx.map_arg(node.args, value_of)
            value = yield node, args
            if value is None:
                value = node.target(*args, **fx.map_arg(node.kwargs, value_of))  # type: ignore[operator]
            values[node] = value
            del args, value
        for arg in node.all_input_nodes:
            uses[arg] -= 1
            if not uses[arg]:
                del values[arg]
    return {node: value_of(node) for node in wanted}


def free_inputs(node: fx.Node) -> set[str]:
    """The names of the program inputs that a value depends on."""
    return {str(n.target) for n in ancestors([node], ()) if n.op == "placeholder"}


def op_name(node: fx.Node) -> str:
    """Short name of what a node does: `aten.mul.Tensor` → `mul`, `edge.attention.default` → `edge.attention`."""
    if node.op == "placeholder":
        return "input"
    if node.op == "get_attr":
        return "weight"
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        namespace, name = target._schema.name.split("::")
        return name if namespace == "aten" else f"{namespace}.{name}"
    return getattr(target, "__name__", str(target))


def shape_of(node: fx.Node) -> tuple[int | Size, ...]:
    """The inferred shape of a node's tensor."""
    shape: tuple[int | Size, ...] = node.meta["val"].shape
    return shape


def ancestors(wanted: list[fx.Node], known: Container[fx.Node]) -> list[fx.Node]:
    """What has to run for `wanted`, in graph order; nothing behind a node that is known."""
    needed: set[fx.Node] = set()
    stack = list(wanted)
    while stack:
        node = stack.pop()
        if node not in needed and node not in known:
            needed.add(node)
            stack.extend(node.all_input_nodes)
    return [node for node in wanted[0].graph.nodes if node in needed] if wanted else []


def _show(arg: Any) -> str:
    if isinstance(arg, fx.Node):
        return str(arg.target) if arg.op == "get_attr" else f"%{arg.name}"
    if isinstance(arg, (list, tuple)):
        return f"[{', '.join(map(_show, arg))}]"
    return repr(arg)
