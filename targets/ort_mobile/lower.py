"""Program → ONNX: one rule for each operator, those of weights in `codecs.py`. Weights are placed by name only; `package.py`
streams their bytes.

Longer than a rule file should be only because every operator of the vocabulary has its rule here, side by side.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import fx

from pocketphi.graph.adapters import weight_of_input
from pocketphi.graph.edge_ops import QUICK_GELU
from pocketphi.graph.errors import CompilerBug
from pocketphi.graph.formats import PartSpec
from pocketphi.graph.program import Program, op_name, shape_of, split_target
from pocketphi.targets.lowering import Rule, lower_calls, once
from pocketphi.targets.ort_mobile import experts
from pocketphi.targets.ort_mobile.codecs import CODECS, MS, stored
from pocketphi.targets.ort_mobile.kv_cache import KV_CACHES, KvCache, scale_names
from pocketphi.targets.ort_mobile.options import CHECKED, INT8_ACTIVATIONS

OPSET = 21
IR_VERSION = 10

CHECKED_LOGITS = "checked_logits"
"""The name of the logits of the last CHECKED tokens, before each is put in its place."""

HIDDEN = -1e30
"""Added to a score that must not be seen: exp gives 0."""

K_SCALE = 12
"""Which input of GroupQueryAttention has the scales of keys; those of values follow."""

_TYPES = {torch.float32: TensorProto.FLOAT, torch.uint8: TensorProto.UINT8, torch.int64: TensorProto.INT64}


@dataclass(frozen=True)
class Placed:
    """An initializer that is a part of a weight. Its ONNX shape may differ from that of the file, its bytes do not.

    target: weight name and part, as `split_target` reads it; two initializers may share one (a tied embedding and head)
    spec: of the part in the file
    """

    name: str
    target: str
    shape: tuple[int, ...]
    spec: PartSpec


@dataclass
class Lowered:
    """The pieces of an ONNX graph. The bytes of `weights` are not here: they lie in the data file."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    weights: list[Placed] = field(default_factory=list)

    def to_model(self, initializers: Sequence[onnx.TensorProto], producer_version: str) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "pocketphi", self.inputs, self.outputs, [*self.constants, *initializers])
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MS, 1)]
        return helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=IR_VERSION,
            producer_name="pocketphi",
            producer_version=producer_version,
        )


def lower(
    program: Program,
    accuracy_level: int = INT8_ACTIVATIONS,
    cache: KvCache = KV_CACHES["fp32"],
    windowed: bool = False,
    drafts: bool = False,
) -> Lowered:
    """Lower a fused, quantized program. windowed: its caches may have fewer rows than a text has tokens; drafts: where it has
    logits of the last token, those of the last CHECKED ones are given, each in its place among zeros.

    Raises CompilerBug naming the first operator that has no rule.
    """
    emitter = Emitter(program, accuracy_level, cache, windowed, drafts)
    lower_calls(program, emitter, _RULES, CODECS, "ONNX")
    emitter.finish()
    return emitter.lowered


