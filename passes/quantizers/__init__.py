"""Algorithms that round rows of a matrix to few bits. `RECIPES` lists those of int4 blocks by the name a user gives."""

from __future__ import annotations

from pocketphi.graph.errors import InputError
from pocketphi.passes.quantizers.base import Feedback, Quantizer, Statistics, check_block
from pocketphi.passes.quantizers.eight_bits import EightBits
from pocketphi.passes.quantizers.keep import Keep
from pocketphi.passes.quantizers.palette import KMeans
from pocketphi.passes.quantizers.rtn import RoundToNearest
from pocketphi.passes.quantizers.search import ScaleSearch

RECIPES: dict[str, type[Quantizer]] = {
    "search": ScaleSearch,
    "rtn": RoundToNearest,
    "keep": Keep,
}


def make_quantizer(recipe: str, block: int, symmetric: bool, palette: int | None = None) -> Quantizer:
    """The quantizer of a recipe. block: 0 for whole rows; palette: rows that share a lookup table, in place of blocks.

    Raises InputError for an unknown name, naming those that exist, and for what a recipe cannot be.
    """
    if recipe not in RECIPES:
        raise InputError(f"--recipe {recipe}: expected one of {', '.join(RECIPES)}")
    if palette is None:
        return RECIPES[recipe](block, symmetric)
    if recipe == "keep":
        raise InputError("--palette: --recipe keep keeps the file's blocks; choose search or rtn")
    if not symmetric:
        raise InputError("--palette: a table has no zero points; leave out --asymmetric")
    return KMeans(palette, RECIPES[recipe].weighted)


__all__ = [
    "RECIPES",
    "EightBits",
    "Feedback",
    "KMeans",
    "Keep",
    "Quantizer",
    "RoundToNearest",
    "ScaleSearch",
    "Statistics",
    "check_block",
    "make_quantizer",
]
