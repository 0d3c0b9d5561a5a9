"""What a quantizer is: rows of float32 in, a weight in some format out, row by row (or group by group) independent.

A recipe is what a user asks for, such as `rtn`: it has a quantizer for each format that it can make. Importing a quantizer does
not load torch, so that the command line can say what there is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import Blocks, Format, Layout, PartSpec, specs
from pocketphi.passes.choices import BLOCKS

if TYPE_CHECKING:
    import torch

    from pocketphi.graph.lazy_weights import FloatWeight

_DAMPING = 0.1
"""Part of H's mean diagonal that is added to it: a short text says little about directions it never took."""
_SHIFT_DAMPING = 1.0
"""As much for the shift of a layer's target, which fits all of W to that text, not the last bit of it."""


@dataclass(frozen=True)
class Statistics:
    """What calibration has measured of a layer's inputs x, behind layers that are quantized.

    moment: H = E[x xᵀ], float32 [K, K]
    drift:  E[(x̂ - x) xᵀ], with x̂ the inputs that the float model has in that place; None: it was not measured
    """

    moment: torch.Tensor
    drift: torch.Tensor | None = None


@dataclass(frozen=True)
class Feedback:
    """How a layer makes up for errors: a column's those of the columns before it, the layer those of the layers before it.

    upper: float32 [K, K] with upperᵀ · upper = (H + damping)⁻¹
    shift: float32 [K, K], or None. What W x misses of W x̂ is predicted best (ridge regression) by W · shift · x with
           shift = E[(x̂ - x) xᵀ] · (H + damping)⁻¹, so that W + W · shift is the matrix to round.
    """

    upper: torch.Tensor
    shift: torch.Tensor | None = None

    @staticmethod
    def of(statistics: Statistics) -> Feedback:
        import torch

        shift = None
        if statistics.drift is not None:
            factor = _factor(statistics.moment, _SHIFT_DAMPING)
            shift = torch.cholesky_solve(statistics.drift.T.to(factor.dtype), factor).T.float()
            del factor
        inverse = torch.cholesky_inverse(_factor(statistics.moment, _DAMPING))
        return Feedback(torch.linalg.cholesky(inverse, upper=True).float(), shift)

    def target(self, w: torch.Tensor) -> torch.Tensor:
        """The matrix to round in place of w: float32 [N, K]."""
        return w if self.shift is None else w + w @ self.shift


def _factor(moment: torch.Tensor, damping: float) -> torch.Tensor:
    """Lower Cholesky factor of H + damping · its mean diagonal: in float64, or in float32 where that takes too much memory."""
    import torch

    damped = moment.double() if moment.shape[0] <= 2048 else moment.clone()
    diagonal = damped.diagonal()
    diagonal += damping * diagonal.mean() + 1e-12
    return torch.linalg.cholesky(damped)


@dataclass(frozen=True)
class Parameter:
    """What a user may choose of a quantizer. help: for the command line; choices: its values."""

    help: str
    choices: tuple[int, ...] | tuple[bool, ...]
    default: int | bool


BLOCK = Parameter("weights that share a scale: 16 to 256, or row for whole rows", (0, *BLOCKS), 64)
SYMMETRIC = Parameter("a zero point for each block", (True, False), True)


class Quantizer(ABC):
    """An algorithm with its parameters, which its constructor takes and keeps under the same names.

    recipe:     what a user calls it
    format:     what it makes
    does:       the same in words, for messages and the command line
    calibrates: whether it makes use of activation statistics, so that calibration is worth its time
    version:    goes into cache keys: raise it when the algorithm's results change
    parameters: name → what may be chosen
    block:      values of a row that share one scale; 0: all of it
    symmetric:  zero point in the middle, or one for each block
    group:      rows of the matrix that are rounded together and make one row of the parts
    """

    recipe: ClassVar[str]
    format: ClassVar[type[Format]]
    does: ClassVar[str]
    calibrates: ClassVar[bool] = False
    version: ClassVar[int] = 1
    parameters: ClassVar[Mapping[str, Parameter]] = {"block": BLOCK, "symmetric": SYMMETRIC}
    group = 1

    def __init__(self, block: int, symmetric: bool = True) -> None:
        self.block = block
        self.symmetric = symmetric

    @abstractmethod
    def layout(self, shape: tuple[int, ...], stored: str | None = None) -> Layout:
        """The parts that it makes of a weight [N, K]. stored: how the file holds that, as `Checkpoint.int4_kind` says it."""

    @abstractmethod
    def quantize(self, w: torch.Tensor, feedback: Feedback | None = None) -> Format:
        """Round w: float32 [N, K], a shape that `check` lets pass, the layer's target. feedback: where inputs were measured."""

    def check(self, name: str, rows: int, columns: int) -> None:
        """Raise InputError unless a weight [N, K] can be cut into blocks, offering the sizes that fit."""
        check_block(name, columns, self.block)

    def parts(self, source: FloatWeight) -> dict[str, PartSpec]:
        """What this quantizer makes of a weight of a checkpoint."""
        return specs(self.layout(source.parts[""].shape, source.checkpoint.int4_kind(source.tensor)))

    def remark(self, source: FloatWeight) -> str | None:
        """Why a weight will not get what was asked for, where that is so."""
        return None

    def quantize_rows(self, source: FloatWeight, start: int, stop: int, feedback: Feedback | None) -> Format:
        """Read and round rows [start, stop) of a weight, whole groups. Raises InputError naming it where a value is not finite,
        or a scale would not be."""
        import torch

        w = source.unchecked(start, stop)
        made = self.quantize(feedback.target(w) if feedback else w, feedback)
        # an odd value makes the scale of its block odd, in every quantizer
        if not torch.isfinite(made.half_values.sum()):
            odd = ~torch.isfinite(made.half_values).all(1)
            source.refuse_odd(w, start)
            row = start + self.group * int(odd.int().argmax())
            raise InputError(f"{source.tensor}: row {row} holds values too large for a float16 scale")
        return made

    def describe(self) -> str:
        """In a few words, with every parameter."""
        symmetric = "" if "symmetric" not in self.parameters else " symmetric" if self.symmetric else " asymmetric"
        return f"{self.format.name} {self.recipe} block {self.block or 'row'}{symmetric}"


class BlockQuantizer(Quantizer):
    """What makes blocks of whole numbers, of the width that its format says."""

    format: ClassVar[type[Blocks]]

    @classmethod
    def to(cls, form: type[Blocks]) -> type[Self]:
        """The same algorithm for another width. Where that has no zero points, there is no choice of them."""
        parameters = {name: one for name, one in cls.parameters.items() if form.has_zeros() or name != "symmetric"}
        return type(f"{cls.__name__}{form.bits}", (cls,), {"format": form, "parameters": parameters})

    @property
    def middle(self) -> int:
        """The level of zero where no zero point is stored."""
        return self.format.middle()

    @property
    def most(self) -> int:
        """The highest level."""
        return 2 * self.middle - 1

    def layout(self, shape: tuple[int, ...], stored: str | None = None) -> Layout:
        return self.format.layout(shape, self.block, self.symmetric)


def check_block(name: str, columns: int, block: int) -> None:
    """Raise InputError unless `block` divides K, offering the blocks that do. block: 0 for whole rows, two values a byte."""
    if columns % (block or 2):
        fitting = [str(b) for b in BLOCKS if columns % b == 0]
        choice = f"choose --block {' or '.join(fitting)}" if fitting else "no block size fits"
        raise InputError(f"{name}: K={columns} is not a multiple of block {block or 2}; {choice}")
