"""Keep what the file holds in blocks of whole numbers, so that nothing is rounded twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pocketphi.graph.formats import Blocks, Format, Int4, Layout
from pocketphi.graph.kept import Kept
from pocketphi.passes.choices import FILE_BLOCK
from pocketphi.passes.quantizers.base import BLOCK, NO_ZEROS, SYMMETRIC, Feedback, Parameter, Quantizer
from pocketphi.passes.quantizers.rtn import RoundToNearest

if TYPE_CHECKING:
    import torch

    from pocketphi.graph.lazy_weights import FloatWeight


class Keep(Quantizer):
    """Takes over the blocks of a file that is quantized already, as they are: each weight has the format, the blocks and the
    zero points that it has there. Weights that the file stores otherwise are rounded to nearest as the format and the
    parameters say, and the report says so."""

    recipe = "keep"
    format: ClassVar[type[Blocks]] = Int4
    does = "keeps the file's blocks"
    version = 2
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "block": replace(BLOCK, default=FILE_BLOCK),
        "symmetric": SYMMETRIC,
    }

    def __init__(self, block: int, symmetric: bool = True) -> None:
        super().__init__(block, symmetric)
        self._others = RoundToNearest.to(self.format)(block, symmetric)

    def layout(self, shape: tuple[int, ...], stored: Kept | None = None) -> Layout:
        return stored.layout(shape) if stored else self._others.layout(shape)

    def taking(self, kept: Kept) -> Keep:
        """The one that says of a weight which the file holds so what it is."""
        zeros = {"symmetric": kept.more != "zero"} if kept.format.bits < NO_ZEROS else {}
        return Keep.to(kept.format)(kept.block, **zeros)

    def check_weight(self, source: FloatWeight) -> None:
        if not source.checkpoint.kept(source.tensor):
            super().check_weight(source)

    def remark(self, source: FloatWeight) -> str | None:
        said = source.checkpoint.check_kept(source.tensor)
        return f"{source.tensor}: {said}" if said else None

    def quantize(self, w: torch.Tensor, feedback: Feedback | None = None) -> Format:
        return self._others.quantize(w)

    def quantize_rows(self, source: FloatWeight, start: int, stop: int, feedback: Feedback | None) -> Format:
        if source.checkpoint.kept(source.tensor):
            return source.checkpoint.read_kept(source.tensor, start, stop)
        return super().quantize_rows(source, start, stop, feedback)
