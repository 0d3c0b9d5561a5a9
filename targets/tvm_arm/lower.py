"""Program → Relax: one rule for each operator, those of weights in `codecs.py`, and one function for each way of running.

A function takes (tokens int32 [S], position int32 [P], caches, parameters) and returns float32 logits: [1, V] of the last
token, or [S, V] where its name ends in `_all`. Caches are written in place; weights are parameters, never constants.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from torch import fx
from tvm import IRModule, relax, tirx
from tvm.ir import StringImm

from pocketphi.graph.adapters import input_names
from pocketphi.graph.adapters import shape_of as shape_of_weight
from pocketphi.graph.edge_ops import ATTENTIONS
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import PartSpec
from pocketphi.graph.program import Program, op_name, shape_of, split_target
from pocketphi.targets.lowering import Rule, lower_calls
from pocketphi.targets.tvm_arm.adapter_file import carried
from pocketphi.targets.tvm_arm.codecs import CODECS
from pocketphi.targets.tvm_arm.isa import Isa
from pocketphi.targets.tvm_arm.kernels.affine import add, gegelu, layer_norm, scaled
from pocketphi.targets.tvm_arm.kernels.attention import AttentionForm, attention, position_size
from pocketphi.targets.tvm_arm.kernels.elementwise import gated_silu, last_row, rms_norm
from pocketphi.targets.tvm_arm.kernels.experts import combine, route
from pocketphi.targets.tvm_arm.kernels.low_rank import add_low_rank
from pocketphi.targets.tvm_arm.kernels.matmul import Form, Schedule, decode_schedule, matmul, prefill_schedule
from pocketphi.targets.tvm_arm.kv_cache import CHUNK, EXACT_CACHE, KV_CACHES, KvCache, centre_name
from pocketphi.targets.tvm_arm.params import ParamsFile

_64_BITS = 2**64 - 1


@dataclass(frozen=True)
class Way:
    """One way of running the model.

    single: one token, as in decode; every: logits of every position; exact: float32 activations and cache
    """

    name: str
    single: bool = False
    every: bool = False
    exact: bool = False

    @property
    def role(self) -> str:
        """What the runtime calls it, in either mode."""
        return self.name.replace("_exact", "")


WAYS = (
    Way("prefill"),
    Way("decode", single=True),
    Way("prefill_all", every=True),
    Way("prefill_exact", exact=True),
    Way("decode_exact", single=True, exact=True),
    Way("prefill_exact_all", every=True, exact=True),
)


class Schedules:
    """Which schedule a matrix gets: what was tuned for it, or the instruction set's default.

    asked: the forms that a lowering asked for, by key
    """

    def __init__(self, isa: Isa, tuned: dict[str, Schedule] | None = None) -> None:
        self.isa, self.tuned = isa, tuned or {}
        self.asked: dict[str, None] = {}

    def of(self, form: Form) -> Schedule:
        self.asked[form.key] = None
        default = decode_schedule(self.isa) if form.single else prefill_schedule(self.isa)
        return self.tuned.get(form.key, default)


def lower(
    program: Program,
    isa: Isa,
    schedules: Schedules | None = None,
    description: str = "",
    cache: KvCache = KV_CACHES["fp16"],
) -> IRModule:
    """Lower a fused, quantized program, one function for each of WAYS; `description` returns that text.

    cache: of the functions that are not exact.

    Raises InputError for a weight left in float, CompilerBug for an operator without a rule.
    """
    kernels = _Kernels(isa, schedules or Schedules(isa))
    arguments = ParamsFile.plan(program, isa, cache).arguments()
    for way in WAYS:
        Function(program, isa, way, kernels, arguments, EXACT_CACHE if way.exact else cache).build()
    with kernels.builder.function("description", []):
        kernels.builder.emit_func_output(StringImm(description))
    return kernels.builder.finalize()


class _Kernels:
    """The module under construction; equal kernels are made once."""

    def __init__(self, isa: Isa, schedules: Schedules) -> None:
        self.isa, self.schedules = isa, schedules
        self.builder = relax.BlockBuilder()
        self._made: dict[Any, Any] = {}
        self._named: dict[str, Any] = {}

    def get(self, kind: str, make: Callable[..., tirx.PrimFunc], *arguments: Any) -> Any:
        """What `make` makes of a name, the instruction set, and these arguments."""
        key = (kind, arguments)
        if key not in self._made:
            kernel = make(kind, self.isa, *arguments)
            # the same in every library that has it, so that its code is compiled once
            name = f"{kind}_{tvm_ffi.structural_hash(kernel) & _64_BITS:016x}"
            if name not in self._named:
                self._named[name] = self.builder.add_func(kernel.with_attr("global_symbol", name), name)
            self._made[key] = self._named[name]
        return self._made[key]

    def matmul(self, form: Form) -> Any:
        return self.get("matmul", matmul, form, self.schedules.of(form))


class Function:
    """One Relax function. A value of the graph is a Relax variable [S, width], or a tuple of them."""

    def __init__(
        self,
        program: Program,
        isa: Isa,
        way: Way,
        kernels: _Kernels,
        parameters: Mapping[str, PartSpec],
        cache: KvCache,
    ) -> None:
        self.program, self.isa, self.way, self.kernels, self.cache = program, isa, way, kernels, cache
        self.builder = kernels.builder
        self.length: Any = 1 if way.single else tirx.Var("s", "int64")
        self.layers = 0
        self.values: dict[fx.Node, Any] = {}
        self.parameters = {
            target: relax.Var(f"p{number}", relax.TensorType(spec.shape, spec.type_name))
            for number, (target, spec) in enumerate(parameters.items())
        }

    def build(self) -> None:
        config = self.program.config
        capacity = tirx.Var("c", "int64")
        tokens = relax.Var("tokens", relax.TensorType((self.length,), "int32"))
        position = relax.Var("position", relax.TensorType((position_size(long_after(self.program)),), "int32"))
        row = self.cache.row(config.head_dim)
        cache = relax.TensorType((config.kv_heads, capacity, row), self.cache.dtype)
        self.capacity, self.position = cache, position
        caches = {}
        for node in self.program.inputs:
            name = str(node.target)
            if name.startswith("past_key_values."):
                caches[node] = relax.Var(name.replace(".", "_"), cache)
            elif name == "input_ids":
                self.values[node] = tokens
        self.values.update(caches)
        factors = self._factors()
        self.values.update(factors)
        arguments = [tokens, position, *caches.values(), *self.parameters.values(), *factors.values()]
        # with a bound, memory is planned when the library is built, and no sizes are computed in a call
        bounds = {} if self.way.single else {"tir_var_upper_bound": {self.length.name: CHUNK}}
        with self.builder.function(self.way.name, arguments, attrs=bounds):
            lower_calls(self.program, self, _RULES, CODECS, "TVM")
            self.builder.emit_func_output(self.values[self.program.outputs["logits"]])

    def _factors(self) -> dict[fx.Node, Any]:
        """Of adapters: A [r, K] and B [r, N] of each weight that may have some, whose ranks are known in a call."""
        found: dict[fx.Node, Any] = {}
        for number, weight in enumerate(carried(self.program)):
            rank = tirx.Var(f"r{number}", "int64")
            for name, width in zip(
                input_names(weight), reversed(shape_of_weight(self.program.config, weight)), strict=True
            ):
                node = next(node for node in self.program.inputs if node.target == name)
                found[node] = relax.Var(f"{'ab'[len(found) % 2]}{number}", relax.TensorType((rank, width), "float32"))
        return found

    def value(self, node: Any) -> Any:
        return self.parameters[str(node.target)] if node.op == "get_attr" else self.values[node]

    def parts_read(self, node: fx.Node) -> Mapping[str, PartSpec]:
        """The parts of the quantized weight that an operator reads."""
        read = next(arg for arg in node.args if isinstance(arg, fx.Node) and arg.op == "get_attr")
        return self.program.weights[split_target(str(read.target))[0]].parts

    def rows(self, node: Any) -> Any:
        """Rows of a value [B, S, K] of the graph: 1 where it is of the last token, unless every position is wanted. Of one
        [B, S, T, K] with several for each token, all of them."""
        shape = node.meta["val"][0].shape if isinstance(node.meta["val"], tuple | list) else shape_of(node)
        alone = isinstance(shape[1], int) and not self.way.every
        rows = 1 if alone else self.length
        return rows * int(shape[2]) if len(shape) == 4 else rows

    def call(
        self,
        kernel: Any,
        args: Sequence[Any],
        width: int | Sequence[int],
        rows: Any,
        dtypes: Sequence[str] = ("float32", "float32"),
    ) -> Any:
        """Call a kernel; its results are float32 [rows, width], one or several, or of the types that are given."""
        widths = [width] if isinstance(width, int) else width
        types = [relax.TensorType((rows, w), dtype) for w, dtype in zip(widths, dtypes)]
        return self.builder.emit(relax.call_tir(kernel, list(args), types[0] if len(types) == 1 else types))


def _getitem(f: Function, node: fx.Node) -> None:
    f.values[node] = f.values[node.args[0]][node.args[1]]  # type: ignore[index]


def _rms_norm(f: Function, node: fx.Node) -> None:
    x, weight, eps = node.args
    f.values[node] = _norm(f, [x], weight, eps)


def _add_rms_norm(f: Function, node: fx.Node) -> None:
    x, y, weight, eps = node.args
    both = _norm(f, [x, y], weight, eps)
    f.values[node] = [f.builder.emit(relax.TupleGetItem(both, i)) for i in range(2)]


def _norm(f: Function, inputs: Sequence[Any], weight: Any, eps: Any) -> Any:
    (size,) = (int(n) for n in shape_of(weight))
    rows = f.rows(inputs[0])
    add, single = len(inputs) == 2, isinstance(rows, int)
    kernel = f.kernels.get("norm", rms_norm, size, float(eps), add, single)
    return f.call(kernel, [*map(f.value, inputs), f.value(weight)], [size, size] if add else size, rows)


def long_after(program: Program) -> int:
    """The position at which LongRoPE's factors change, 0 where the tables of the program end before it."""
    return max((int(n.args[10]) for n in program.graph.nodes if op_name(n) in ATTENTIONS), default=0)


