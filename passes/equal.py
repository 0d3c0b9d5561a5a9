"""Does a rewritten graph still compute the same bits? Asked of the user's own weights, without running the whole model twice.

The graphs of a model before and after its rewrites have the same linear layers and embedding, and differ in what lies between.
So both are run side by side and stop where a weight is about to be read. There the inputs of both must be equal to the bit;
then the product is computed once, and given to both. A weight is read a chunk at a time for all cases at once.

In a model that is small every product is computed. In a large one that holds for the first layer, the last, one between and one
of each other kind; the others' products are replaced by a function of their inputs that costs nothing (`_stand_in`). All norms,
rotary embeddings, masks, softmaxes, gates and residual adds are run in every layer.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from pocketphi.graph.config import ModelConfig, layer_of
from pocketphi.graph.edge_ops import MATRIX_READERS
from pocketphi.graph.errors import CompilerBug
from pocketphi.graph.experts import each_input, routed
from pocketphi.graph.lazy_weights import LazyWeight
from pocketphi.graph.program import Program, Reader, Weights, shape_of, stepwise
from pocketphi.graph.threads import one_thread
from pocketphi.passes.streamed import expert, multiply, rows_of

aten = torch.ops.aten

_EXPERTS = torch.ops.edge.experts.default

_ALL_BELOW = 1 << 28
"""Parameters up to which every product is computed."""

_CACHE_LIMIT = 1 << 28
"""Bytes of keys and values, of one layer, up to which a case is run: beyond, it is left out and named."""


@dataclass(frozen=True)
class Case:
    """`length` new tokens of `batch` rows after `past` earlier ones."""

    length: int
    past: int = 0
    batch: int = 1

    @property
    def end(self) -> int:
        """The last position, from 1."""
        return self.past + self.length


@dataclass
class Equality:
    """What was found. differs: where the graphs part, empty if nowhere; overflows: what is no finite number in the first
    graph already, so that nothing behind it can be compared; places: inputs and outputs that were compared; products: weights
    whose product was computed; left_out: cases that were too large to run."""

    differs: str = ""
    overflows: str = ""
    places: int = 0
    products: int = 0
    left_out: list[str] = field(default_factory=list)


def compare_graphs(before: Program, after: Program, weights: Mapping[str, LazyWeight], context: int) -> Equality:
    """Run two float programs of one model and compare them bit for bit.

    weights: those that linear layers, embedding and norms read, as float32, by name; context: positions that the second
    program covers.

    The whole depth is run on a prompt, a batch with a cache and a decode. The attention of the chosen layers is run across the
    window's edge and on both sides of LongRoPE's switch as well.
    """
    found = Equality()
    sides = _Side(before, weights), _Side(after, weights)
    config, small = before.config, before.config.parameters <= _ALL_BELOW
    chosen = _chosen_layers(config, *sides)
    with torch.no_grad(), one_thread():
        for case in _long_cases(config, context):
            if config.kv_cache_bytes(case.past) // config.layers > _CACHE_LIMIT:
                found.left_out.append(f"{case.past} tokens in the cache")
                continue
            for layer in chosen:
                if not (found.differs or found.overflows):
                    _compare_layer(sides, layer, case, weights, found)
        if found.differs or found.overflows:
            return found
        cases = [case for case in (Case(9), Case(3, 7, 2), Case(1, 2)) if case.end <= context] or [Case(1)]
        # the keys and values that go out of a large model take more memory than all else: those of the shortest case tell
        runs = [[side.run(case, side.outputs(small or case is cases[-1])) for side in sides] for case in cases]
        products = _Products(weights, chosen, small)
        _side_by_side(runs, products, found)
        found.products = len(products.computed)
    return found


def working_bytes(config: ModelConfig, context: int) -> int:
    """What `compare_graphs` takes at most: the keys and values of a layer in the longest case, and half as much again for what
    the system holds back of those that are freed."""
    caches = [config.kv_cache_bytes(case.end) // config.layers for case in _long_cases(config, context)]
    return max((3 * size // 2 for size in caches if size <= _CACHE_LIMIT), default=0)


def _chosen_layers(config: ModelConfig, *sides: _Side) -> list[int]:
    """The first, the last, one between, and one of each kind where layers are not all the same graph."""
    last = config.layers - 1
    kinds: dict[Any, int] = {}
    for layer, kind in enumerate(zip(*(side.layer_kinds() for side in sides))):
        kinds.setdefault(kind, layer)
    return sorted({0, last // 2, last, *kinds.values()})


def _long_cases(config: ModelConfig, context: int) -> Iterator[Case]:
    """Across the edge of the window, or of near blocks; the last and first total lengths with short and long rotary factors."""
    window = config.sliding_window
    switch = config.long_rope.original_max_position if config.long_rope else None
    cases = [Case(4, max(window - 2, 0)), Case(2, window)] if window else []
    if config.sparse:  # where the first block is no longer near, and where there are several of those
        edge = config.sparse.block * config.sparse.local
        cases += [Case(4, max(edge - 2, 0)), Case(2, (config.sparse.stride + 1) * edge + 1)]
    cases += [Case(2, max(switch - 2, 0)), Case(2, switch - 1), Case(3, switch)] if switch else []
    return (case for case in cases if case.end <= context)


@dataclass
class _Step:
    """Where a run has come to: a node that reads a weight, or the end.

    kind: which of the two, in words; tensors: what is to be the same here, by name; weight, target, args: of the node
    """

    kind: str
    tensors: dict[str, torch.Tensor]
    weight: str = ""
    target: Any = None
    args: tuple[Any, ...] = ()


Run = Generator[_Step, Any, None]


class _Side:
    """One of the two programs. readers: its linear layers and embeddings, with the names of their weights."""

    def __init__(self, program: Program, weights: Mapping[str, LazyWeight]) -> None:
        self._program = program
        self.readers = {node: name for node in program.graph.nodes if (name := _weight_of(node)) is not None}
        matrices = set(self.readers.values())
        rest = {name: weights.get(name, own) for name, own in program.weights.items() if name not in matrices}
        kept = Weights(rest, keep=True)
        # matrices by their names, since their products are computed elsewhere
        self._weights: Reader = lambda target: target if target in matrices else kept(target)

    def outputs(self, caches: bool) -> dict[str, fx.Node]:
        """The logits, and perhaps the keys and values, by name."""
        outputs = self._program.outputs
        return outputs if caches else {"logits": outputs["logits"]}

    def inputs_of(self, layer: int) -> dict[str, fx.Node]:
        """What the linear layers of a decoder layer read."""
        readers = self.readers.items()
        return {f"the input of {name}": node.args[0] for node, name in readers if layer_of(name) == layer}

    def layer_kinds(self) -> list[tuple[str, ...]]:
        """For each layer, its operators with their constants: from its first linear layer to that of the next."""
        kinds: dict[int, list[str]] = {}
        layer = None
        for node in self._program.graph.nodes:
            if node in self.readers:
                layer = layer_of(self.readers[node])
            if layer is not None and node.op == "call_function":
                constants = fx.map_arg((node.args, node.kwargs), _constant)
                kinds.setdefault(layer, []).append(f"{node.target} {constants}")
        return [tuple(kind) for kind in kinds.values()]

    def run(self, case: Case, wanted: Mapping[str, fx.Node], given: Mapping[fx.Node, Any] | None = None) -> Run:
        """Yields at every reader, whose value is sent, and then at the end, with `wanted`. given: see `stepwise`."""
        tokens = _tokens(self._program.config, case)
        inputs = {**self._program.prefill_inputs(tokens, case.past), **_caches(self._program, case)}
        run = stepwise(dict.fromkeys(wanted.values()), inputs, self._weights, given)
        value = None
        try:
            while True:
                node, args = run.send(value)
                value = None
                if name := self.readers.get(node):
                    tensors = {f"the input of {name}": arg for arg in args if isinstance(arg, torch.Tensor)}
                    value = yield _Step(f"{node.target} of {name}", tensors, name, node.target, args)
        except StopIteration as end:
            yield _Step("the end", {name: end.value[node] for name, node in wanted.items()})


def _weight_of(node: fx.Node) -> str | None:
    """The name of the weight that a linear layer or an embedding reads; None for another node."""
    if node.target not in MATRIX_READERS:
        return None
    weight = node.args[MATRIX_READERS[node.target]]
    return str(weight.target) if isinstance(weight, fx.Node) and weight.op == "get_attr" else None


def _constant(node: fx.Node) -> str:
    """What a kind of layer knows of another node: the name of a table that all layers read, and nothing else."""
    return str(node.target) if node.op == "get_attr" and layer_of(str(node.target)) is None else ""


def _side_by_side(pairs: Sequence[Sequence[Run]], products: _Products, found: Equality) -> None:
    """Take all runs from one weight to the next, as long as they agree."""
    values: list[Any] = [None] * len(pairs)
    while True:
        steps = [[run.send(value) for run in pair] for pair, value in zip(pairs, values)]
        for left, right in steps:
            found.places += 1
            if left.kind != right.kind:
                found.differs = f"{right.kind} stands where {left.kind} stood"
            else:
                found.differs, found.overflows = _difference(left.tensors, right.tensors)
            if found.differs or found.overflows:
                return
        first = steps[0][0]
        if not first.weight:
            return
        values = products.of(first.weight, first.target, [left.args for left, _ in steps])


def _difference(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> tuple[str, str]:
    """Where two sets of named values differ, and what of the first is not finite; each empty if nowhere. Zeros of either sign
    are one value."""
    if before.keys() != after.keys():
        return f"{sorted(before.keys() ^ after.keys())[0]} is on one side only", ""
    for what, a in before.items():
        b = after[what]
        if a.shape != b.shape:
            return f"{what} has shape {list(b.shape)} instead of {list(a.shape)}", ""
        if a.is_floating_point() and not a.isfinite().all():
            return "", what
        if not torch.equal(a, b):
            largest = float((a.double() - b.double()).abs().max())
            return f"{what} differs in {int((a != b).sum())} of {a.numel()} values, by {largest:.2g} at most", ""
    return "", ""


def _compare_layer(
    sides: tuple[_Side, _Side], layer: int, case: Case, weights: Mapping[str, LazyWeight], found: Equality
) -> None:
    """Compare the inputs of one layer's linear layers, given random outputs of all: its attention, its norms and its gate."""
    values = []
    for side in sides:
        given = {}
        for node, name in side.readers.items():
            shape = case.batch, case.length, *map(int, shape_of(node)[2:])
            given[node] = _random_view(shape, _number(name) % _OFFSETS)
        step = next(side.run(case, side.inputs_of(layer), given))
        if step.weight:
            raise CompilerBug(f"{step.kind} is run, and its value was given")
        values.append(step.tensors)
    found.places += len(values[0])
    problem, found.overflows = _difference(*values)
    found.differs = problem and f"after {case.past} tokens, {problem}"


