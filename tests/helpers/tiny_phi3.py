"""Small Phi-3 models of every kind, traced once and handed out as copies, and hand-made programs for near-misses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.config import LongRope, ModelConfig
from pocketphi.graph.lazy_weights import Constant, LazyWeight
from pocketphi.graph.program import Program, Weights
from pocketphi.graph.random_weights import PUBLISHED, RandomWeights
from pocketphi.graph.trace import hf_config, trace
from pocketphi.graph.types import TensorType
from pocketphi.passes.base import Pass
from pocketphi.passes.canonicalize import Canonicalize
from pocketphi.passes.fuse_attention import FuseAttention
from pocketphi.passes.fuse_gated_mlp import FuseGatedMlp
from pocketphi.passes.fuse_residual_norm import FuseResidualNorm
from pocketphi.passes.fuse_rms_norm import FuseRmsNorm
from pocketphi.passes.policy import Policy
from pocketphi.passes.quantize_weights import QuantizeWeights
from pocketphi.passes.quantizers import Quantizer, RoundToNearest

TINY = PUBLISHED["tiny"]  # 3 layers, 4 heads over 2, a window of 48, untied
SWITCH = 64
VARIANTS: dict[str, ModelConfig] = {
    "tiny": TINY,
    "full": replace(TINY, kv_heads=4, sliding_window=None),
    "tied": replace(TINY, tied_embeddings=True),
    "partial": replace(TINY, heads=2, kv_heads=1, head_dim=64, rotary_dim=48, sliding_window=None),
    "longrope": replace(
        TINY,
        sliding_window=None,
        long_rope=LongRope(tuple(1 + i / 16 for i in range(8)), tuple(1.0 + 2 * i for i in range(8)), SWITCH),
    ),
}
PASSES: list[Callable[[], Pass]] = [
    Canonicalize,
    FuseRmsNorm,
    FuseAttention,
    FuseResidualNorm,
    FuseGatedMlp,
    lambda: QuantizeWeights(Policy.of(RoundToNearest(32))),
]

# (new tokens, tokens in the cache, batch): a prompt, a second prompt, one token; beyond the window and the switch
CASES = [(7, 0, 1), (60, 0, 2), (5, 9, 2), (1, 70, 1), (9, 58, 1)]


def checkpoint(variant: str) -> RandomWeights:
    return RandomWeights(f"random:{variant}", VARIANTS[variant])


def traced(variant: str = "tiny") -> Program:
    """A fresh copy of the traced model."""
    return copied(_after(variant, 0))


def before(kind: type[Pass], variant: str = "tiny") -> Program:
    """A fresh copy of the model as it comes to a pass."""
    return copied(_after(variant, next(i for i, made in enumerate(PASSES) if isinstance(made(), kind))))


def fused(variant: str = "tiny") -> Program:
    """A fresh copy after all float rewrites."""
    return before(QuantizeWeights, variant)


def quantized(variant: str = "tiny", block: int = 32, symmetric: bool = True) -> Program:
    return quantized_by(RoundToNearest(block, symmetric), variant)


def quantized_by(
    quantizer: Quantizer, variant: str = "tiny", special: Mapping[str, Quantizer] | None = None
) -> Program:
    """special: quantizers of single weights."""
    program = fused(variant)
    QuantizeWeights(Policy.of(quantizer, special))(program)
    return program


@functools.cache
def _after(variant: str, count: int) -> Program:
    if not count:
        return trace(checkpoint(variant))
    program = copied(_after(variant, count - 1))
    PASSES[count - 1]()(program)
    return program


def copied(program: Program) -> Program:
    graph = fx.Graph()
    outputs = graph.graph_copy(program.graph, {})
    graph.output(outputs)
    return Program(graph, program.config, dict(program.weights))


def inputs(config: ModelConfig, length: int, past: int = 0, batch: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tokens after a random cache."""
    generator = torch.Generator().manual_seed(1000 * length + past + seed)
    made = {
        "input_ids": torch.randint(0, config.vocab_size, (batch, length), generator=generator),
        "attention_mask": torch.ones(batch, past + length, dtype=torch.int64),
        "position_ids": torch.arange(past, past + length).expand(batch, -1),
    }
    shape = (batch, config.kv_heads, past, config.head_dim)
    for layer in range(config.layers):
        for kind in ("key", "value"):
            made[f"past_key_values.{layer}.{kind}"] = torch.randn(shape, generator=generator)
    return made