class Emitter:
    """Names values and collects nodes. A value of the graph has one ONNX name, or one for each item of a tuple."""

    def __init__(
        self, program: Program, accuracy_level: int, cache: KvCache, windowed: bool, drafts: bool = False
    ) -> None:
        self.program = program
        self.drafts = drafts and any(op_name(node) == "edge.last_token" for node in program.graph.nodes)
        self.accuracy_level, self.cache, self.windowed = accuracy_level, cache, windowed
        self.layers = 0
        self.lowered = Lowered()
        self.names: dict[fx.Node, Any] = {}
        self.made: dict[Any, Any] = {}
        self._constants: set[str] = set()
        self._outputs = {node: name for name, node in program.outputs.items()}
        if self.drafts:
            self._outputs[program.outputs["logits"]] = CHECKED_LOGITS

    def name(self, node: Any) -> str:
        """The ONNX name of a value; a weight is placed at its first use."""
        if node.op == "placeholder":
            return str(node.target)
        if node.op == "get_attr":
            return self.weight(node)
        return str(self.names[node])

    def weight(self, node: fx.Node, shape: Sequence[int] | None = None) -> str:
        """Place a weight at its first use, if asked under another shape of as many elements."""
        target = str(node.target)
        weight, part = split_target(target)
        spec = stored(self.program.weights[weight].parts)[part]
        wanted = tuple(spec.shape if shape is None else shape)
        same = [placed for placed in self.lowered.weights if placed.target == target]
        for placed in same:
            if placed.shape == wanted:
                return placed.name
        name = target.replace(":", ".") + (f".{len(wanted)}d" if same else "")
        self.lowered.weights.append(Placed(name, target, wanted, spec))
        return name

    def shape(self, node: Any) -> tuple[int, ...]:
        """The shape of a weight's part."""
        return tuple(map(int, shape_of(node)))

    def emit(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any
    ) -> str:
        """Add a node named for its first output; returns that output."""
        node = helper.make_node(kind, list(inputs), list(outputs), name=outputs[0], domain=domain, **attributes)
        self.lowered.nodes.append(node)
        return outputs[0]

    def result(self, node: fx.Node) -> str:
        """Name a value: a program output by its public name."""
        self.names[node] = self._outputs.get(node, node.name)
        return str(self.names[node])

    def constant(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        if name not in self._constants:
            self._constants.add(name)
            self.lowered.constants.append(onnx.numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def _check_names(self) -> None:
        """ONNX Runtime loads no graph in which two values have one name."""
        made = [name for node in self.lowered.nodes for name in node.output if name]
        made += [one.name for one in (*self.lowered.constants, *self.lowered.weights)]
        twice = {name for name, count in Counter(made).items() if count > 1}
        if twice:
            raise CompilerBug(f"two values of the graph are called {min(twice)}")

    @once
    def multiplied(self, scale: str, row_scale: str) -> str:
        """Scales of blocks int8 [N, blocks], in units of their row's [N, 1], by their ONNX names: as float32."""
        units = self.emit("Cast", [scale], [f"{scale}_units"], to=TensorProto.FLOAT)
        return self.emit("Mul", [units, row_scale], [f"{scale}_float"])

    @once
    def turned(self, weight: str) -> str:
        """A float weight [N, K] by its ONNX name, as [K, N]."""
        return self.emit("Transpose", [weight], [f"{weight}_T"], perm=[1, 0])

    def finish(self) -> None:
        if self.drafts:
            self.place_checked()
        self._check_names()
        used = {name for node in self.lowered.nodes for name in node.input}
        config = self.program.config
        sizes: dict[str, list[Any]] = {
            "input_ids": ["batch", "sequence"],
            "attention_mask": ["batch", "total"],
            "position_ids": ["batch", "sequence"],
        }
        cache = ["batch", config.kv_heads, None, self.cache.row(config.head_dim)]
        cache_type = helper.np_dtype_to_tensor_dtype(np.dtype(self.cache.dtype))
        for node in self.program.inputs:
            name = str(node.target)
            if weight_of_input(name):
                rank = f"{name.rpartition('.')[0]}.rank"
                sizes[name] = [size if isinstance(size, int) else rank for size in shape_of(node)]
                nothing = [size if isinstance(size, int) else 0 for size in shape_of(node)]
                self.lowered.constants.append(helper.make_tensor(name, TensorProto.FLOAT, nothing, b"", raw=True))
            if name in used:
                dtype = _TYPES[node.meta["val"].dtype] if name in sizes else cache_type
                shape = sizes.get(name) or [size or "past" for size in cache]
                self.lowered.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        for name, node in self.program.outputs.items():
            length = shape_of(node)[1]
            tokens = length if isinstance(length, int) and not self.drafts else "sequence"
            shape = ["batch", tokens, config.vocab_size] if name == "logits" else [size or "total" for size in cache]
            dtype = TensorProto.FLOAT if name == "logits" else cache_type
            self.lowered.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def cache_scales(self) -> list[str]:
        """The ONNX names of the scales of the next layer's keys and values."""
        names, config = scale_names(self.layers), self.program.config
        spec = PartSpec((config.kv_heads, config.head_dim), torch.float32)
        self.lowered.weights += [Placed(name, name, spec.shape, spec) for name in names]
        self.layers += 1
        return list(names)

    # values that the attention and the last token need, made from the attention mask

    @once
    def total_minus_one(self) -> str:
        """int32 [B]: real tokens of each row, past and new, minus one."""
        total = self.emit("ReduceSum", ["attention_mask", self.constant("axis_1", [1])], ["tokens"], keepdims=0)
        less = self.emit("Sub", [total, self.constant("one", [1])], ["tokens_minus_1"])
        return self.emit("Cast", [less], ["seqlens_k"], to=TensorProto.INT32)

    @once
    def mask_columns(self) -> str:
        """int64 [1]: columns of the attention mask."""
        return self.emit("Shape", ["attention_mask"], ["mask_columns"], start=1, end=2)

    @once
    def total_length(self) -> str:
        """int32 scalar: columns of the attention mask."""
        return self.emit("Cast", [self.columns()], ["total_sequence_length"], to=TensorProto.INT32)

    @once
    def columns(self) -> str:
        """int64 scalar: columns of the attention mask."""
        return self.emit("Squeeze", [self.mask_columns()], ["mask_columns_0"])

    @once
    def last_column(self) -> str:
        """int64 [B, 1]: each row's last real token: seqlens_k - (T - S), at least 0 (past tokens of shorter rows are padding
        to the right)."""
        past = self.emit("Sub", [self.mask_columns(), self.new_columns()], ["past_columns"])
        total = self.emit("Cast", [self.total_minus_one()], ["tokens_minus_1_int64"], to=TensorProto.INT64)
        raw = self.emit("Sub", [total, past], ["last_token_raw"])
        index = self.emit("Max", [raw, self.constant("zero", [0])], ["last_token"])
        return self.emit("Unsqueeze", [index, self.constant("axis_1", [1])], ["last_token_column"])

    @once
    def new_columns(self) -> str:
        """int64 [1]: tokens of `input_ids`, S."""
        return self.emit("Shape", ["input_ids"], ["new_columns"], start=1, end=2)

    @once
    def checked_columns(self) -> str:
        """int64 [B, K, 1], K = min(S, CHECKED): each row's last K real tokens; its first one again where it has fewer."""
        count = self.emit("Min", [self.new_columns(), self.constant("checked_most", [CHECKED])], ["checked_count"])
        first = self.emit("Sub", [self.constant("one", [1]), count], ["checked_first"])
        scalar = self.emit("Squeeze", [first], ["checked_first_0"])
        one = self.constant("one_0", 1)
        back = self.emit("Range", [scalar, one, one], ["checked_back"])
        raw = self.emit("Add", [self.last_column(), back], ["checked_raw"])
        columns = self.emit("Max", [raw, self.constant("zero", [0])], ["checked"])
        return self.emit("Unsqueeze", [columns, self.constant("axis_2", [2])], ["checked_columns"])

    def place_checked(self) -> None:
        """logits float32 [B, S, V]: those of `checked_columns` in their places, 0 elsewhere. onnxruntime-genai wants such a
        shape, and reads the last token's and those that it checks."""
        vocab = self.constant("vocabulary", [self.program.config.vocab_size])
        batch = self.emit("Shape", ["input_ids"], ["batch_rows"], start=0, end=1)
        shape = self.emit("Concat", [batch, self.new_columns(), vocab], ["logits_shape"], axis=0)
        zeros = self.emit("ConstantOfShape", [shape], ["no_logits"])
        nothing, one = self.constant("zero_0", 0), self.constant("one_0", 1)
        rows = self.emit("Range", [nothing, self.emit("Squeeze", [batch], ["batch_rows_0"]), one], ["rows"])
        row = self.emit("Unsqueeze", [rows, self.constant("axes_1_2", [1, 2])], ["rows_column"])
        columns = self.checked_columns()
        wide = self.emit("Expand", [row, self.emit("Shape", [columns], ["checked_shape"])], ["rows_wide"])
        places = self.emit("Concat", [wide, columns], ["checked_places"], axis=2)
        self.emit("ScatterND", [zeros, places, CHECKED_LOGITS], ["logits"])

    @once
    def block_sparse_bias(self, heads: int, block: int, local: int, stride: int, step: int) -> str:
        """float32 [B, H, S, T]: 0 for keys that a head sees by `edge_ops.block_sparse`, HIDDEN for others."""
        size, of = self.constant("sparse_block", [block]), "sparse"
        first, count = self.constant("sparse_first", 0), self.constant("sparse_one", 1)
        keys = self.emit("Range", [first, self.columns(), count], [f"{of}_keys"])
        key = self.emit("Div", [keys, size], [f"{of}_key_blocks"])
        query = self.emit("Div", ["position_ids", size], [f"{of}_query_blocks"])
        rows = self.emit("Unsqueeze", [query, self.constant("sparse_axes", [1, 3])], [f"{of}_rows"])
        distance = self.emit("Sub", [rows, key], [f"{of}_distance"])
        near = self.emit("Less", [distance, self.constant("sparse_local", [local])], [f"{of}_near"])
        offsets = (np.arange(heads) * step + 1).reshape(heads, 1, 1)
        turned = self.emit("Add", [key, self.constant("sparse_offsets", offsets)], [f"{of}_turned"])
        rest = self.emit("Mod", [turned, self.constant("sparse_stride", [stride])], [f"{of}_rest"])
        column = self.emit("Equal", [rest, self.constant("sparse_zero", [0])], [f"{of}_vertical"])
        seen = self.emit("Or", [near, column], [f"{of}_seen"])
        nothing, hidden = (self.constant(f"{of}_{n}", v, np.float32) for n, v in (("nothing", 0), ("hidden", HIDDEN)))
        return self.emit("Where", [seen, nothing, hidden], [f"{of}_bias"])

    @once
    def rotary_rows(self, long_after: int) -> str:
        """int64 [B, S]: rows of a LongRoPE table, the long ones once any position reaches `long_after`."""
        largest = self.emit("ReduceMax", ["position_ids"], ["largest_position"], keepdims=0)
        limit = self.constant("long_after", long_after)
        is_long = self.emit("GreaterOrEqual", [largest, limit], ["is_long"])
        flag = self.emit("Cast", [is_long], ["is_long_int"], to=TensorProto.INT64)
        offset = self.emit("Mul", [flag, limit], ["long_offset"])
        return self.emit("Add", ["position_ids", offset], ["rotary_rows"])


def _getitem(e: Emitter, node: fx.Node) -> None:
    """Items of a tuple got their names when the tuple was emitted."""


def _tuple_names(e: Emitter, node: fx.Node, count: int) -> list[str]:
    """Names of the items of a tuple-valued node; an item nobody reads has the empty name, which ONNX leaves out."""
    names = [""] * count
    for user in node.users:
        index: Any = user.args[1]
        names[index] = e.result(user)
    return names


def _rms_norm(e: Emitter, node: fx.Node) -> None:
    x, weight, eps = node.args
    e.emit(
        "SimplifiedLayerNormalization",
        [e.name(x), e.name(weight)],
        [e.result(node)],
        axis=-1,
        epsilon=eps,
        stash_type=1,
    )


def _add_rms_norm(e: Emitter, node: fx.Node) -> None:
    x, y, weight, eps = node.args
    normed, total = _tuple_names(e, node, 2)
    outputs = [normed or f"{node.name}_unused", "", "", total]
    inputs = [e.name(x), e.name(y), e.name(weight)]
    e.emit("SkipSimplifiedLayerNormalization", inputs, outputs if total else outputs[:1], domain=MS, epsilon=eps)


def _attention(e: Emitter, node: fx.Node) -> None:
    qkv, k_cache, v_cache, _, cos, sin, heads, kv_heads, scale, window, long_after, *sparse = node.args
    inputs = [e.name(qkv), "", "", e.name(k_cache), e.name(v_cache), e.total_minus_one(), e.total_length()]
    inputs += [e.name(cos), e.name(sin)]
    if long_after:
        inputs.append(e.rotary_rows(int(long_after)))  # type: ignore[arg-type]
    if sparse:
        bias = e.block_sparse_bias(heads, *sparse)  # type: ignore[arg-type]
        inputs += [*([] if long_after else [""]), bias]
    if e.cache.rounds:
        inputs += [""] * (K_SCALE - len(inputs)) + e.cache_scales()
    outputs = _tuple_names(e, node, 3)
    attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": scale, "do_rotary": 1}
    if window:
        attributes["local_window_size"] = window
        if e.windowed:
            attributes["sliding_window_cache"] = 1
    if e.cache.rounds:
        attributes |= {"kv_cache_bit_width": e.cache.bits, "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
    e.emit("GroupQueryAttention", inputs, outputs, domain=MS, **attributes)


def _gated_silu(e: Emitter, node: fx.Node) -> None:
    if len(shape_of(node)) == 4:
        experts.part_of_mixture(e, node)
        return
    name = node.name
    gate, up = f"{name}_gate", f"{name}_up"
    e.emit("Split", [e.name(node.args[0])], [gate, up], axis=-1, num_outputs=2)
    silu = e.emit("QuickGelu", [gate], [f"{name}_silu"], domain=MS, alpha=1.0)  # x · sigmoid(1.0 · x)
    e.emit("Mul", [up, silu], [e.result(node)])


def _gegelu(e: Emitter, node: fx.Node) -> None:
    name, limit = node.name, float(node.args[1])  # type: ignore[arg-type]
    gate, up = f"{name}_gate", f"{name}_up"
    e.emit("Split", [e.name(node.args[0])], [gate, up], axis=-1, num_outputs=2)
    if limit:
        high, low = (e.constant(f"gegelu_{n}_{limit}", v, np.float32) for n, v in (("most", limit), ("least", -limit)))
        gate = e.emit("Clip", [gate, "", high], [f"{name}_gate_limited"])
        up = e.emit("Clip", [up, low, high], [f"{name}_up_limited"])
    gelu = e.emit("QuickGelu", [gate], [f"{name}_gelu"], domain=MS, alpha=QUICK_GELU)
    more = e.emit("Add", [up, e.constant("one_float", 1.0, np.float32)], [f"{name}_up_and_1"])
    e.emit("Mul", [gelu, more], [e.result(node)])


def _layer_norm(e: Emitter, node: fx.Node) -> None:
    x, _, weight, bias, eps = node.args[:5]
    e.emit("LayerNormalization", [e.name(x), e.name(weight), e.name(bias)], [e.result(node)], axis=-1, epsilon=eps)


def _last_token(e: Emitter, node: fx.Node) -> None:
    if e.drafts:
        e.emit("GatherND", [e.name(node.args[0]), e.checked_columns()], [e.result(node)], batch_dims=1)
        return
    row = e.emit("GatherND", [e.name(node.args[0]), e.last_column()], [f"{node.name}_row"], batch_dims=1)
    e.emit("Unsqueeze", [row, e.constant("axis_1", [1])], [e.result(node)])


def _add_low_rank(e: Emitter, node: fx.Node) -> None:
    y, x, a, b = (e.name(arg) for arg in node.args)
    down = e.emit("MatMul", [x, a], [f"{node.name}_down"])
    up = e.emit("MatMul", [down, b], [f"{node.name}_up"])
    e.emit("Add", [y, up], [e.result(node)])


def _linear(e: Emitter, node: fx.Node) -> None:
    x, weight, *bias = (e.name(arg) for arg in node.args)
    if not bias:
        e.emit("MatMul", [x, e.turned(weight)], [e.result(node)])
        return
    product = e.emit("MatMul", [x, e.turned(weight)], [f"{node.name}_product"])
    e.emit("Add", [product, *bias], [e.result(node)])


def _embedding(e: Emitter, node: fx.Node) -> None:
    e.emit("Gather", [e.name(node.args[0]), e.name(node.args[1])], [e.result(node)], axis=0)


def _add(e: Emitter, node: fx.Node) -> None:
    e.emit("Add", [e.name(node.args[0]), e.name(node.args[1])], [e.result(node)])


def _mul(e: Emitter, node: fx.Node) -> None:
    factor = float(node.args[1])  # type: ignore[arg-type]
    e.emit("Mul", [e.name(node.args[0]), e.constant(f"factor_{factor}", factor, np.float32)], [e.result(node)])


_RULES: dict[str, Rule] = {
    operator.getitem.__name__: _getitem,
    "edge.rms_norm": _rms_norm,
    "edge.add_rms_norm": _add_rms_norm,
    "edge.attention": _attention,
    "edge.sparse_attention": _attention,
    "edge.gated_silu": _gated_silu,
    "edge.gegelu": _gegelu,
    "edge.last_token": _last_token,
    "edge.add_low_rank": _add_low_rank,
    "edge.route": experts.route,
    "edge.experts_nbits": experts.part_of_mixture,
    "edge.combine": experts.combine,
    "linear": _linear,
    "embedding": _embedding,
    "add": _add,
    "mul": _mul,
    "layer_norm": _layer_norm,
}
