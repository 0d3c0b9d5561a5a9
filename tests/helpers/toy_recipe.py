"""A recipe in one file, as docs/extending.md describes it: round to nearest, after large values were brought down."""

from __future__ import annotations

import torch

from pocketphi.graph.formats import Int4
from pocketphi.passes.quantizers.base import Feedback
from pocketphi.passes.quantizers.rtn import RoundToNearest


class Clip(RoundToNearest):
    """A value counts as four standard deviations of its row at most."""

    recipe = "clip"
    does = "rounds to nearest what it has clipped"
    version = 1

    def quantize(self, w: torch.Tensor, feedback: Feedback | None = None) -> Int4:
        most = 4 * w.std(1, keepdim=True)
        return super().quantize(w.clamp(-most, most), feedback)