def _attention(f: Function, node: fx.Node) -> None:
    args: Any = node.args
    qkv, k_cache, v_cache, _, cos, sin, heads, kv_heads, scale, window, long_after, *sparse = args
    table_rows, half = map(int, shape_of(cos))
    dim, rows = f.program.config.head_dim, f.rows(qkv)
    sizes = heads, kv_heads, dim, 2 * half, table_rows
    blocks = (sparse[0], sparse[1], sparse[2], sparse[3]) if sparse else None
    form = AttentionForm(*sizes, scale, window, long_after, f.cache, isinstance(rows, int), blocks)
    kernel = f.kernels.get("sparse_attention" if sparse else "attention", attention, form)
    taken = [f.value(arg) for arg in (qkv, k_cache, v_cache, cos, sin)]
    taken += [f.parameters[centre_name(f.layers)]] if f.cache.centred else []
    taken.append(f.position)
    f.layers += 1
    out = relax.TensorType((rows, form.heads * dim), "float32")
    called = relax.call_tir_inplace(kernel, taken, [1, 2, -1], [f.capacity, f.capacity, out])
    result = f.builder.emit(called)
    keys, values, mixed = (f.builder.emit(relax.TupleGetItem(result, i)) for i in range(3))
    f.values[node] = [mixed, keys, values]


