"""Few bits that name one of some levels, closer together near zero, where most weights are. Blocks share a scale.

The levels are those that leave the least squared error on blocks of 32 trained weights (Lloyd, IEEE Trans. Inf. Theory 28(2),
1982), as whole numbers of seven bits: two products of such with int8 fit into a sum of 16 bits, and finer ones lower the error
by half a percent. The largest magnitude is negative: a scale of either sign puts it where a block has its extreme.

Example, one row of K = 4 values:

    >>> w = Levels4.pack(torch.tensor([[0, 8, 9, 15]]), torch.tensor([[0.5]]))
    >>> w.dequantize() / 0.5
    tensor([[-63.,   1.,   6.,  62.]])
"""

from __future__ import annotations

from dataclasses import field, make_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from pocketphi.graph.formats.blocks import Blocks

if TYPE_CHECKING:
    import torch


class Levels(Blocks):
    """As `Blocks`, without zero points: w = levels[q] · scale. levels: ascending, each of -63 … 63."""

    levels: ClassVar[tuple[int, ...]]
    instead = "choose another format, or compile it for tvm-arm, or for coreml with --ios 26"

    @classmethod
    def reach(cls) -> int:
        return -cls.levels[0]

    @classmethod
    def nearest(cls, steps: torch.Tensor) -> torch.Tensor:
        """The numbers of the levels that are nearest to float32 values, in units of the scale: int64 of their shape."""
        import torch

        # between two whole numbers lies a multiple of a half: floor(2x) tells on which side of it x is
        lowest, highest = 2 * cls.levels[0], 2 * cls.levels[-1]
        halves = (steps * 2).floor_().clamp_(lowest, highest).sub_(lowest)
        return torch.take(_numbers(cls), halves.nan_to_num_(0.0).long())

    @classmethod
    def at(cls, numbers: torch.Tensor) -> torch.Tensor:
        """The levels of numbers int64: float32."""
        import torch

        return torch.take(_levels(cls).to(numbers.device), numbers)

    def centred(self) -> torch.Tensor:
        return self.at(self.values().long())


@cache
def _levels(form: type[Levels]) -> torch.Tensor:
    import torch

    return torch.tensor(form.levels, dtype=torch.float32)


@cache
def _numbers(form: type[Levels]) -> torch.Tensor:
    """The number of the nearest level, by halves from the lowest level on."""
    import torch

    levels = _levels(form)
    middles = torch.arange(2 * form.levels[0], 2 * form.levels[-1] + 1) / 2 + 0.25
    return torch.bucketize(middles, (levels[1:] + levels[:-1]) / 2)


def _width(bits: int, levels: tuple[int, ...]) -> type[Levels]:
    """`nl4` for 4 bits: numbers of levels from 0 to 15, in the part `n4`."""
    parts: list[Any] = [(f"n{bits}", "torch.Tensor"), ("scale", "torch.Tensor")]
    parts += [("row_scale", "torch.Tensor | None", field(default=None))]
    said = {"bits": bits, "levels": levels, "__module__": __name__}
    said |= dict.fromkeys(("name", "words", "suffix"), f"nl{bits}")
    return make_dataclass(f"Levels{bits}", parts, bases=(Levels,), namespace=said, frozen=True)


Levels3 = _width(3, (-63, -37, -21, -8, 2, 14, 29, 50))
Levels4 = _width(4, (-63, -50, -40, -32, -25, -17, -10, -4, 1, 6, 13, 20, 27, 35, 46, 62))
