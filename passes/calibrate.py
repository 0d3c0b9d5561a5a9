"""Quantize layer by layer while a calibration text runs through the model.

The float program is run once on the text. Where a linear layer is about to run, the second moment of its inputs is measured,
its weight is quantized with it (or found in the cache), and the layer runs with the quantized weight: later layers see the
inputs that they will meet, errors included. One layer's statistics and one weight are in memory at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from importlib.resources import files
from typing import Any

import torch
from torch import fx

from pocketphi.graph.forms import from_parts
from pocketphi.graph.int4 import tensor_bytes
from pocketphi.graph.program import Program, Weights, evaluate
from pocketphi.graph.recipe import FloatWeight, Recipe, materialize
from pocketphi.passes.int4_cache import Int4Cache, StoredInt4
from pocketphi.passes.quantize_weights import Int4Weight
from pocketphi.passes.quantizers import Quantizer

aten = torch.ops.aten

WINDOW = 512
"""Tokens in one calibration sequence."""


def default_text() -> str:
    """Our own pages of prose, dialogue and code, then English that every Python carries (`pydoc_data.topics`)."""
    from pydoc_data.topics import topics

    own = files("pocketphi.passes").joinpath("calibration.txt").read_text("utf-8")
    return "\n\n".join([own, *(topics[name] for name in sorted(topics))])


def held_out_text() -> str:
    """Text to measure with that the default calibration does not reach: the last part of `pydoc_data.topics`."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics)[len(topics) // 2 :])


def quantize_calibrated(
    program: Program,
    tokens: torch.Tensor,
    quantizer: Quantizer,
    cache: Int4Cache,
    progress: Callable[[], None] = lambda: None,
    without: Collection[str] = (),
) -> dict[str, Recipe]:
    """Quantize every weight of linear layers and embeddings into the cache.

    program: float, fused or not; tokens: int64 [B, S]; progress: called once a weight; without: weights that are left to
    another quantizer. Returns name → stored weight.
    Raises InputError where a weight is not finite or the block does not divide its columns.
    """
    weights = {n: w for n, w in _quantizable(program, quantizer).items() if n not in without}
    key = _run_key(cache, tokens, quantizer)
    recalled = cache.recall(key, weights)
    if recalled is not None:
        return dict(recalled)
    stored: dict[str, StoredInt4] = {}

    def quantize(weight: fx.Node, x: torch.Tensor | None) -> StoredInt4 | None:
        name = str(weight.target)
        if name in weights and name not in stored:
            stored[name] = cache.quantized(weights[name], None if x is None else _second_moment(x))
            progress()
        return stored.get(name)

    def observe(node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if node.target is not aten.linear.default:
            return args
        made = quantize(node.args[1], args[0])  # type: ignore[arg-type]
        return args if made is None else (args[0], from_parts(materialize(made)).dequantize(), *args[2:])

    head: Any = program.outputs["logits"]
    inputs = program.prefill_inputs(tokens)
    hidden = evaluate([head.args[0]], inputs, Weights(program.weights, keep=False), observe)[head.args[0]]
    quantize(head.args[1], hidden)
    for node in program.graph.nodes:
        if node.target is aten.embedding.default:  # a tied one is done: the head's inputs tell more
            quantize(node.args[0], None)
    cache.remember(key, stored)
    return dict(stored)


def _quantizable(program: Program, quantizer: Quantizer) -> dict[str, Int4Weight]:
    """Weights of linear layers without a bias and of embeddings: name → how they will be quantized."""
    found = {}
    for node in program.graph.nodes:
        if node.target is aten.linear.default and len(node.args) == 2:
            name = str(node.args[1].target)
        elif node.target is aten.embedding.default:
            name = str(node.args[0].target)
        else:
            continue
        source = program.weights.get(name)
        if isinstance(source, FloatWeight):
            quantizer.check(name, *source.parts[""].shape)
            found[name] = Int4Weight(source, quantizer)
    return found


def _run_key(cache: Int4Cache, tokens: torch.Tensor, quantizer: Quantizer) -> str:
    config = json.dumps(cache.source.config.to_hf())
    parts = [cache.source.digest_all(), config, quantizer.describe(), str(quantizer.version), str(tuple(tokens.shape))]
    return hashlib.sha256("\n".join(parts).encode() + tensor_bytes(tokens)).hexdigest()


def _second_moment(x: torch.Tensor) -> torch.Tensor:
    """E[x xᵀ], float32 [K, K], of float32 [B, S, K]."""
    rows = x.flatten(0, -2)
    return rows.T @ rows / rows.shape[0]