def _gated_silu(f: Function, node: fx.Node) -> None:
    size, rows = int(shape_of(node)[-1]), f.rows(node)
    kernel = f.kernels.get("gated_silu", gated_silu, size, isinstance(rows, int) and rows == 1)
    f.values[node] = f.call(kernel, [f.value(node.args[0])], size, rows)


def _gegelu(f: Function, node: fx.Node) -> None:
    size, rows = int(shape_of(node)[-1]), f.rows(node)
    limit = float(node.args[1])  # type: ignore[arg-type]
    kernel = f.kernels.get("gegelu", gegelu, size, limit, isinstance(rows, int))
    f.values[node] = f.call(kernel, [f.value(node.args[0])], size, rows)


def _layer_norm(f: Function, node: fx.Node) -> None:
    x, _, weight, bias, eps = node.args[:5]
    size, rows = int(shape_of(node)[-1]), f.rows(node)
    kernel = f.kernels.get("norm_layer", layer_norm, size, float(eps), isinstance(rows, int))  # type: ignore[arg-type]
    f.values[node] = f.call(kernel, [f.value(x), f.value(weight), f.value(bias)], size, rows)


def _add(f: Function, node: fx.Node) -> None:
    x, y = node.args
    size, rows = int(shape_of(node)[-1]), f.rows(node)
    kernel = f.kernels.get("add", add, size, len(shape_of(y)) == 1, isinstance(rows, int))  # type: ignore[arg-type]
    f.values[node] = f.call(kernel, [f.value(x), f.value(y)], size, rows)


