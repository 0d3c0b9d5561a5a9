"""What the rules of `lower.py` share: values by node, weights at their first use, positions and states of one function."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from pocketphi.graph.errors import CompilerBug
from pocketphi.graph.formats import known_format
from pocketphi.graph.program import Program, op_name, shape_of, split_target
from pocketphi.targets.coreml.codecs import CODECS
from pocketphi.targets.coreml.coremltools_parts import Var
from pocketphi.targets.coreml.form import Form
from pocketphi.targets.coreml.mil import FunctionBuilder, Input
from pocketphi.targets.coreml.weightfile import WeightFile, identifier, steps

STATES = ("keyCache", "valueCache")


def inputs_of(program: Program, form: Form, function: str) -> dict[str, Input]:
    """The inputs and states of a function, in order."""
    length, config = form.functions[function], program.config
    state = (config.layers, 1, config.kv_heads, form.positions, config.head_dim)
    states = {name: Input(state, "fp16", state=True) for name in STATES}
    if length is None:
        most = form.context
        mask = (1, 1, (1, most), (2, most + 1))
        return {"inputIds": Input((1, (1, most)), "int32"), "causalMask": Input(mask, "fp16"), **states}
    names = ["position"]
    names += ["length"] if length > 1 and _keeps_last(program) else []
    names += ["total"] if _two_tables(program, form) else []
    return {"inputIds": Input((1, length), "int32"), **{name: Input((1,), "int32") for name in names}, **states}


def _keeps_last(program: Program) -> bool:
    return any(op_name(node) == "edge.last_token" for node in program.graph.nodes)


def _two_tables(program: Program, form: Form) -> bool:
    return any(op_name(node) == "edge.attention" and 0 < node.args[10] < form.positions for node in program.graph.nodes)


class Emitter:
    """One function in the making."""

    def __init__(self, program: Program, form: Form, file: WeightFile, function: str) -> None:
        self.program = program
        self.form = form
        self.length = form.functions[function] or -1
        """Tokens of a call; -1 for any number."""
        self.builder = FunctionBuilder(file, inputs_of(program, form, function))
        self.values: dict[fx.Node, Var] = {}
        self.caches: dict[str, Var] = {}
        self._logits = program.outputs["logits"]

    def op(self, kind: str, name: str, **arguments: Any) -> Var:
        return self.builder.op(kind, name, **arguments)

    def name(self, node: fx.Node) -> str:
        """What a node's value is called: the output by its public name."""
        return "logits" if node is self._logits else node.name

    def value(self, node: Any) -> Var:
        """The value of a node; a float weight is placed at its first use."""
        if node.op == "get_attr":
            target = str(node.target)
            name, part = split_target(target)
            unique = identifier(f"{name}.{part}" if part else name)
            return self.builder.shared(f"weight {target}", lambda: self.builder.weight(target, unique))
        if node not in self.values:
            raise CompilerBug(f"{node.name} ({op_name(node)}) has no value in the Core ML function")
        return self.values[node]

    def set_items(self, node: fx.Node, items: list[Var]) -> None:
        """Values of a tuple's items; items that no function computes are left out and must not be read."""
        for user in node.users:
            index: Any = user.args[1]
            if index < len(items):
                self.values[user] = items[index]

    def decoded(self, node: fx.Node) -> Var:
        """The quantized weight of a node, decompressed where it is used: float16 [N, K]. One value for tied uses."""
        targets = [str(arg.target) for arg in node.args[1:] if isinstance(arg, fx.Node)]
        parts = {split_target(target)[1]: target for target in targets}
        name = identifier(split_target(targets[0])[0])

        def stored(part: str) -> Var:
            return self.builder.weight(parts[part], f"{name}_{part}")

        def make() -> Var:
            codec = CODECS[known_format(parts).name]
            held = {parameter: stored(part) for parameter, part in codec.parameters.items() if part in parts}
            return self.op(codec.operator, name, **held)

        return self.builder.shared(f"decoded {name}", make)

    def width(self, node: Any) -> int:
        """The last size of a value of the graph."""
        return int(shape_of(node)[-1])

    def times(self, name: str, x: Var, weight: Var, rows: int) -> Var:
        """x · weightᵀ. `linear` always has a bias; its zeros are one blob for all."""
        bias = self.builder.constant(f"const.zeros_{rows}", np.zeros(rows, np.float16))
        return self.op("linear", name, x=x, weight=weight, bias=bias)

    def in_blocks(self, node: fx.Node, x: Var, blocks: int) -> Var:
        """[1, S, K] → [1, S, blocks, K / blocks]."""
        length, columns = x.shape[1:]
        length = -1 if self.form.flexible else length
        return self.op("reshape", f"{node.name}_blocks", x=x, shape=[1, length, blocks, columns // blocks])

    # positions, in int32: float16 counts exactly to 2048 only

    def call_length(self) -> Var:
        """int32 [1]: tokens of this call, where that may be any number."""

        def make() -> Var:
            shape = self.op("shape", "ids_shape", x=self.builder.inputs["inputIds"])
            return self.op("slice_by_index", "call_length", x=shape, begin=[1], end=[2])

        return self.builder.shared("call_length", make)

    def total(self) -> Var:
        """int32 [1]: tokens of the sequence, which decide between LongRoPE's tables."""
        if not self.form.flexible:
            return self.builder.inputs["total"]

        def make() -> Var:
            shape = self.op("shape", "mask_shape", x=self.builder.inputs["causalMask"])
            columns = self.op("slice_by_index", "mask_columns", x=shape, begin=[3], end=[4])
            return self.op("sub", "total", x=columns, y=np.int32(1))

        return self.builder.shared("total", make)

    def position(self) -> Var:
        """int32 [1]: tokens in the cache."""
        if not self.form.flexible:
            return self.builder.inputs["position"]
        return self.builder.shared("position", lambda: self.op("sub", "position", x=self.total(), y=self.call_length()))

    def end(self) -> Var:
        """int32 [1]: position + tokens of this call."""
        if self.form.flexible:
            return self.total()
        return self.builder.shared("end", lambda: self.op("add", "end", x=self.position(), y=np.int32(self.length)))

    def positions(self, fold: int = 1) -> Var:
        """int32 [fold · S]: the position of each token of this call, `fold` times over."""

        def make() -> Var:
            name = f"positions_{fold}"
            if self.form.flexible:
                ends = [self.op("squeeze", f"{name}_{i}", x=x) for i, x in enumerate((self.position(), self.end()))]
                once = self.op("range_1d", f"{name}_once", start=ends[0], end=ends[1], step=np.int32(1))
                return once if fold == 1 else self.op("tile", name, x=once, reps=[fold])
            if self.length == 1:
                return self.position()  # broadcasts over the heads of a group
            step = self.builder.constant(f"const.steps_{fold}", steps(self.length, fold))
            return self.op("add", name, x=step, y=self.position())

        return self.builder.shared(f"positions {fold}", make)
