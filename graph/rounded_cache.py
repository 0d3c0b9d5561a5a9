"""K/V caches of whole numbers, as torch computes them: the yardstick of files whose cache rounds.

A runtime rounds keys, after rotary, and values when it writes them; everything it computes later, within the same prompt too,
sees what was kept. So a cache is a function of new keys and values, and the rest of the graph stays as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import fx

from pocketphi.graph.edge_ops import ATTENTIONS, attend
from pocketphi.graph.program import Observer, Program, op_name


class RoundedCache(Protocol):
    """What a cache keeps."""

    def kept(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of new keys and values float32 [B, KV, S, D], keys rotated: the values that the cache's numbers stand for."""


@dataclass(frozen=True)
class FixedScales:
    """`q = clamp(round(x · (1/s)))` of -2^(bits-1) … 2^(bits-1) - 1, halves to even, with a scale for each channel.

    scales: of each layer those of keys and of values, float32 [KV, D]
    """

    bits: int
    scales: Sequence[tuple[torch.Tensor, torch.Tensor]]

    def kept(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        key_scale, value_scale = (scale[:, None] for scale in self.scales[layer])
        return rounded(keys, key_scale, self.bits), rounded(values, value_scale, self.bits)


def rounded(x: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest multiples of a scale that `bits` bits hold; scale: float32, of a shape that spreads over x."""
    most = (1 << bits - 1) - 1
    return (x * (1 / scale)).round().clamp(-most - 1, most) * scale


def observer(program: Program, cache: RoundedCache) -> Observer:
    """For a run of a program whose attention is fused: each layer keeps keys and values as `cache` says."""
    layers = {node: number for number, node in enumerate(attentions(program))}

    def observe(node: fx.Node, args: tuple[Any, ...]) -> Any:
        return attend(*args, kept=functools.partial(cache.kept, layers[node])) if node in layers else None

    return observe


def attentions(program: Program) -> list[fx.Node]:
    """The attention of each layer, in order."""
    return [node for node in program.graph.nodes if op_name(node) in ATTENTIONS]
