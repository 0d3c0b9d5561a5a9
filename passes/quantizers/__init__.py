"""Algorithms that round rows of a matrix to int4 blocks. `RECIPES` lists them by the name a user gives."""

from __future__ import annotations

from pocketphi.graph.errors import InputError
from pocketphi.passes.quantizers.base import Feedback, Quantizer
from pocketphi.passes.quantizers.keep import Keep
from pocketphi.passes.quantizers.rtn import RoundToNearest
from pocketphi.passes.quantizers.search import ScaleSearch

RECIPES: dict[str, type[Quantizer]] = {
    "search": ScaleSearch,
    "rtn": RoundToNearest,
    "keep": Keep,
}


def make_quantizer(recipe: str, block: int, symmetric: bool) -> Quantizer:
    """The quantizer of a recipe. Raises InputError for an unknown name, naming those that exist."""
    if recipe not in RECIPES:
        raise InputError(f"--recipe {recipe}: expected one of {', '.join(RECIPES)}")
    return RECIPES[recipe](block, symmetric)


__all__ = ["RECIPES", "Feedback", "Keep", "Quantizer", "RoundToNearest", "ScaleSearch", "make_quantizer"]
