"""What a quantizer is: rows of float32 in, `Int4` out, row by row independent."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from pocketphi.graph.errors import InputError
from pocketphi.graph.int4 import Int4
from pocketphi.graph.recipe import FloatWeight


class Quantizer(ABC):
    """An algorithm with its parameters.

    block:      values of a row that share one scale
    symmetric:  zero point fixed at 8, or one of 0 … 15 for each block
    weighted:   whether it makes use of activation statistics, so that calibration is worth its time
    version:    goes into cache keys: raise it when the algorithm's results change
    """

    name: str
    weighted = False
    version = 1

    def __init__(self, block: int, symmetric: bool = True) -> None:
        self.block = block
        self.symmetric = symmetric

    @abstractmethod
    def quantize(self, w: torch.Tensor, importance: torch.Tensor | None = None) -> Int4:
        """Round w: float32 [N, K], K a multiple of the block; importance: float32 [K] ≥ 0 or None."""

    def quantize_rows(self, source: FloatWeight, start: int, stop: int, importance: torch.Tensor | None) -> Int4:
        """Read and round rows [start, stop) of a weight. Raises InputError naming it where a value is not finite."""
        w = source.read(start, stop)[""]
        made = self.quantize(w, importance)
        if not torch.isfinite(made.scale).all() or not torch.isfinite(w.sum()):  # a sum may also be too large
            infinite = "holds a value that is not finite (NaN or infinity)"
            for values, fault in ((w, infinite), (made.scale, "spans too much for float32")):
                odd = (~torch.isfinite(values)).any(1)
                if odd.any():
                    raise InputError(f"{source.tensor}: row {start + int(odd.int().argmax())} {fault}")
        return made

    def describe(self) -> str:
        return f"int4 {self.name} block {self.block} {'symmetric' if self.symmetric else 'asymmetric'}"
