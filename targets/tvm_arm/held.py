"""Which parts of a weight model.params holds. Importing this loads neither torch nor TVM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pocketphi.graph.formats import HINTS

P = TypeVar("P")


def held(parts: Mapping[str, P]) -> dict[str, P]:
    """The parts of a weight that a file holds. A kernel multiplies a sum by its row's scale at its end, offsets and all: where
    they are not in that unit, scales stay as they are."""
    return {part: one for part, one in parts.items() if part not in HINTS or "row_offset" not in parts}