def runs(program: Program, cases: list[tuple[int, int, int]] | None = None) -> list[dict[str, torch.Tensor]]:
    """The outputs for CASES."""
    weights = Weights(program.weights, keep=True)
    return [program.run(inputs(program.config, *case), weights) for case in cases or CASES]


def differing(a: list[dict[str, torch.Tensor]], b: list[dict[str, torch.Tensor]]) -> list[str]:
    """The outputs that are not the same bits."""
    assert [list(x) for x in a] == [list(y) for y in b]
    return [f"{i} {name}" for i, (x, y) in enumerate(zip(a, b)) for name in x if not torch.equal(x[name], y[name])]


def hf_model(source: Checkpoint) -> Any:
    """transformers' own model in float32 with a checkpoint's weights."""
    from transformers import Phi3ForCausalLM

    model = Phi3ForCausalLM(hf_config(source.config)).eval()
    state = {name: source.read(name, 0, info.rows).float() for name, info in source.tensors.items()}
    if source.config.tied_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model


def hf_run(model: Any, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' model on a program's inputs, through its own cache."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer in range(model.config.num_hidden_layers):
        key, value = (feeds[f"past_key_values.{layer}.{kind}"] for kind in ("key", "value"))
        cache.update(key, value, layer)
    with torch.no_grad():
        out = model(
            input_ids=feeds["input_ids"],
            attention_mask=feeds["attention_mask"],
            position_ids=feeds["position_ids"],
            past_key_values=cache,
            use_cache=True,
        )
    found = {"logits": out.logits}
    for layer, stored in enumerate(out.past_key_values.layers):
        found |= {f"present.{layer}.key": stored.keys, f"present.{layer}.value": stored.values}
    return found


def rounding(config: ModelConfig, size: float, tokens: int = 1) -> float:
    """How far two float32 evaluations in another order may be apart, for values up to `size`.

    A rounding of each term of the longest sum, in each layer and the head.
    """
    longest = max(config.intermediate_size, config.hidden_size, tokens)
    return longest * (config.layers + 1) * torch.finfo(torch.float32).eps * size


Call = Callable[..., fx.Node]


def small(
    body: Callable[..., dict[str, fx.Node]],
    feeds: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor | LazyWeight] | None = None,
    config: ModelConfig = TINY,
) -> Program:
    """A hand-made program: body(call, **nodes) → outputs, where call(target, *args, **kwargs) adds an operator."""
    graph = fx.Graph()
    nodes = {}
    for name, value in feeds.items():
        nodes[name] = graph.placeholder(name)
        nodes[name].meta["val"] = TensorType(tuple(value.shape), value.dtype)
    end = graph.output({})
    program = Program(graph, config, {})
    for name, value in (weights or {}).items():
        recipe = Constant(value, "the test") if isinstance(value, torch.Tensor) else value
        nodes[name] = program.weight(name, recipe, before=end)[""]

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = program.call(target, args, before=end)
        node.kwargs = kwargs
        return node

    end.args = (body(call, **nodes),)
    program.check()
    return program


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def twice(one: Pass, program: Program) -> Any:
    """Run a pass two times: the second one must change nothing. Returns the first report."""
    report = one(program)
    text = program.dump()
    again = one(program)
    assert (dict(again.applied), again.removed, again.refused) == ({}, 0, report.refused)
    assert program.dump() == text
    return report
