"""What a quantizer is: rows of float32 in, a canonical form out, row by row (or group by group) independent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from pocketphi.graph.errors import InputError
from pocketphi.graph.forms import Quantized
from pocketphi.graph.recipe import FloatWeight, PartSpec, int4_parts
from pocketphi.passes.choices import BLOCKS

_DAMPING = 0.1
"""Part of H's mean diagonal that is added to it: a short text says little about directions it never took."""


@dataclass(frozen=True)
class Feedback:
    """How the error of a column can be made up for by those behind it, from the second moment H of a layer's inputs.

    upper: float32 [K, K] with upperᵀ · upper = (H + damping)⁻¹
    """

    upper: torch.Tensor

    @staticmethod
    def of(second_moment: torch.Tensor) -> Feedback:
        """second_moment: H, float32 [K, K]."""
        damped = second_moment.double() if second_moment.shape[0] <= 2048 else second_moment.clone()
        diagonal = damped.diagonal()
        diagonal += _DAMPING * diagonal.mean() + 1e-12
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        del damped
        return Feedback(torch.linalg.cholesky(inverse, upper=True).float())


class Quantizer(ABC):
    """An algorithm with its parameters.

    block:      values of a row that share one scale; 0: all of it
    symmetric:  zero point fixed at 8, or one of 0 … 15 for each block
    weighted:   whether it makes use of activation statistics, so that calibration is worth its time
    version:    goes into cache keys: raise it when the algorithm's results change
    group:      rows of the matrix that are rounded together and make one row of the parts
    """

    name: str
    weighted = False
    version = 1
    group = 1

    def __init__(self, block: int, symmetric: bool = True) -> None:
        self.block = block
        self.symmetric = symmetric

    @abstractmethod
    def quantize(self, w: torch.Tensor, feedback: Feedback | None = None) -> Quantized:
        """Round w: float32 [N, K], a shape that `check` lets pass. feedback: of the layer's inputs, where measured."""

    def check(self, name: str, rows: int, columns: int) -> None:
        """Raise InputError unless a weight [N, K] can be cut into blocks, offering the sizes that fit."""
        check_block(name, columns, self.block)

    def parts(self, source: FloatWeight) -> dict[str, PartSpec]:
        """What this quantizer makes of a weight."""
        rows, columns = source.parts[""].shape
        return int4_parts((rows, columns), self.block or columns, self.symmetric)

    def remark(self, source: FloatWeight) -> str | None:
        """Why a weight will not get what was asked for, where that is so."""
        return None

    def quantize_rows(self, source: FloatWeight, start: int, stop: int, feedback: Feedback | None) -> Quantized:
        """Read and round rows [start, stop) of a weight, whole groups. Raises InputError naming it where a value is not finite,
        or a scale would not be."""
        w = source.unchecked(start, stop)
        made = self.quantize(w, feedback)
        # an odd value makes the scale of its block odd, in every quantizer
        if not torch.isfinite(made.half_values.sum()):
            odd = ~torch.isfinite(made.half_values).all(1)
            source.refuse_odd(w, start)
            row = start + self.group * int(odd.int().argmax())
            raise InputError(f"{source.tensor}: row {row} holds values too large for a float16 scale")
        return made

    def describe(self) -> str:
        return f"int4 {self.name} block {self.block or 'row'} {'symmetric' if self.symmetric else 'asymmetric'}"


def check_block(name: str, columns: int, block: int) -> None:
    """Raise InputError unless `block` divides K, offering the blocks that do. block: 0 for whole rows, two values a byte."""
    if columns % (block or 2):
        fitting = [str(b) for b in BLOCKS if columns % b == 0]
        choice = f"choose --block {' or '.join(fitting)}" if fitting else "no block size fits"
        raise InputError(f"{name}: K={columns} is not a multiple of block {block or 2}; {choice}")
