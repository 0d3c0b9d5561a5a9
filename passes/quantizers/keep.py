"""Keep the file's own 4-bit blocks of 32, as a GGUF may hold them, so that nothing is rounded twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import Format, Int4, Layout
from pocketphi.passes.choices import FILE_BLOCK
from pocketphi.passes.quantizers.base import BLOCK, SYMMETRIC, Feedback, Parameter, Quantizer
from pocketphi.passes.quantizers.rtn import RoundToNearest

if TYPE_CHECKING:
    import torch

    from pocketphi.graph.lazy_weights import FloatWeight


class Keep(Quantizer):
    """Takes over Q4_0 blocks (symmetric) and Q4_1 blocks (with an offset) as they are. Weights that the file stores otherwise
    are rounded to nearest, and the report says so."""

    recipe = "keep"
    format = Int4
    does = "keeps the file's blocks"
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "block": replace(BLOCK, default=FILE_BLOCK),
        "symmetric": SYMMETRIC,
    }

    def __init__(self, block: int, symmetric: bool = True) -> None:
        super().__init__(block, symmetric)
        if block != FILE_BLOCK:
            raise InputError(f"--recipe keep: the file's blocks are of {FILE_BLOCK}, not --block {block}")
        if not symmetric:
            raise InputError("--recipe keep: the file's blocks are kept as they are; leave out --asymmetric")

    def layout(self, shape: tuple[int, ...], stored: str | None = None) -> Layout:
        return Int4.layout(shape, self.block, offset=stored == "offset")

    def remark(self, source: FloatWeight) -> str | None:
        if source.checkpoint.int4_kind(source.tensor):
            return None
        stored = source.checkpoint.tensors[source.tensor].dtype
        return f"{source.tensor} is stored as {stored}, not in 4-bit blocks: rounded to nearest"

    def quantize(self, w: torch.Tensor, feedback: Feedback | None = None) -> Format:
        return RoundToNearest(self.block, self.symmetric).quantize(w)

    def quantize_rows(self, source: FloatWeight, start: int, stop: int, feedback: Feedback | None) -> Format:
        if source.checkpoint.int4_kind(source.tensor):
            return source.checkpoint.read_int4(source.tensor, start, stop)
        return super().quantize_rows(source, start, stop, feedback)
