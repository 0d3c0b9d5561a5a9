"""Trace transformers' own model into a `Program`, without materialising a weight.

Two periods of decoder layers are traced and the second is repeated (`graph/unroll.py`): the layers at one place of a period,
of which most models have one, differ in nothing but their weights. That is checked on the traced graph. Tracing time grows
with every layer (0.5 s each).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.config import EMBEDDING, HEAD, ModelConfig
from pocketphi.graph.errors import CompilerBug
from pocketphi.graph.lazy_weights import Constant, FloatWeight, LazyWeight
from pocketphi.graph.program import Program
from pocketphi.graph.transformers_inside import FlatCache, make_config, make_model, use_real_frequencies
from pocketphi.graph.types import name_types
from pocketphi.graph.unroll import repeat_layer

log = logging.getLogger(__name__)

MAX_TOKENS = 1 << 17
_WRAPPED = "model."  # the attribute of _Flat that holds transformers' model


def trace(checkpoint: Checkpoint, layers: int | None = None) -> Program:
    """The model of a checkpoint as a `Program` with explicit K/V caches and dynamic batch, sequence and past.

    layers: how many decoder layers to trace, two periods if None; the last period is repeated to the model's depth.
    """
    checkpoint.check_settings()
    return _traced(checkpoint, layers)


def _traced(checkpoint: Checkpoint, layers: int | None) -> Program:
    config, period = checkpoint.config, checkpoint.config.form.period
    layers = min(layers or 2 * period, config.layers)
    exported = _export(config, layers)
    program = _flatten(exported, checkpoint)
    repeat_layer(program, last=layers - 1, depth=config.layers, period=period)
    name_types(program)
    read = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"} - set(program.weights)
    program.weights |= {name: FloatWeight(checkpoint, name) for name in checkpoint.tensors if name in read}
    program.check()
    return program


class _Flat(torch.nn.Module):
    """The model with a flat signature: tensors in, tensors out."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        torch._check(attention_mask.shape[1] == past[0].shape[2] + input_ids.shape[1])
        cache = FlatCache(list(past))
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return (out.logits, *(t for pair in zip(cache.keys, cache.values) for t in pair))


def hf_config(config: ModelConfig, layers: int | None = None) -> Any:
    """transformers' own config object, for untied float32 weights and the attention that is matched later."""
    untied = replace(config, layers=layers or config.layers, tied_embeddings=False)
    return make_config(config.form.architecture, untied.to_hf())


def _settings(config: ModelConfig, layers: int) -> tuple[Any, Callable[[Any], Any]]:
    """What a model of so many layers is made of, and what makes it: a class of transformers, or the form's own."""
    if config.form.build:
        return replace(config, layers=layers, tied_embeddings=False), config.form.build
    return hf_config(config, layers), functools.partial(make_model, config.form.architecture)


def _export(config: ModelConfig, layers: int) -> ExportedProgram:
    settings, build = _settings(config, layers)
    mode = FakeTensorMode()  # this imports `torch._dynamo`
    with mode:
        model = build(settings)
    if config.form.build:
        model.make_constants(settings)
    else:
        use_real_frequencies(model, settings)
    batch, length, past = 2, 3, 5
    with mode:
        ids = torch.zeros(batch, length, dtype=torch.int64)
        mask = torch.ones(batch, past + length, dtype=torch.int64)
        cache = [torch.zeros(batch, config.kv_heads, past, config.head_dim) for _ in range(2 * layers)]
    b, s = Dim("batch", min=1, max=256), Dim("sequence", min=1, max=MAX_TOKENS)
    p, t = Dim("past", min=0, max=MAX_TOKENS), Dim("total", min=1, max=2 * MAX_TOKENS)
    shapes = ({0: b, 1: s}, {0: b, 1: t}, {0: b, 1: s}, [{0: b, 2: p}] * (2 * layers))
    # two layers repeat little: the table in which torch looks calls up takes a third of a trace
    uncached = torch._dynamo.config.patch(fake_tensor_cache_enabled=False)
    with uncached, torch.no_grad():  # else the regions that switch gradients off become submodules
        return torch.export.export(_Flat(model), (ids, mask, ids.clone(), cache), dynamic_shapes=shapes, strict=False)


def _flatten(exported: ExportedProgram, checkpoint: Checkpoint) -> Program:
    """Parameters become `get_attr` nodes, buffers constants, the output a dictionary with public names."""
    graph = fx.Graph()
    weights: dict[str, LazyWeight] = {}
    copied: dict[fx.Node, fx.Node] = {}
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    for node in (node for node in exported.graph.nodes if node.op == "placeholder"):
        spec = specs[node.name]
        if spec.kind == InputKind.USER_INPUT:
            copied[node] = graph.placeholder(_input_name(node.name))
        else:
            name = str(spec.target).removeprefix(_WRAPPED)
            if spec.kind == InputKind.PARAMETER and name == HEAD and checkpoint.config.tied_embeddings:
                name = EMBEDDING
            elif spec.kind != InputKind.PARAMETER:
                store = exported.constants if spec.kind == InputKind.CONSTANT_TENSOR else None
                value = (store or exported.state_dict | exported.constants)[spec.target]
                weights[name] = Constant(value.detach().clone(), f"buffer {name}")
            copied[node] = graph.get_attr(name)
        copied[node].meta = dict(node.meta)
    for node in exported.graph.nodes:
        if node.op == "call_function":
            copied[node] = graph.node_copy(node, copied.__getitem__)
        elif node.op == "output":
            names = [f"{i}.{kind}" for i in range(len(node.args[0]) // 2) for kind in ("key", "value")]
            graph.output({n: copied[v] for n, v in zip(["logits", *(f"present.{n}" for n in names)], node.args[0])})
        elif node.op != "placeholder":
            raise CompilerBug(f"the trace holds a {node.op} node, {node.name}")
    _functionalize_buffers(graph)
    return Program(graph, checkpoint.config, weights)


def _input_name(traced: str) -> str:
    """`past_3` → `past_key_values.1.value`."""
    if not traced.startswith("past_"):
        return traced
    index = int(traced.removeprefix("past_"))
    return f"past_key_values.{index // 2}.{'value' if index % 2 else 'key'}"


def _functionalize_buffers(graph: fx.Graph) -> None:
    """`buffer.copy_(x)`, as LongRoPE writes its frequencies: later reads take x instead."""
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not torch.ops.aten.copy_.default:
            continue
        buffer, source = node.args[0], node.args[1]
        order = {n: i for i, n in enumerate(graph.nodes)}
        for user in list(buffer.users):
            if order[user] > order[node]:
                user.replace_input_with(buffer, source)
        node.replace_all_uses_with(source)
        graph.erase_node(node)
