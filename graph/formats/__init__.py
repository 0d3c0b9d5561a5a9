"""The formats of weights. A recipe makes weights in one of them, a target has codecs for those that its files can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocketphi.graph.formats.affine import Affine, Affine4
from pocketphi.graph.formats.base import HINTS, Format, Layout, PartSpec, Values, bytes_of, specs
from pocketphi.graph.formats.blocks import Blocks
from pocketphi.graph.formats.int4 import Int4
from pocketphi.graph.formats.ints import Int2, Int3, Int5, Int6, Int8
from pocketphi.graph.formats.levels import Levels, Levels3, Levels4
from pocketphi.graph.formats.palette import Palette, Palette2, Palette3, Palette6, Tables

FORMATS: dict[str, type[Format]] = {
    form.name: form
    for form in (Int4, Int2, Int3, Int5, Int6, Int8, Levels3, Levels4, Affine4, Palette, Palette2, Palette3, Palette6)
}


def format_of(parts: Mapping[str, Any]) -> type[Format] | None:
    """The format of a weight, by the names of its parts; None for a float weight."""
    return next((one for one in FORMATS.values() if one.part_names()[0] in parts), None)


def known_format(parts: Mapping[str, Any]) -> type[Format]:
    """The format of a weight that is quantized."""
    found = format_of(parts)
    if found is None:
        raise KeyError(f"no format has the parts {', '.join(parts)}")
    return found


def weight_of(parts: Mapping[str, Any]) -> Format:
    """The quantized weight that parts are."""
    return known_format(parts)(**parts)


def shape_of_parts(parts: Mapping[str, Any]) -> tuple[int, int]:
    """[N, K] of the matrix that the parts of a quantized weight stand for; of specifications or tensors."""
    return known_format(parts).shape_of(parts)


def rows_together(parts: Mapping[str, Any]) -> int:
    """Rows of the matrix in a row of the parts: more than one where several share a table."""
    return int(shape_of_parts(parts)[0] // next(iter(parts.values())).shape[0])


__all__ = [
    "FORMATS",
    "HINTS",
    "Affine",
    "Affine4",
    "Blocks",
    "Format",
    "Int2",
    "Int3",
    "Int4",
    "Int5",
    "Int6",
    "Int8",
    "Layout",
    "Levels",
    "Levels3",
    "Levels4",
    "Palette",
    "Palette2",
    "Palette3",
    "Palette6",
    "PartSpec",
    "Tables",
    "Values",
    "bytes_of",
    "format_of",
    "known_format",
    "rows_together",
    "shape_of_parts",
    "specs",
    "weight_of",
]
