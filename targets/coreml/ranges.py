"""How far values are from the largest that float16 holds."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

LARGEST = 65504.0
"""Of float16 (IEEE 754 binary16)."""


def largest(value: torch.Tensor) -> float:
    """The largest finite magnitude in a float tensor; 0 where there is none."""
    if not value.numel():
        return 0.0
    low, high = (float(v) for v in value.aminmax())
    magnitude = max(abs(low), abs(high))
    if math.isfinite(magnitude):
        return magnitude
    finite = value[torch.isfinite(value)]
    return float(finite.abs().max()) if finite.numel() else 0.0


def headroom(magnitude: float) -> float:
    """How many times larger it could be in float16."""
    return math.inf if magnitude == 0 else LARGEST / magnitude


def tight(ranges: Mapping[str, float], least: float = 2.0) -> dict[str, float]:
    """The operations with less headroom than that, and how much they have, the tightest first."""
    found = {name: headroom(m) for name, m in ranges.items() if headroom(m) < least}
    return dict(sorted(found.items(), key=lambda item: item[1]))