def _mul(f: Function, node: fx.Node) -> None:
    size, rows = int(shape_of(node)[-1]), f.rows(node)
    kernel = f.kernels.get("scaled", scaled, size, float(node.args[1]), isinstance(rows, int))  # type: ignore[arg-type]
    f.values[node] = f.call(kernel, [f.value(node.args[0])], size, rows)


def _last_token(f: Function, node: fx.Node) -> None:
    x = f.value(node.args[0])
    if f.rows(node) is f.rows(node.args[0]):
        f.values[node] = x
        return
    size = int(shape_of(node)[-1])
    kernel = f.kernels.get("last_row", last_row, size)
    f.values[node] = f.call(kernel, [x], size, 1)


def _route(f: Function, node: fx.Node) -> None:
    args: Any = node.args
    x, weight, threshold = args
    count, size = map(int, shape_of(weight))
    rows = f.rows(node)
    kernel = f.kernels.get("route", route, size, count, float(threshold), isinstance(rows, int))
    both = f.call(kernel, [f.value(x), f.value(weight)], [2, 2], rows, ("float32", "int32"))
    f.values[node] = [f.builder.emit(relax.TupleGetItem(both, i)) for i in range(2)]


def _combine(f: Function, node: fx.Node) -> None:
    args: Any = node.args
    x, shares = args
    size, chosen, rows = int(shape_of(node)[-1]), int(shape_of(shares)[-1]), f.rows(node)
    kernel = f.kernels.get("combine", combine, size, chosen, isinstance(rows, int))
    f.values[node] = f.call(kernel, [f.value(shares), f.value(x)], size, rows)


def _add_low_rank(f: Function, node: fx.Node) -> None:
    y, x, a, b = node.args
    rows, sizes = f.rows(y), [int(shape_of(one)[-1]) for one in (x, y)]  # type: ignore[arg-type]
    kernel = f.kernels.get("add_low_rank", add_low_rank, *sizes, isinstance(rows, int))
    out = relax.TensorType((rows, sizes[1]), "float32")
    f.values[node] = f.builder.emit(relax.call_tir_inplace(kernel, [f.value(one) for one in (y, x, a, b)], [0], out))


def _left_in_float(f: Function, node: fx.Node) -> None:
    weight = next(arg for arg in node.args if isinstance(arg, fx.Node) and arg.op == "get_attr")
    shape = list(shape_of(weight))
    raise InputError(
        f"tvm-arm: {weight.target} {shape} is left in float, and this target has kernels for {', '.join(CODECS)} only; "
        "choose a --block that divides its columns"
    )


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
    "edge.route": _route,
    "edge.combine": _combine,
    "edge.experts": _left_in_float,
    "linear": _left_in_float,
    "embedding": _left_in_float,
    "layer_norm": _layer_norm,
    "add": _add,
    "mul": _mul,
}
