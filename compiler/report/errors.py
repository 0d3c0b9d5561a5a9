"""By how much rounding moved each weight: the saved ones beside those of the model that they were made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.evaluate import check_adapters
from pocketphi.compiler.hosts import open_host
from pocketphi.compiler.rounding_check import same_norms
from pocketphi.compiler.ui import Ui
from pocketphi.graph.channel_scales import scaled_alike
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import format_of
from pocketphi.graph.lazy_weights import Dequantized
from pocketphi.graph.lora.named import Lora
from pocketphi.graph.opening import open_checkpoint

ROWS = 256
"""Of a weight that are compared at most, in places that lie evenly over it."""
_TOGETHER = 16
"""Rows that lie together: tables and blocks of GGUF files are shared by no more."""


@dataclass(frozen=True)
class Errors:
    """relative: ‖saved − model‖ / ‖model‖ of each quantized weight; rows: that were compared of one, at most."""

    relative: Mapping[str, float]
    rows: int = ROWS


def weight_errors(bundle: Bundle, reference: str, lora: Sequence[Lora], ui: Ui) -> Errors:
    """Compare with a model, as `verify --reference` opens it.

    Raises InputError for a model whose weights are not those that were rounded, and CannotRun where the bundle cannot be opened
    here.
    """
    check_adapters(bundle.manifest.source, reference, lora)
    source = open_checkpoint(reference, lora)
    weights = open_host(bundle.path, bundle.manifest).weights()
    quantized = {name: weight for name, weight in weights.items() if format_of(weight.parts)}
    floats = {name: weight for name, weight in weights.items() if name in source.tensors}
    if {name: Dequantized(w).parts[""].shape for name, w in quantized.items()} != {
        name: source.tensors[name].shape for name in quantized if name in source.tensors
    }:
        raise InputError(f"--reference {reference}: has other weights than the bundle, or of other shapes")
    if bundle.manifest.recipe.smooth:
        source = scaled_alike(source, floats)
    if not same_norms({name: floats[name] for name in floats if name not in quantized}, source):
        raise InputError(
            f"--reference {reference}: its norms are not the bundle's: it is another model, or they were folded"
        )
    relative = {}
    with ui.task("compare weights", len(quantized), "weights") as advance:
        for name, weight in quantized.items():
            saved, off, whole = Dequantized(weight), 0.0, 0.0
            for start, stop in places(saved.parts[""].shape[0]):
                expected = source.read(name, start, stop).float()
                off += float((saved.read(start, stop)[""] - expected).square().sum())
                whole += float(expected.square().sum())
            relative[name] = float(torch.tensor(off / whole).sqrt()) if whole else 0.0
            advance(1)
    return Errors(relative)


def places(count: int, most: int = ROWS) -> list[tuple[int, int]]:
    """(start, stop) of rows to compare: all of a small weight, else groups of 16 that lie evenly over it."""
    if count <= most:
        return [(0, count)]
    groups = most // _TOGETHER
    last = (count - _TOGETHER) // _TOGETHER
    starts = [i * last // (groups - 1) * _TOGETHER for i in range(groups)]
    return [(start, start + _TOGETHER) for start in starts]
