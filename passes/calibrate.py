"""Quantize layer by layer while a calibration text runs through the model.

The float program is run once on the text. Where a linear layer is about to run, the second moment of its inputs is measured,
its weight is quantized with it (or found in the cache), and the layer runs with the quantized weight: later layers see the
inputs that they will meet, errors included. One layer's statistics and one weight are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any

import torch
from torch import fx

from pocketphi.graph.int4 import Int4
from pocketphi.graph.program import Program, Weights, evaluate
from pocketphi.graph.recipe import FloatWeight, Recipe, materialize
from pocketphi.passes.int4_cache import Int4Cache
from pocketphi.passes.quantize_weights import Int4Weight, check_block
from pocketphi.passes.quantizers import Quantizer

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
) -> dict[str, Recipe]:
    """Quantize every weight of linear layers and embeddings into the cache.

    program: float, fused or not; tokens: int64 [B, S]; progress: called once a weight. Returns name → stored weight.
    Raises InputError where a weight is not finite or the block does not divide its columns.
    """
    stored: dict[str, Recipe] = {}

    def quantize(weight: fx.Node, x: torch.Tensor | None) -> Recipe | None:
        name = str(weight.target)
        source = program.weights.get(name)
        if isinstance(source, FloatWeight) and name not in stored:
            check_block(name, source.parts[""].shape[1], quantizer.block)
            moment = None if x is None else _second_moment(x)
            stored[name] = cache.quantized(Int4Weight(source, quantizer), moment)
            progress()
        return stored.get(name)

    def observe(node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if node.target is not torch.ops.aten.linear.default or len(args) > 2:
            return args
        made = quantize(node.args[1], args[0])  # type: ignore[arg-type]
        return args if made is None else (args[0], Int4(**materialize(made)).dequantize())

    head: Any = program.outputs["logits"]
    weights = Weights(program.weights, keep=False)
    hidden = evaluate([head.args[0]], program.prefill_inputs(tokens), weights, observe)[head.args[0]]
    quantize(head.args[1], hidden)
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.embedding.default:  # a tied one is done: the head's inputs tell more
            quantize(node.args[0], None)
    return stored


def _second_moment(x: torch.Tensor) -> torch.Tensor:
    """E[x xᵀ], float32 [K, K], of float32 [B, S, K]."""
    rows = x.flatten(0, -2)
    return rows.T @ rows / rows.shape[0]
