"""What a quantizer is: rows of float32 in, a weight in some format out, row by row (or group by group) independent.

A recipe is what a user asks for, such as `rtn`: it has a quantizer for each format that it can make. Importing a quantizer does
not load torch, so that the command line can say what there is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import Blocks, Format, Layout, PartSpec, specs
from pocketphi.graph.formats.blocks import row_scales, scale_codes
from pocketphi.graph.packing import half_precision
from pocketphi.passes.choices import BLOCKS

if TYPE_CHECKING:
    import torch

    from pocketphi.graph.kept import Kept
    from pocketphi.graph.lazy_weights import FloatWeight
    from pocketphi.passes.quantizers.outputs import Outputs

_DAMPING = 0.1
"""Part of H's mean diagonal that is added to it: a short text says little about directions it never took."""
_SHIFT_DAMPING = 1.0
"""As much for the shift of a layer's target, which fits all of W to that text, not the last bit of it."""
NO_ZEROS = 8
"""From so many bits on, zero points gain nothing."""
_FEW = 32
"""Tokens of an expert below which its rows are rounded as if nothing was measured."""
WORTH_A_PROCESS = 1 << 19
"""Values of a weight from which on its rows are rounded in processes: that takes half a second, and a fork a few hundredths."""
_TINY = 1e-30
"""Below this a block counts as zero: the reciprocal of its scale would overflow."""
_STRIP = 1024
"""Columns of a moment that are computed together, down to the end of their square on the diagonal."""


@dataclass(frozen=True)
class Outer:
    """leftᵀ · right, not multiplied out: float32 [T, K] each. For T < K that is less of everything."""

    left: torch.Tensor
    right: torch.Tensor


