"""A toy: 2-bit blocks, rounded to nearest, for ONNX Runtime. All that a format takes, and a line in each registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from pocketphi.graph.formats import FORMATS
from pocketphi.graph.formats.base import Format, Layout, Values
from pocketphi.graph.kept import Kept
from pocketphi.graph.packing import half_precision
from pocketphi.passes.quantizers import QUANTIZERS
from pocketphi.passes.quantizers.base import BLOCK, Feedback, Parameter, Quantizer
from pocketphi.targets.ort_mobile.codecs import CODECS, Blocks


@dataclass(frozen=True)
class Toy2(Format):
    """w = (t2 - 2) · scale. t2: uint8 [N, K/4], four a byte, the first in the lowest bits; scale: float32 [N, K/block]."""

    name = "toy2"
    bits = 2
    words = "toy2"
    suffix = "toy2"
    half_part = "scale"

    t2: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def layout(shape: tuple[int, ...], block: int) -> Layout:
        rows, columns = shape
        return {"t2": Values((rows, columns), 2), "scale": Values((rows, columns // block), 32)}

    @staticmethod
    def shape_of(parts: Mapping[str, Any]) -> tuple[int, int]:
        rows, quarter = parts["t2"].shape
        return rows, 4 * quarter

    def dequantize(self) -> torch.Tensor:
        values = torch.stack([self.t2 >> shift & 3 for shift in (0, 2, 4, 6)], -1)
        centred = values.view(*self.scale.shape, -1).float() - 2
        return (centred * self.scale[..., None]).view(len(values), -1)


class TwoBits(Quantizer):
    """The value of largest magnitude maps to -2, the scale takes its sign."""

    recipe = "rtn"
    format = Toy2
    does = "rounds to nearest"
    parameters: ClassVar[Mapping[str, Parameter]] = {"block": BLOCK}

    def layout(self, shape: tuple[int, ...], stored: Kept | None = None) -> Layout:
        return Toy2.layout(shape, self.block)

    def quantize(self, w: torch.Tensor, feedback: Feedback | None = None) -> Toy2:
        blocks = w.view(len(w), -1, self.block)
        scale = half_precision(blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)) / -2)
        fours = (blocks / scale + 2).round().clamp(0, 3).view(len(w), -1, 4).byte()
        return Toy2(sum(fours[..., i] << 2 * i for i in range(4)), scale[..., 0])  # type: ignore[arg-type]


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "toy2", Toy2)
    monkeypatch.setattr("pocketphi.passes.quantizers.QUANTIZERS", [*QUANTIZERS, TwoBits])
    monkeypatch.setitem(CODECS, "toy2", Blocks(Toy2))
