"""What the rules of `lower.py` share: values by node, weights at their first use, positions and states of one function."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from pocketphi.graph.edge_ops import ATTENTIONS
from pocketphi.graph.errors import CompilerBug
from pocketphi.graph.formats import known_format
from pocketphi.graph.program import Program, op_name, shape_of, split_target
from pocketphi.targets.coreml.codecs import CODECS, held
from pocketphi.targets.coreml.coremltools_parts import Var
from pocketphi.targets.coreml.form import Form
from pocketphi.targets.coreml.mil import FunctionBuilder, Input
from pocketphi.targets.coreml.weightfile import WeightFile, identifier, steps
from pocketphi.targets.lowering import once

STATES = ("keyCache", "valueCache")


def inputs_of(program: Program, form: Form, function: str) -> dict[str, Input]:
    """The inputs and states of a function, in order."""
    length, config = form.functions[function], program.config
    state = (config.layers, 1, config.kv_heads, form.rows, config.head_dim)
    states = {name: Input(state, "fp16", state=True) for name in STATES}
    if length is None:
        most = form.context
        mask = (1, 1, (1, most), (2, most + 1))
        return {"inputIds": Input((1, (1, most)), "int32"), "causalMask": Input(mask, "fp16"), **states}
    names = ["position"]
    called = [(op_name(node), node.args) for node in program.graph.nodes]
    if length > 1 and any(kind == "edge.last_token" for kind, _ in called):
        names.append("length")
    if any(kind in ATTENTIONS and 0 < args[10] < form.positions for kind, args in called):  # two rotary tables
        names.append("total")
    return {"inputIds": Input((1, length), "int32"), **{name: Input((1,), "int32") for name in names}, **states}


class Emitter(FunctionBuilder):
    """One function in the making."""

    def __init__(self, program: Program, form: Form, file: WeightFile, function: str) -> None:
        super().__init__(file, inputs_of(program, form, function), form.ios)
        self.program = program
        self.form = form
        self.length = form.functions[function] or -1
        """Tokens of a call; -1 for any number."""
        self.values: dict[fx.Node, Var] = {}
        self.caches: dict[str, Var] = {}
        self._logits = program.outputs["logits"]

    def name(self, node: fx.Node) -> str:
        """What a node's value is called: the output by its public name."""
        return "logits" if node is self._logits else node.name

    def value(self, node: Any) -> Var:
        """The value of a node."""
        if node.op == "get_attr":
            return self.float_weight(str(node.target))
        if node not in self.values:
            raise CompilerBug(f"{node.name} ({op_name(node)}) has no value in the Core ML function")
        return self.values[node]

    @once
    def float_weight(self, target: str) -> Var:
        """A float weight is placed at its first use."""
        return self.weight(target, identifier(target))

    def set_items(self, node: fx.Node, items: list[Var]) -> None:
        """Values of a tuple's items; items that no function computes are left out and must not be read."""
        for user in node.users:
            index: Any = user.args[1]
            if index < len(items):
                self.values[user] = items[index]

    def decoded(self, node: fx.Node) -> Var:
        """The quantized weight of a node, decompressed where it is used: float16 [N, K]. One value for tied uses."""
        return self._decoded(*(str(arg.target) for arg in node.args[1:] if isinstance(arg, fx.Node)))

    @once
    def _decoded(self, *targets: str) -> Var:
        parts = held({split_target(target)[1]: target for target in targets}, self.form.ios)
        name, codec = identifier(split_target(targets[0])[0]), CODECS[known_format(parts).name]
        present = {parameter: part for parameter, part in codec.parameters.items() if part in parts}
        given = {parameter: self.weight(parts[part], f"{name}_{part}") for parameter, part in present.items()}
        return codec.decoded(self, name, given)

    def width(self, node: Any) -> int:
        """The last size of a value of the graph."""
        return int(shape_of(node)[-1])

    def times(self, name: str, x: Var, weight: Var, rows: int) -> Var:
        """x · weightᵀ. `linear` always has a bias; its zeros are one blob for all."""
        bias = self.constant(f"const.zeros_{rows}", np.zeros(rows, np.float16))
        return self.op("linear", name, x=x, weight=weight, bias=bias)

    def in_blocks(self, node: fx.Node, x: Var, blocks: int) -> Var:
        """[1, S, K] → [1, S, blocks, K / blocks]."""
        length, columns = x.shape[1:]
        length = -1 if self.form.flexible else length
        return self.op("reshape", f"{node.name}_blocks", x=x, shape=[1, length, blocks, columns // blocks])

    # positions, in int32: float16 counts exactly to 2048 only

    @once
    def call_length(self) -> Var:
        """int32 [1]: tokens of this call, where that may be any number."""
        shape = self.op("shape", "ids_shape", x=self.inputs["inputIds"])
        return self.op("slice_by_index", "call_length", x=shape, begin=[1], end=[2])

    @once
    def total(self) -> Var:
        """int32 [1]: tokens of the sequence, which decide between LongRoPE's tables."""
        if not self.form.flexible:
            return self.inputs["total"]
        shape = self.op("shape", "mask_shape", x=self.inputs["causalMask"])
        columns = self.op("slice_by_index", "mask_columns", x=shape, begin=[3], end=[4])
        return self.op("sub", "total", x=columns, y=np.int32(1))

    @once
    def position(self) -> Var:
        """int32 [1]: tokens in the cache."""
        if not self.form.flexible:
            return self.inputs["position"]
        return self.op("sub", "position", x=self.total(), y=self.call_length())

    @once
    def end(self) -> Var:
        """int32 [1]: position + tokens of this call."""
        if self.form.flexible:
            return self.total()
        return self.op("add", "end", x=self.position(), y=np.int32(self.length))

    @once
    def row(self) -> Var:
        """int32 [1]: where the cache has the first token of this call."""
        return (
            self.op("mod", "cache_row", x=self.position(), y=np.int32(self.form.ring))
            if self.form.ring
            else self.position()
        )

    @once
    def row_end(self) -> Var:
        """int32 [1]: the row behind those that this call writes."""
        return self.op("add", "cache_row_end", x=self.row(), y=np.int32(self.length)) if self.form.ring else self.end()

    @once
    def positions(self, fold: int) -> Var:
        """int32 [fold · S]: the position of each token of this call, `fold` times over."""
        name = f"positions_{fold}"
        if self.form.flexible:
            ends = [self.op("squeeze", f"{name}_{i}", x=x) for i, x in enumerate((self.position(), self.end()))]
            all_of_them = self.op("range_1d", f"{name}_once", start=ends[0], end=ends[1], step=np.int32(1))
            return all_of_them if fold == 1 else self.op("tile", name, x=all_of_them, reps=[fold])
        if self.length == 1:
            return self.position()  # broadcasts over the heads of a group
        step = self.constant(f"const.steps_{fold}", steps(self.length, fold))
        return self.op("add", name, x=step, y=self.position())
