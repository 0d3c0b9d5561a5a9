"""The canonical forms of a quantized weight, told apart by the parts that a recipe yields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pocketphi.graph.int4 import Int4
from pocketphi.graph.int8 import Int8
from pocketphi.graph.palette import Palette

Quantized = Int4 | Int8 | Palette

_CLASSES: dict[str, type[Quantized]] = {"int4": Int4, "int8": Int8, "palette": Palette}
_MARKS = {"q": "int4", "q8": "int8", "index": "palette"}
"""The part that only one form has."""

PARTS = {"int4": ("q", "scale", "zero", "offset"), "int8": ("q8", "scale"), "palette": ("index", "lut")}
"""Form → its parts, in the order of the operators' arguments."""


def form_of(parts: Mapping[str, Any]) -> str | None:
    """`int4`, `int8` or `palette`; None for a float weight."""
    return next((form for part, form in _MARKS.items() if part in parts), None)


def shape_of_parts(parts: Mapping[str, Any]) -> tuple[int, int]:
    """[N, K] of the matrix that the parts of a quantized weight stand for; of specifications or tensors."""
    form = form_of(parts)
    if form == "palette":
        groups, rows, half = parts["index"].shape
        return groups * rows, 2 * half
    rows, columns = parts["q8" if form == "int8" else "q"].shape
    return rows, columns if form == "int8" else 2 * columns


def from_parts(parts: Mapping[str, torch.Tensor]) -> Quantized:
    """The quantized weight of the parts of a recipe."""
    return _CLASSES[str(form_of(parts))](**parts)
