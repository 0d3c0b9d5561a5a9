"""Program → MIL functions: one rule for each operator of the vocabulary, those of weights in `codecs.py`. Weights are placed by
name only.

Inputs of a function, all of them data, none of them shapes:

    inputIds   int32 [1, S]   tokens; S is the chunk in `prefill`, whose tail may be padded with any token, and 1 in `decode`
    position   int32 [1]      tokens that are in the cache already: where these are written. position + S must not exceed the
                              rows of the cache: the last, incomplete chunk before its end goes through `decode`
    length     int32 [1]      `prefill` of a program that keeps the last token's logits: real tokens among the S, 1 … S
    total      int32 [1]      only where two LongRoPE tables are in the package: tokens of the sequence when the whole prompt
                              is in. Beyond the original maximum all rows of a call are turned by the long factors; a prompt
                              that goes beyond needs them from its first chunk on
    keyCache, valueCache      states, float16 [layers, 1, KV, rows, D]

Output `logits` float16 [1, 1, V], or [1, S, V] for a program that keeps all.

The flavor `swift-transformers` is one function `main` with what that library's `LanguageModelWithStatefulKVCache` sends
(Sources/Models/LanguageModel.swift): `inputIds` of any length, which it requires to be a range, and `causalMask` float16
[1, 1, 1, tokens so far + 1], all zeros. Zeros would allow every token to see all that follow, so that its values are not
read at all: T = shape[3] says how many tokens there are, position = T - 1 - S, and the graph makes its own causal mask. It
reads row S - 1 of the logits, so that all rows are there.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from torch import fx

from pocketphi.graph.edge_ops import QUICK_GELU
from pocketphi.graph.program import Program
from pocketphi.targets.coreml import attention, norms
from pocketphi.targets.coreml.codecs import CODECS
from pocketphi.targets.coreml.coremltools_parts import reproducible_names
from pocketphi.targets.coreml.emitter import Emitter
from pocketphi.targets.coreml.form import Form
from pocketphi.targets.coreml.weightfile import WeightFile
from pocketphi.targets.lowering import Rule, lower_calls


def lower(program: Program, form: Form, file: WeightFile) -> dict[str, Any]:
    """The functions of a fused, quantized program. Raises CompilerBug naming the first operator that has no rule."""
    found = {}
    with reproducible_names():
        for name in form.functions:
            emitter = Emitter(program, form, file, name)
            with emitter.function as found[name]:
                lower_calls(program, emitter, _RULES, CODECS, "Core ML")
                found[name].set_outputs([emitter.value(program.outputs["logits"])])
    return found


def _getitem(e: Emitter, node: fx.Node) -> None:
    """Items of a tuple got their values when the tuple was emitted."""


def _rms_norm(e: Emitter, node: fx.Node) -> None:
    x, weight, eps = node.args
    e.values[node] = norms.rms_norm(e, e.value(x), e.value(weight), float(eps), node.name)  # type: ignore[arg-type]


def _add_rms_norm(e: Emitter, node: fx.Node) -> None:
    x, y, weight, eps = node.args
    total = e.op("add", f"{node.name}_sum", x=e.value(x), y=e.value(y))
    normed = norms.rms_norm(e, total, e.value(weight), float(eps), node.name)  # type: ignore[arg-type]
    e.set_items(node, [normed, total])


def _attention(e: Emitter, node: fx.Node) -> None:
    e.set_items(node, [attention.lower(e, node)])


def _gated_silu(e: Emitter, node: fx.Node) -> None:
    gate, up = e.op("split", f"{node.name}_halves", x=e.value(node.args[0]), num_splits=2, axis=-1)
    silu = e.op("silu", f"{node.name}_silu", x=gate)
    e.values[node] = e.op("mul", e.name(node), x=up, y=silu)


def _gegelu(e: Emitter, node: fx.Node) -> None:
    name, limit = node.name, float(node.args[1])  # type: ignore[arg-type]
    gate, up = e.op("split", f"{name}_halves", x=e.value(node.args[0]), num_splits=2, axis=-1)
    if limit:
        gate = e.op("minimum", f"{name}_gate", x=gate, y=np.float16(limit))
        up = e.op("clip", f"{name}_up", x=up, alpha=np.float16(-limit), beta=np.float16(limit))
    power = e.op("sigmoid", f"{name}_power", x=e.op("mul", f"{name}_sharper", x=gate, y=np.float16(QUICK_GELU)))
    gelu = e.op("mul", f"{name}_gelu", x=gate, y=power)
    more = e.op("add", f"{name}_up_and_1", x=up, y=np.float16(1))
    e.values[node] = e.op("mul", e.name(node), x=gelu, y=more)


def _layer_norm(e: Emitter, node: fx.Node) -> None:
    x, _, weight, bias, eps = node.args[:5]
    given = e.value(x), e.value(weight), e.value(bias)
    e.values[node] = norms.layer_norm(e, *given, float(eps), e.name(node))  # type: ignore[arg-type]


def _last_token(e: Emitter, node: fx.Node) -> None:
    """Row `length - 1`; the only one of a call of one token. A flexible function's caller picks the row itself."""
    x = e.value(node.args[0])
    if "length" in e.inputs:
        row = e.op("sub", f"{node.name}_row", x=e.inputs["length"], y=np.int32(1))
        x = e.op("gather", e.name(node), x=x, indices=row, axis=1)
    e.values[node] = x


def _linear(e: Emitter, node: fx.Node) -> None:
    x, weight, *bias = (e.value(arg) for arg in node.args)
    product = e.times(f"{node.name}_product" if bias else e.name(node), x, weight, e.width(node))
    e.values[node] = e.op("add", e.name(node), x=product, y=bias[0]) if bias else product


def _embedding(e: Emitter, node: fx.Node) -> None:
    e.values[node] = e.op("gather", e.name(node), x=e.value(node.args[0]), indices=e.inputs["inputIds"], axis=0)


def _add(e: Emitter, node: fx.Node) -> None:
    e.values[node] = e.op("add", e.name(node), x=e.value(node.args[0]), y=e.value(node.args[1]))


def _mul(e: Emitter, node: fx.Node) -> None:
    factor = np.float16(node.args[1])  # type: ignore[arg-type]
    e.values[node] = e.op("mul", e.name(node), x=e.value(node.args[0]), y=factor)


_RULES: dict[str, Rule] = {
    operator.getitem.__name__: _getitem,
    "edge.rms_norm": _rms_norm,
    "edge.add_rms_norm": _add_rms_norm,
    "edge.attention": _attention,
    "edge.sparse_attention": _attention,
    "edge.gated_silu": _gated_silu,
    "edge.gegelu": _gegelu,
    "edge.last_token": _last_token,
    "linear": _linear,
    "embedding": _embedding,
    "add": _add,
    "mul": _mul,
    "layer_norm": _layer_norm,
}
