"""The scales of a K/V cache that has one for each channel, from a text that runs through the model.

A channel of keys is seen after rotary, which turns pairs of channels into each other as positions go on. A calibration text is
short, and what the slow pairs hold at its positions is not what they will hold later. So both channels of a pair get the range
of the pair's length, which no position changes. (On the sample, over 2,048 tokens with scales from texts of 512: KL 0.003 nats
a token in 8 bits, instead of 0.05 with the largest value of each channel.)

For few bits a range is cut: of some factors of it, each channel takes the one with the least squared error on the text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from pocketphi.graph.edge_ops import MATRIX_READERS, rotated
from pocketphi.graph.formats import format_of
from pocketphi.graph.lazy_weights import Dequantized, LazyWeight
from pocketphi.graph.program import Program, Weights, observed, stepwise
from pocketphi.graph.rounded_cache import attentions, rounded
from pocketphi.passes.streamed import read_by

TOKENS = 2048
"""Of the calibration text at most."""

CUTS: dict[int, tuple[float, ...]] = {8: (1.0,), 4: (1.0, 0.9, 0.8, 0.7, 0.6)}
"""By bits: the factors of a range that are tried."""

Scales = list[tuple[torch.Tensor, torch.Tensor]]
"""Of each layer, those of keys and those of values: float32 [KV, D]."""


def measure_scales(
    program: Program,
    weights: Mapping[str, LazyWeight],
    tokens: torch.Tensor,
    widths: Collection[int],
    progress: Callable[[int], None] = lambda layers: None,
) -> dict[int, Scales]:
    """For each number of bits, the scales of all layers.

    program: fused, in float; weights: those that it is run with, quantized ones as what they stand for; tokens: int64 [B, S];
    progress: called once a layer. Weights are streamed; nothing behind the last layer's projection is run.
    """
    found: dict[int, Scales] = {bits: [] for bits in widths}
    layers = attentions(program)
    held = {
        name: Dequantized(one) if format_of(one.parts) else one for name, one in {**program.weights, **weights}.items()
    }
    matrices = {str(n.args[at].target) for n in program.graph.nodes if (at := MATRIX_READERS.get(n.target)) is not None}
    rest = Weights({name: one for name, one in held.items() if name not in matrices}, keep=True)

    def observe(node: Any, args: tuple[Any, ...]) -> Any:
        if node in layers:
            keys, values, longest = _seen(*args[:8])
            for bits, scales in found.items():
                scales.append((_scales(keys, longest, bits), _scales(values, values.abs().amax((0, 2)), bits)))
            progress(1)
        if node.target not in MATRIX_READERS:
            return None
        return read_by(node.target, args, held[args[MATRIX_READERS[node.target]]])

    with torch.no_grad():
        last = layers[-1]
        inputs = program.prefill_inputs(tokens)
        run = stepwise(list(last.all_input_nodes), inputs, lambda name: name if name in matrices else rest(name))
        given = observed(run, observe)
        observe(last, tuple(given[a] if isinstance(a, torch.fx.Node) else a for a in last.args))
    return found


def _seen(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    _: torch.Tensor,
    position_ids: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    heads: int,
    kv_heads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys, after rotary, and values of a layer, float32 [B, KV, S, D]; how large a key may become in each channel, [KV, D].

    The arguments are the first of `edge.attention`.
    """
    dim, half = k_cache.shape[-1], cos.shape[-1]
    _, keys, values = qkv.unflatten(-1, (-1, dim)).transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)
    longest = torch.sqrt(cos.square() + sin.square()).amax(0)  # attention factors of LongRoPE are in the tables
    first, second, kept = keys[..., :half], keys[..., half : 2 * half], keys[..., 2 * half :]
    length = torch.sqrt(first.square() + second.square()).amax((0, 2)) * longest
    reach = torch.cat([length, length, kept.abs().amax((0, 2))], dim=-1)
    return rotated(keys, cos[position_ids], sin[position_ids]), values, reach


def _scales(x: torch.Tensor, reach: torch.Tensor, bits: int) -> torch.Tensor:
    """float32 [KV, D] for x [B, KV, S, D], whose channels reach so far [KV, D]."""
    largest = reach.amax(-1, keepdim=True)
    reach = torch.where(
        reach > 0, reach, torch.where(largest > 0, largest, 1.0)
    )  # a channel that the text leaves at zero
    most = (1 << bits - 1) - 1
    best, least = reach / most, torch.full_like(reach, torch.inf)
    for cut in CUTS[bits]:
        scale = reach * cut / most
        error = (rounded(x, scale[:, None], bits) - x).square().sum((0, 2))
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best