_OFFSETS = 4093
"""Places of one row of random values where different samples begin."""


def _random_view(shape: tuple[int, ...], offset: int) -> torch.Tensor:
    """Random float32 values that take no memory: all axes but the last step a little along one row of them."""
    steps = (11, 7, 3)[-len(shape) + 1 :]
    size = _OFFSETS + shape[-1] + sum(step * count for step, count in zip(steps, shape))
    return _row(size).as_strided(shape, (*steps, 1), offset)


@functools.lru_cache(maxsize=8)
def _row(size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(size))


def _tokens(config: ModelConfig, case: Case) -> torch.Tensor:
    """Random: int64 [B, S]."""
    generator = torch.Generator().manual_seed(case.length + case.past)
    return torch.randint(config.vocab_size, (case.batch, case.length), generator=generator)


def _caches(program: Program, case: Case) -> dict[str, torch.Tensor]:
    """Keys and values that stand for earlier tokens, the same in every layer: float32 [B, KV, P, D]."""
    shape = (case.batch, program.config.kv_heads, case.past, program.config.head_dim)
    caches = {kind: _random_view(shape, offset) for kind, offset in (("key", 1), ("value", 2))}
    names = (str(node.target) for node in program.inputs)
    return {n: caches[n.rpartition(".")[2]] for n in names if n.startswith("past_key_values.")}


