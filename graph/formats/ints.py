"""The widths that blocks of whole numbers come in, but for `int4`, which has a module of its own."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from typing import Any

from pocketphi.graph.formats.blocks import Blocks


def _width(bits: int, *more: str) -> type[Blocks]:
    """`int2` for 2 bits: values from 0 to 3, whose first part is `q2`. more: what blocks may have beside scales and zero
    points."""
    parts: list[Any] = [(f"q{bits}", "torch.Tensor"), ("scale", "torch.Tensor")]
    parts += [(part, "torch.Tensor | None", field(default=None)) for part in ("zero", *more, "row_scale")]
    said = {**dict.fromkeys(("name", "words", "suffix"), f"int{bits}"), "bits": bits, "__module__": __name__}
    return make_dataclass(f"Int{bits}", parts, bases=(Blocks,), namespace=said, frozen=True)


Int2, Int3, Int5, Int6 = map(_width, (2, 3, 5, 6))
Int8 = _width(8, "offset")
"""For weights that are worth a byte a value: the embedding and the head. Only files that were quantized elsewhere have zero
points or offsets in it: where values are rounded here they would gain nothing."""
