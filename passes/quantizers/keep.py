"""Keep the file's own 4-bit blocks of 32, as a GGUF may hold them, so that nothing is rounded twice."""

from __future__ import annotations

import torch

from pocketphi.graph.int4 import Int4
from pocketphi.graph.recipe import FloatWeight
from pocketphi.passes.quantizers.base import Feedback, Quantizer
from pocketphi.passes.quantizers.rtn import RoundToNearest


class Keep(Quantizer):
    """Takes over Q4_0 blocks (symmetric) bit for bit; weights stored otherwise are rounded to nearest, and said so."""

    name = "keep"

    def quantize(self, w: torch.Tensor, feedback: Feedback | None = None) -> Int4:
        return RoundToNearest(self.block, self.symmetric).quantize(w)

    def quantize_rows(self, source: FloatWeight, start: int, stop: int, feedback: Feedback | None) -> Int4:
        kept = source.checkpoint.read_int4(source.tensor, start, stop)
        return super().quantize_rows(source, start, stop, feedback) if kept is None else kept
