"""Algorithms that round rows of a matrix to few bits. Importing them does not load torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import Int2, Int3, Int5, Int6, Int8, Levels3, Levels4, Palette2, Palette3, Palette6
from pocketphi.graph.reading import named
from pocketphi.passes.quantizers.affine import AffineNearest, AffineSearch
from pocketphi.passes.quantizers.base import (
    SCALE_BITS,
    ExpertInputs,
    Feedback,
    Parameter,
    Quantizer,
    Statistics,
    check_block,
)
from pocketphi.passes.quantizers.keep import Keep
from pocketphi.passes.quantizers.palette import KMeans, WeightedKMeans
from pocketphi.passes.quantizers.rtn import LevelNearest, RoundToNearest
from pocketphi.passes.quantizers.search import LevelSearch, ScaleSearch
from pocketphi.passes.quantizers.two_sided import AffineTwoSided, LevelTwoSided, TwoSided

EightBits = RoundToNearest.to(Int8)

QUANTIZERS: list[type[Quantizer]] = [
    ScaleSearch,
    TwoSided,
    RoundToNearest,
    Keep,
    EightBits,
    WeightedKMeans,
    KMeans,
    *(made.to(form) for made in (ScaleSearch, TwoSided, RoundToNearest) for form in (Int2, Int3, Int5, Int6)),
    *(made.to(Int8) for made in (ScaleSearch, TwoSided)),
    *(Keep.to(form) for form in (Int2, Int8)),
    *(made.to(form) for made in (LevelSearch, LevelTwoSided, LevelNearest) for form in (Levels3, Levels4)),
    AffineSearch,
    AffineTwoSided,
    AffineNearest,
    *(made.to(form) for made in (WeightedKMeans, KMeans) for form in (Palette2, Palette3, Palette6)),
]


def recipes(form: str | None = None) -> list[str]:
    """The names that a user may choose from; form: of those that can make this format."""
    return list(dict.fromkeys(one.recipe for one in QUANTIZERS if form in (None, one.format.name)))


def calibrates(recipe: str) -> bool:
    """Whether a recipe makes use of a calibration text, for some format."""
    return any(one.calibrates for one in QUANTIZERS if one.recipe == recipe)


def quantizer_class(recipe: str, form: str = "int4") -> type[Quantizer]:
    """Raises InputError, naming those that exist, for a recipe that is unknown or cannot make the format."""
    if recipe not in recipes():
        raise InputError(f"--recipe {named(recipe)}: expected one of {', '.join(recipes())}")
    found = {one.format.name: one for one in QUANTIZERS if one.recipe == recipe}
    if form not in found:
        does = next(iter(found.values())).does
        flag = "--palette" if form == "palette" else f"--format {named(form)}"
        raise InputError(f"{flag}: --recipe {recipe} {does}; choose {' or '.join(recipes(form)) or 'another'}")
    return found[form]


def make_quantizer(recipe: str, form: str, parameters: Mapping[str, Any]) -> Quantizer:
    """The quantizer of a recipe for a format. parameters: those that are not as by default.

    Raises InputError for what there is not, also among the parameters.
    """
    made = quantizer_class(recipe, form)
    for name, value in parameters.items():
        known = made.parameters.get(name)
        if known is None or type(value) is not type(known.default) or value not in known.choices:
            expected = f"one of {', '.join(map(str, known.choices))}" if known else f"{', '.join(made.parameters)} only"
            raise InputError(f"{recipe} of {form}: {named(name)} is {named(value)}, expected {expected}")
    return made(**{**{name: known.default for name, known in made.parameters.items()}, **parameters})


__all__ = [
    "QUANTIZERS",
    "SCALE_BITS",
    "EightBits",
    "ExpertInputs",
    "Feedback",
    "KMeans",
    "Keep",
    "Parameter",
    "Quantizer",
    "RoundToNearest",
    "ScaleSearch",
    "Statistics",
    "WeightedKMeans",
    "calibrates",
    "check_block",
    "make_quantizer",
    "quantizer_class",
    "recipes",
]