class _Products:
    """What linear layers and embeddings give: computed where `all_` or the layer is chosen, else a stand-in."""

    def __init__(self, weights: Mapping[str, LazyWeight], chosen: Sequence[int], all_: bool) -> None:
        self._weights, self._chosen, self._all = weights, chosen, all_
        self.computed: set[str] = set()

    def of(self, name: str, target: Any, cases: Sequence[tuple[Any, ...]]) -> list[torch.Tensor]:
        """The values for each case, out of the arguments of its node."""
        if target is _EXPERTS:
            return self._of_experts(name, cases)
        embeds = target is aten.embedding.default
        inputs = [args[1] if embeds else args[0] for args in cases]
        flat = torch.cat([x.flatten(0, 1) for x in inputs])
        layer = layer_of(name)
        if embeds:  # only the rows of these tokens are read
            out = rows_of(self._weights[name], flat)
        elif self._all or layer in self._chosen:
            out = multiply(flat, self._weights[name])
            self.computed.add(name)
        else:
            out = _stand_in(name, flat, self._weights[name].parts[""].shape[0])
        pieces = out.split([x.shape[0] * x.shape[1] for x in inputs])
        bias = next((args[2] for args in cases if not embeds and len(args) > 2), None)
        shaped = [piece.view(*x.shape[:2], -1) for piece, x in zip(pieces, inputs)]
        return shaped if bias is None else [piece + bias for piece in shaped]

    def _of_experts(self, name: str, cases: Sequence[tuple[Any, ...]]) -> list[torch.Tensor]:
        """The same of experts' matrices, of which the chosen ones are read."""
        found, weight = [], self._weights[name]
        computed = self._all or layer_of(name) in self._chosen
        if computed:
            self.computed.add(name)
        for x, chosen, _, count in cases:
            size = weight.parts[""].shape[0] // count
            if computed:
                found.append(routed(x, chosen, size, functools.partial(expert, weight, size)))
                continue
            # another stand-in for every expert, too
            turned = each_input(x, chosen).flatten(0, 2) * (1 + chosen.reshape(-1, 1) / count)
            found.append(_stand_in(name, turned, size).view(*chosen.shape, -1))
        return found


def _stand_in(name: str, x: torch.Tensor, size: int) -> torch.Tensor:
    """A function of x that is another one for every weight: its columns, moved and multiplied by ±1. [R, K] → [R, size]."""
    number = _number(name)
    place = torch.arange(size) * (2 * (number % 1009) + 1) + number
    return x[:, place % x.shape[1]] * (1 - 2 * (place % 3 % 2))


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
