"""Which weight gets which format, made by which recipe: data, which every step that quantizes works from.

Importing this does not load torch: what a model will take can be asked without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pocketphi.graph.config import EMBEDDING, HEAD
from pocketphi.graph.errors import InputError
from pocketphi.passes.quantizers import Quantizer, make_quantizer, quantizer_class

_FORMATS = {8: "int8"}
"""Of the embedding and the head, by the bits that a user asks for."""
_FLAGS = {"symmetric": "--asymmetric", "scale_bits": "--scale-bits"}
"""By parameter of a quantizer: the option that says another than the default."""


@dataclass(frozen=True)
class Rule:
    """pattern: of names of weights, as `fnmatch` reads it; quantizer: what rounds them."""

    pattern: str
    quantizer: Quantizer

    @property
    def parameters(self) -> dict[str, int | bool]:
        return {name: getattr(self.quantizer, name) for name in self.quantizer.parameters}


@dataclass(frozen=True)
class Policy:
    """An ordered list of rules. The first that matches counts; a weight that none matches stays in float.

    smooth: whether norms give off factors of their channels first (`passes.smooth`)
    """

    rules: tuple[Rule, ...]
    smooth: bool = False

    @staticmethod
    def of(quantizer: Quantizer, special: Mapping[str, Quantizer] | None = None) -> Policy:
        """One quantizer for all weights but some, which are given by name."""
        return Policy((*(Rule(name, one) for name, one in (special or {}).items()), Rule("*", quantizer)))

    def rule(self, name: str) -> Rule | None:
        """The one that a weight follows."""
        return next((rule for rule in self.rules if fnmatchcase(name, rule.pattern)), None)

    def quantizer(self, name: str) -> Quantizer | None:
        rule = self.rule(name)
        return rule.quantizer if rule else None

    @property
    def calibrates(self) -> bool:
        """Whether any rule makes use of a calibration text."""
        return any(rule.quantizer.calibrates for rule in self.rules)


def policy_of(
    recipe: str,
    block: int | None = None,
    symmetric: bool = True,
    palette: int | None = None,
    embedding_bits: int = 4,
    head_bits: int = 4,
    tied: bool = False,
    form: str = "int4",
    scale_bits: int = 16,
) -> Policy:
    """The policy that the options of the command line say.

    block: 0 for whole rows, the recipe's default if None; palette: rows that share a lookup table, in place of blocks; form: of
    the weights that have no special number of bits
    tied: the embedding and the head are one weight, which gets the larger number of bits

    Raises InputError for an unknown recipe, and for what a recipe cannot make.
    """
    block = default_block(recipe) if block is None else block
    head = EMBEDDING if tied else HEAD
    scales = {"scale_bits": scale_bits} if scale_bits != 16 else {}  # not every recipe has a choice
    rounds = "keep" if recipe == "keep" else "rtn"
    more = {
        name: make_quantizer(rounds, _FORMATS[bits], {"block": 0 if palette else block, **scales})
        for name, bits in ((EMBEDDING, embedding_bits), (head, head_bits))
        if bits in _FORMATS
    }
    if palette is None:
        zeros = {} if symmetric else {"symmetric": False}
        for name in {**zeros, **scales}.keys() - quantizer_class(recipe, form).parameters.keys():
            raise InputError(f"{_FLAGS[name]}: --recipe {recipe} of {form} leaves no such choice; leave it out")
        return Policy.of(make_quantizer(recipe, form, {"block": block, **zeros, **scales}), more)
    made = make_quantizer(recipe, "palette", {"group": palette})
    if not symmetric:
        raise InputError("--palette: a table has no zero points; leave out --asymmetric")
    for flag, other in (("--scale-bits", scales), ("--format", form != "int4")):
        if other:
            raise InputError(f"--palette: tables are in place of blocks; leave out {flag}")
    return Policy.of(made, more)


def default_block(recipe: str) -> int:
    """The block size of a recipe where the user names none. Raises InputError for an unknown recipe."""
    return int(quantizer_class(recipe).parameters["block"].default)
