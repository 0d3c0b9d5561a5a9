"""What a node gives, without its values: an element type and a shape whose sizes may be known only when the model runs.

The tracer's own types (fake tensors, whose sizes are expressions of a computer algebra) take a second to import. These are
plain values, and can be stored. A call's type is found by running it on tensors without storage: `infer`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pocketphi.graph.errors import CompilerBug

if TYPE_CHECKING:
    from pocketphi.graph.program import Program

EXAMPLES = {"batch": 11, "sequence": 13, "past": 17, "rank": 7}
"""The sizes that are known only when the model runs, and what `infer` tries for them: none is 0 or 1, which are broadcast."""


@dataclass(frozen=True)
class Size:
    """Whole multiples of names, and a constant: `past + sequence`, `2*batch + 1`. terms: (name, factor), by name, none 0."""

    terms: tuple[tuple[str, int], ...]
    constant: int = 0

    @staticmethod
    def of(factors: Mapping[str, int], constant: int = 0) -> int | Size:
        """The size, as a number where it is one."""
        terms = tuple(sorted((name, factor) for name, factor in factors.items() if factor))
        return Size(terms, constant) if terms else constant

    def __add__(self, other: int | Size) -> int | Size:
        if isinstance(other, int):
            return Size(self.terms, self.constant + other)
        total = Counter(dict(self.terms))
        total.update(dict(other.terms))
        return Size.of(total, self.constant + other.constant)

    __radd__ = __add__

    def __int__(self) -> int:
        raise CompilerBug(f"{self} is known only when the model runs, where a number is expected")

    def at(self, lengths: Mapping[str, int]) -> int:
        """The number that it is where its names have these lengths."""
        return self.constant + sum(factor * lengths[name] for name, factor in self.terms)

    def __repr__(self) -> str:
        parts = [name if factor == 1 else f"{factor}*{name}" for name, factor in self.terms]
        return " + ".join([*parts, str(self.constant)] if self.constant else parts)


@dataclass(frozen=True)
class TensorType:
    """The type of a tensor; a node that gives several, or a size, has a list or tuple of types, or a `Size`."""

    shape: tuple[int | Size, ...]
    dtype: torch.dtype

    def __repr__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}[{', '.join(map(str, self.shape))}]"


def name_types(program: Program) -> None:
    """Put types in place of what the tracer says of each node. Raises CompilerBug for a size that is no `Size`."""
    traced = {str(node.target): node.meta["val"] for node in program.inputs}
    batch, sequence = traced["input_ids"].shape
    past = traced["past_key_values.0.key"].shape[2]
    symbols = {str(batch): "batch", str(sequence): "sequence", str(past): "past"}

    def size(value: int | torch.SymInt) -> int | Size:
        if not isinstance(value, torch.SymInt):
            return value
        factors = {str(symbol): int(n) for symbol, n in value.node.expr.as_coefficients_dict().items()}
        constant = factors.pop("1", 0)
        if not factors.keys() <= symbols.keys():
            raise CompilerBug(f"the trace has a size {value}, which is no sum of {', '.join(symbols.values())}")
        return Size.of({symbols[symbol]: n for symbol, n in factors.items()}, constant)

    def named(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return TensorType(tuple(map(size, value.shape)), value.dtype)
        if isinstance(value, list | tuple):
            return type(value)(map(named, value))
        return size(value) if isinstance(value, torch.SymInt) else value

    for node in program.graph.nodes:
        if "val" in node.meta:
            node.meta = {"val": named(node.meta["val"]), "nn_module_stack": node.meta.get("nn_module_stack")}


def infer(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """The type of what a call gives, out of arguments with types in place of tensors.

    The call is made on tensors without storage, for `EXAMPLES` and with each of them one longer: a size is linear in them, and
    its differences are its factors. Raises CompilerBug where it is not.
    """
    names = list(EXAMPLES)
    longer = [{**EXAMPLES, name: EXAMPLES[name] + 1} for name in names]
    tried = [EXAMPLES, *longer, {name: 2 * length + 3 for name, length in EXAMPLES.items()}]

    def size(*came: int) -> int | Size:
        factors = {name: one - came[0] for name, one in zip(names, came[1:])}
        found = Size.of(factors, came[0] - sum(factors[name] * EXAMPLES[name] for name in names))
        if came[-1] != (found if isinstance(found, int) else found.at(tried[-1])):
            raise CompilerBug(f"{function}: a size of what it gives is not linear in {', '.join(names)}")
        return found

    def typed(*came: Any) -> Any:
        first = came[0]
        if isinstance(first, torch.Tensor):
            return TensorType(tuple(map(size, *(one.shape for one in came))), first.dtype)
        if isinstance(first, list | tuple):
            return type(first)(map(typed, *came))
        return size(*came) if isinstance(first, int) and not isinstance(first, bool) else first

    with torch.no_grad():
        return typed(*(function(*_example(args, lengths)) for lengths in tried))


def _example(value: Any, lengths: Mapping[str, int]) -> Any:
    """Arguments with tensors in place of types, and numbers in place of sizes."""
    if isinstance(value, TensorType):
        return torch.empty(_example(value.shape, lengths), dtype=value.dtype, device="meta")
    if isinstance(value, Size):
        return value.at(lengths)
    if isinstance(value, list | tuple):
        return type(value)(_example(one, lengths) for one in value)
    return value