@dataclass
class Statistics:
    """What calibration has measured of a layer's inputs x, behind layers that are quantized.

    moment: H = E[x xᵀ], float32 [K, K], of which the upper triangle is read
    drift:  E[(x̂ - x) xᵀ], with x̂ the inputs that the float model has in that place, float32 [K, K]; or `Outer`, whose right
            side is x; None: it was not measured
    outputs: what errors of its outputs are worth; None: it was not measured
    """

    moment: torch.Tensor
    drift: torch.Tensor | Outer | None = None
    outputs: Outputs | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that was measured, by name."""
        drift = {"drift": self.drift} if not isinstance(self.drift, Outer) else vars(self.drift)
        outputs = self.outputs.tensors() if self.outputs else {}
        return {name: one for name, one in {"moment": self.moment, **drift, **outputs}.items() if one is not None}

    @staticmethod
    def of(met: Sequence[torch.Tensor], exact: Sequence[torch.Tensor] | None = None) -> Statistics:
        """met: x in one or several pieces, float32 [T, K] together; exact: x̂ in the same."""
        import torch

        moment = _moment(met)
        if exact is None:
            return Statistics(moment)
        tokens, columns = sum(map(len, met)), met[0].shape[1]
        if tokens < columns:
            missed = torch.cat(list(met)).neg_()
            for part, one in zip(missed.split(list(map(len, met))), exact, strict=True):
                part.add_(one)
            return Statistics(moment, Outer(missed.div_(tokens), torch.cat(list(met))))
        drift = torch.zeros(columns, columns)
        for x, one in zip(met, exact, strict=True):
            drift.addmm_((one - x).div_(tokens).T, x)
        return Statistics(moment, drift)


@dataclass(frozen=True)
class ExpertInputs:
    """The same of a layer's experts, not yet summed up: each is measured when its rows are about to be rounded.

    met, exact: x and x̂ of the tokens that an expert saw, float32 [T, K] for each expert, with a T of its own
    """

    met: tuple[torch.Tensor, ...]
    exact: tuple[torch.Tensor, ...]

    def tensors(self) -> dict[str, torch.Tensor]:
        both = {"met": self.met, "exact": self.exact}
        return {f"{name}.{number}": one for name, of in both.items() for number, one in enumerate(of)}

    def statistics(self, number: int) -> Statistics | None:
        """Of one expert; None where it saw too few tokens to tell anything."""
        met, exact = self.met[number], self.exact[number]
        return Statistics.of([met], [exact]) if len(met) >= _FEW else None


@dataclass(frozen=True)
class Feedback:
    """How a layer makes up for errors: a column's those of the columns before it, the layer those of the layers before it.

    order:  int64 [K], the columns as they are rounded: those with large inputs first, since more columns can then make up for
            them, but whole blocks together (GPTQ's "act order" by blocks)
    mixing: float32 [K, K], upper triangular, in that order, and
    cost:   float32 [K], with H + damping = mixing · diag(cost) · mixingᵀ, all in that order, and ones on mixing's diagonal. The
            errors e of a row cost Σ over k of cost[k] · (e · mixing)[k]²: each column can make up for what those before it
            add to its own. Kept by the number of the column
    shift:  float32 [K, K], or `Outer`, or None. What W x misses of W x̂ is predicted best (ridge regression) by
            W · shift · x with shift = E[(x̂ - x) xᵀ] · (H + damping)⁻¹, so that W + W · shift is the matrix to round.
    outputs: of the statistics
    """

    order: torch.Tensor
    mixing: torch.Tensor
    cost: torch.Tensor
    shift: torch.Tensor | Outer | None = None
    outputs: Outputs | None = None

    @staticmethod
    def of(statistics: Statistics, block: int = 0, consume: bool = False) -> Feedback:
        """block: columns that are rounded together; 0: all. consume: nobody needs the statistics afterwards, and their memory
        is used."""
        import torch

        shift = _shift(statistics)
        if consume:
            statistics.drift = None
        order = _order(statistics.moment.diagonal(), block)
        # the lower factor of H with its columns in reverse is, in reverse, the upper one; in one matrix, of a quarter of a
        # gigabyte for 8,192 columns
        matrix = _permute(_mirrored(_damped(statistics.moment, _DAMPING, in_place=consume)), order.flip(0))
        # LAPACK takes columns whose values lie side by side, or makes another copy
        torch.linalg.cholesky(matrix.T, out=matrix.T)
        mixing = _reverse(_transpose(matrix))
        diagonal = mixing.diagonal().clone()
        cost = torch.empty(len(order)).index_copy_(0, order, diagonal.square().float())
        return Feedback(order, mixing.div_(diagonal).float(), cost, shift, statistics.outputs)

    def target(self, w: torch.Tensor) -> torch.Tensor:
        """The matrix to round in place of w: float32 [N, K]."""
        import torch

        if self.shift is None:
            return w
        if isinstance(self.shift, Outer):
            return torch.addmm(w, w @ self.shift.left.T, self.shift.right)
        return torch.addmm(w, w, self.shift)


def _moment(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """E[x xᵀ] of x [T, K], in pieces, above its diagonal and for some way below it: half of the products."""
    import torch

    columns = pieces[0].shape[1]
    moment = torch.zeros(columns, columns)
    for x in pieces:
        for start in range(0, columns, _STRIP):
            stop = min(start + _STRIP, columns)
            moment[:stop, start:stop].addmm_(x[:, :stop].T, x[:, start:stop])
    return moment.div_(sum(map(len, pieces)))


def _shift(statistics: Statistics) -> torch.Tensor | Outer | None:
    import torch

    drift = statistics.drift
    if drift is None:
        return None
    if isinstance(drift, Outer):
        # xᵀ (x xᵀ / T + d)⁻¹ = (xᵀ x / T + d)⁻¹ xᵀ: a system of T equations in place of K
        across = (drift.right @ drift.right.T).div_(len(drift.right))
        across.diagonal().add_(_added(statistics.moment, _SHIFT_DAMPING))
        return Outer(drift.left, torch.cholesky_solve(drift.right, torch.linalg.cholesky(across)))
    factor = torch.linalg.cholesky(_damped(statistics.moment, _SHIFT_DAMPING), upper=True)
    return torch.cholesky_solve(drift.T.to(factor.dtype), factor, upper=True).T.float()


def _order(energy: torch.Tensor, block: int) -> torch.Tensor:
    """Columns by E[x²], float32 [K], the largest first, in blocks by the mean of theirs: int64 [K]."""
    import torch

    columns = torch.arange(len(energy)).view(-1, block or len(energy))
    blocks = energy[columns].mean(1).argsort(descending=True, stable=True)
    inside = energy[columns].argsort(dim=1, descending=True, stable=True)
    return columns.gather(1, inside)[blocks].flatten()


def _mirrored(moment: torch.Tensor) -> torch.Tensor:
    """What lies above the diagonal, written below it too."""
    for start in range(0, len(moment), _STRIP):
        stop = min(start + _STRIP, len(moment))
        moment[stop:, start:stop] = moment[start:stop, stop:].T
        square = moment[start:stop, start:stop]
        square.copy_(square.triu() + square.triu(1).T)
    return moment


def _permute(matrix: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """A symmetric matrix with its rows and columns in another order, in place."""
    return _columns(_transpose(_columns(matrix, order)), order)


def _columns(matrix: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """A matrix with its columns in another order, in place."""
    for start in range(0, len(matrix), _STRIP):
        matrix[start : start + _STRIP] = matrix[start : start + _STRIP].index_select(1, order)
    return matrix


def _transpose(matrix: torch.Tensor) -> torch.Tensor:
    """In place, square by square."""
    for start in range(0, len(matrix), _STRIP):
        stop = min(start + _STRIP, len(matrix))
        matrix[start:stop, start:stop] = matrix[start:stop, start:stop].T.clone()
        for first in range(stop, len(matrix), _STRIP):
            last = first + _STRIP
            above = matrix[start:stop, first:last].clone()
            matrix[start:stop, first:last] = matrix[first:last, start:stop].T
            matrix[first:last, start:stop] = above.T
    return matrix


def _reverse(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix with its rows and its columns in reverse, in place."""
    flat = matrix.view(-1)
    half, strip = len(flat) // 2, _STRIP**2
    for start in range(0, half, strip):
        stop = min(start + strip, half)
        front = flat[start:stop].flip(0)
        flat[start:stop] = flat[len(flat) - stop : len(flat) - start].flip(0)
        flat[len(flat) - stop : len(flat) - start] = front
    return matrix


def _damped(moment: torch.Tensor, damping: float, in_place: bool = False) -> torch.Tensor:
    """H + damping · its mean diagonal: in float64, or in float32 where that takes too much memory, and may be in place."""
    damped = moment.double() if moment.shape[0] <= 2048 else moment if in_place else moment.clone()
    damped.diagonal().add_(_added(damped, damping))
    return damped


def _added(moment: torch.Tensor, damping: float) -> torch.Tensor:
    return damping * moment.diagonal().mean() + 1e-12


@dataclass(frozen=True)
class Parameter:
    """What may be chosen of a quantizer."""

    choices: tuple[int, ...] | tuple[bool, ...]
    default: int | bool


BLOCK = Parameter((0, *BLOCKS), 64)
SYMMETRIC = Parameter((True, False), True)
SCALE_BITS = Parameter((16, 8), 16)


class Quantizer(ABC):
    """An algorithm with its parameters, which its constructor takes and keeps under the same names.

    recipe:     what a user calls it
    format:     what it makes
    does:       the same in words, for messages
    calibrates: whether it makes use of activation statistics, so that calibration is worth its time
    weighs_outputs: whether it makes use of gradients as well; then it is given all rows of a weight at once
    version:    goes into cache keys: raise it when the algorithm's results change
    parameters: name → what may be chosen
    block:      values of a row that share one scale; 0: all of it
    symmetric:  zero point in the middle, or one for each block
    scale_bits: of a scale where targets can keep it so: 16, or 8 with one of 16 bits for each row
    group:      rows of the matrix that are rounded together and make one row of the parts
    """

    recipe: ClassVar[str]
    format: ClassVar[type[Format]]
    does: ClassVar[str]
    calibrates: ClassVar[bool] = False
    weighs_outputs: ClassVar[bool] = False
    version: ClassVar[int] = 1
    parameters: ClassVar[Mapping[str, Parameter]] = {"block": BLOCK, "symmetric": SYMMETRIC}
    group = 1

    def __init__(self, block: int, symmetric: bool = True, scale_bits: int = 16) -> None:
        self.block = block
        self.symmetric = symmetric
        self.scale_bits = scale_bits

    @classmethod
    def to(cls, form: type[Format]) -> type[Self]:
        """The same algorithm for another width. Where that has no zero points, or has no use for them, there is no choice."""
        zeros = "zero" in form.part_names() and form.bits < NO_ZEROS
        parameters = {name: one for name, one in cls.parameters.items() if zeros or name != "symmetric"}
        return type(f"{cls.__name__}{form.bits}", (cls,), {"format": form, "parameters": parameters})

    @abstractmethod
    def layout(self, shape: tuple[int, ...], stored: Kept | None = None) -> Layout:
        """The parts that it makes of a weight [N, K]. stored: how the file holds that, as `Checkpoint.kept` says it."""

    @abstractmethod
    def quantize(self, w: torch.Tensor, feedback: Feedback | None = None) -> Format:
        """Round w: float32 [N, K], a shape that `check` lets pass, the layer's target. feedback: where inputs were measured."""

    def check(self, name: str, rows: int, columns: int) -> None:
        """Raise InputError unless a weight [N, K] can be cut into blocks, offering the sizes that fit."""
        check_block(name, columns, self.block)

    def check_weight(self, source: FloatWeight) -> None:
        """Raise InputError unless a weight of a checkpoint can be cut into blocks."""
        self.check(source.tensor, *map(int, source.parts[""].shape))

    def parts(self, source: FloatWeight) -> dict[str, PartSpec]:
        """What this quantizer makes of a weight of a checkpoint."""
        return specs(self.layout(source.parts[""].shape, source.checkpoint.kept(source.tensor)))

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
            odd = ~torch.isfinite(made.half_values).flatten(1).all(1)
            source.refuse_odd(w, start)
            row = start + self.group * int(odd.int().argmax())
            kept = "scales and offsets" if "offset" in made.tensors() else "a scale"
            raise InputError(f"{source.tensor}: row {row} holds values too large for {kept} in float16")
        return made

    def describe(self) -> str:
        """In a few words, with every parameter."""
        symmetric = "" if "symmetric" not in self.parameters else " symmetric" if self.symmetric else " asymmetric"
        scales = f" scales of {self.scale_bits} bits" if self.scale_bits != SCALE_BITS.default else ""
        return f"{self.format.name} {self.recipe} block {self.block or 'row'}{symmetric}{scales}"


class BlockQuantizer(Quantizer):
    """What makes blocks of whole numbers, of the width that its format says."""

    format: ClassVar[type[Blocks]]
    parameters: ClassVar[Mapping[str, Parameter]] = {"block": BLOCK, "symmetric": SYMMETRIC, "scale_bits": SCALE_BITS}

    @property
    def middle(self) -> int:
        """The level of zero where no zero point is stored."""
        return self.format.middle()

    @property
    def most(self) -> int:
        """The highest level."""
        return 2 * self.middle - 1

    def layout(self, shape: tuple[int, ...], stored: Kept | None = None) -> Layout:
        return self.format.layout(shape, self.block, self.symmetric, self.scale_bits < 16)

    def units(self, low: torch.Tensor, high: torch.Tensor) -> dict[str, torch.Tensor]:
        """By part, what the scales of a row are multiples of, by the extremes of its blocks: float32 [N, K/block] each →
        [N, 1]. Nothing where they are not."""
        if self.scale_bits == 16:
            return {}
        return {part: row_scales(one.abs().amax(1, keepdim=True)) for part, one in self._reached(low, high).items()}

    def _reached(self, low: torch.Tensor, high: torch.Tensor) -> dict[str, torch.Tensor]:
        """By the part that is a row's unit, what it has to reach."""
        return {"row_scale": self._span(low, high)}

    def levels(
        self, low: torch.Tensor, high: torch.Tensor, row_scale: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scale and zero point, where there is one, that round to nearest blocks with values from low to high: float32, all of
        one shape. row_scale: of one that broadcasts to it."""
        scale = stored_scale(self._span(low, high), row_scale)
        zero = None if self.symmetric else (-low.clamp(max=0) * reciprocal(scale)).round_().clamp_(0, self.most)
        return scale, zero

    def _span(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """The scale before it is rounded."""
        import torch

        if self.symmetric:
            return torch.where(high > -low, high, low) / -self.format.reach()
        return (high.clamp(min=0) - low.clamp(max=0)) / self.most


def stored_scale(scale: torch.Tensor, row_scale: torch.Tensor | None) -> torch.Tensor:
    """The nearest scale that a file holds. row_scale: what it is a multiple of, if anything; of a shape that broadcasts."""
    return half_precision(scale if row_scale is None else scale_codes(scale, row_scale) * row_scale)


def reciprocal(scale: torch.Tensor) -> torch.Tensor:
    """1 / scale, and 0 for a block of zeros."""
    import torch

    return torch.where(scale.abs() > _TINY, scale.reciprocal(), 0.0)


def check_block(name: str, columns: int, block: int) -> None:
    """Raise InputError unless `block` divides K, offering the blocks that do. block: 0 for whole rows, two values a byte."""
    if columns % (block or 2):
        fitting = [str(b) for b in BLOCKS if columns % b == 0]
        choice = f"choose --block {' or '.join(fitting)}" if fitting else "no block size fits"
        raise InputError(f"{name}: K={columns} is not a multiple of block {block or 2}; {choice}")
