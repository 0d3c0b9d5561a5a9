"""Routed experts as ONNX Runtime's `QMoE` runs them, which reads the matrices of the chosen experts only.

`QMoE` chooses the experts with the largest `router_probs`, and weights each by `router_weights`. It gets the shares of sparse
mixing as both: they are above zero for the chosen experts and zero for all others. So what it would compute of the scores by
itself, a softmax, plays no part. Its product of gate and other half wants their rows in turns: see `pairs.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx

from pocketphi.graph.errors import CompilerBug
from pocketphi.graph.formats import Int4, format_of
from pocketphi.graph.program import Program, op_name, shape_of, split_target
from pocketphi.targets.ort_mobile.codecs import MS

if TYPE_CHECKING:
    from pocketphi.targets.ort_mobile.lower import Emitter

PREFIX = "edge.experts_"


def paired(program: Program) -> dict[str, int]:
    """Weights with the rows of a gate and of another half, and the number of experts that each has."""
    found = {}
    for node in program.graph.nodes:
        source: Any = node.args[0] if op_name(node) == "edge.gated_silu" else None
        if source is not None and op_name(source).startswith(PREFIX):
            found[split_target(str(source.args[3].target))[0]] = int(source.args[2])
    return found


def why_not(program: Program) -> str:
    """Why `QMoE` cannot hold the experts of a program, empty if it can."""
    blocks: dict[int, str] = {}
    for name, weight in program.weights.items():
        if program.config.experts_of(name) == 1:
            continue
        form = format_of(weight.parts)
        if form is not Int4 or {"offset", "row_scale"} & set(weight.parts):
            came = (
                "in float" if form is None else f"in {form.name}" + (" with scales of 8 bits" if form is Int4 else "")
            )
            return (
                f"{name} is {came}, and its QMoE runs experts in int4 with float scales exactly; choose that for them"
            )
        blocks[form.block_of(weight.parts) or 0] = name
    if len(blocks) > 1 or (blocks and min(blocks) < 16):
        return f"{', '.join(blocks.values())}: its QMoE takes experts in blocks of one size, 16 at least"
    return ""


def route(e: Emitter, node: fx.Node) -> None:
    """`edge.route`: for both ranks at once, [B, S, 2, E]. What counts is the shares of all experts, [B · S, E]."""
    x, weight, threshold = node.args
    name, count = node.name, int(shape_of(weight)[0])  # type: ignore[arg-type]
    axis = e.constant("route_axis", [2])

    def emit(kind: str, *inputs: str, **attributes: Any) -> str:
        return e.emit(kind, inputs, [f"{name}_{len(e.lowered.nodes)}"], **attributes)

    scores = e.emit("MatMul", [e.name(x), e.turned(e.name(weight))], [f"{name}_scores"])
    best, numbers = f"{name}_best", f"{name}_numbers"
    e.emit("TopK", [scores, e.constant("route_two", [2])], [best, numbers], axis=-1)
    last = e.constant("route_last", [3])
    top, each = emit("Unsqueeze", best, last), emit("Unsqueeze", scores, axis)
    below = emit("Sub", top, each)
    size = emit("Max", emit("Abs", each), top)
    limit = e.constant(f"route_threshold_{threshold}", threshold, np.float32)
    far = emit("Greater", emit("Div", below, size), limit)
    all_numbers = e.constant(f"route_numbers_{count}", np.arange(count))
    here = emit("Equal", emit("Unsqueeze", numbers, last), all_numbers)
    first = emit("Slice", here, e.constant("route_first", [0]), e.constant("route_one", [1]), axis)
    second = e.constant("route_second", np.array([False, True]).reshape(1, 1, 2, 1), np.bool_)
    left_out = emit("Or", far, emit("And", first, second))
    power = emit("Where", left_out, e.constant("route_nothing", 0.0, np.float32), emit("Exp", emit("Neg", below)))
    total = emit("ReduceSum", power, last)
    share = emit("Where", here, emit("Reciprocal", total), e.constant("route_nothing", 0.0, np.float32))
    shares = emit("ReduceSum", share, axis, keepdims=0)
    e.emit("Reshape", [shares, e.constant(f"route_rows_{count}", [-1, count])], [f"{name}_shares"])


def part_of_mixture(e: Emitter, node: fx.Node) -> None:
    """Products of experts and what stands between them are emitted by `combine`, as one operator."""


def combine(e: Emitter, node: fx.Node) -> None:
    """experts → gated_silu → experts → combine, as one `QMoE`."""
    down: Any = node.args[0]
    gated = down.args[0]
    up = gated.args[0]
    shares: Any = node.args[1]
    routed = shares.args[0]
    if op_name(gated) != "edge.gated_silu" or not op_name(up).startswith(PREFIX) or op_name(routed) != "edge.route":
        raise CompilerBug(f"{node.name} is no sum of experts with gated inner parts")
    (first, block), (second, _) = (_weights(e, one) for one in (up, down))
    router = f"{routed.name}_shares"
    inputs = [
        e.name(up.args[0]),
        router,
        *first[:2],
        "",
        *second[:2],
        "",
        "",
        "",
        "",
        *first[2:],
        *second[2:],
        "",
        router,
    ]
    e.emit(
        "QMoE",
        inputs,
        [e.result(node)],
        domain=MS,
        k=int(shape_of(shares)[-1]),
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
        normalize_routing_weights=0,
        use_sparse_mixer=0,
        weights_prepacked=0,
        expert_weight_bits=4,
        block_size=block,
        accuracy_level=e.accuracy_level,
    )


def _weights(e: Emitter, node: fx.Node) -> tuple[list[str], int]:
    """The names of values, scales and zero points (empty for none), each [E, N, …], and values that share a scale."""
    count: Any = node.args[2]
    held = dict(zip(Int4.part_names(), node.args[3:]))
    names = []
    for part in ("q", "scale", "zero"):
        one = held.get(part)
        rows, columns = e.shape(one) if one is not None else (0, 0)
        names.append(e.weight(one, (count, rows // count, columns)) if isinstance(one, fx.Node) else "")
    return names, e.shape(held["q"])[1] * 2 // e.shape(held["scale"])[1]
