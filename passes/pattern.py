"""Patterns over FX graphs: written as the expression they match.

    >>> x = Var("x")
    >>> square = Op(aten.mul.Tensor, x, x)
    >>> square.match(node)      # {"x": <node>} or None

A variable met twice must be the same value. `Op(..., commutes=True)` also tries the first two arguments swapped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

Bound = dict[str, Any]


class Pattern:
    """Matches a value; `bound` holds what variables stand for so far."""

    def match(self, value: Any, bound: Bound | None = None) -> Bound | None:
        """The variables' values, or None if `value` does not have this shape."""
        raise NotImplementedError


class Var(Pattern):
    """Any value; optionally one that satisfies a test."""

    def __init__(self, name: str, test: Callable[[Any], bool] | None = None) -> None:
        self.name, self.test = name, test

    def match(self, value: Any, bound: Bound | None = None) -> Bound | None:
        bound = dict(bound or {})
        if self.name in bound:
            return bound if bound[self.name] is value or _equal(bound[self.name], value) else None
        if self.test and not self.test(value):
            return None
        return {**bound, self.name: value}


class Op(Pattern):
    """A call of one of some targets with matching arguments.

    Trailing arguments that the pattern leaves out match anything, unless it is `exact`. A call with keywords matches
    only where they are expected: a factor or another type among them would change the meaning.
    """

    def __init__(
        self,
        target: Any,
        *args: Any,
        commutes: bool = False,
        name: str | None = None,
        keywords: bool = False,
        exact: bool = False,
    ) -> None:
        """target: may be a tuple of alternatives; name: binds the matched node itself."""
        self.targets = target if isinstance(target, tuple) else (target,)
        self.args, self.commutes, self.name, self.keywords, self.exact = args, commutes, name, keywords, exact

    def match(self, value: Any, bound: Bound | None = None) -> Bound | None:
        if not isinstance(value, fx.Node) or value.op != "call_function" or value.target not in self.targets:
            return None
        if (value.kwargs and not self.keywords) or (self.exact and len(value.args) > len(self.args)):
            return None
        orders = [list(value.args)]
        if self.commutes:
            orders.append([value.args[1], value.args[0], *value.args[2:]])
        for order in orders:
            found = _match_all(self.args, order, dict(bound or {}))
            if found is not None:
                return {**found, self.name: value} if self.name else found
        return None


class OneOf(Pattern):
    """The first alternative that matches."""

    def __init__(self, *alternatives: Pattern) -> None:
        self.alternatives = alternatives

    def match(self, value: Any, bound: Bound | None = None) -> Bound | None:
        results = (alternative.match(value, bound) for alternative in self.alternatives)
        return next((r for r in results if r is not None), None)


def part(x: Any, axis: Any, start: Any, stop: Any) -> Op:
    """x[start:stop] along an axis, without a step."""
    return Op(torch.ops.aten.slice.Tensor, x, axis, start, stop, exact=True)


def _match_all(patterns: Sequence[Any], values: Sequence[Any], bound: Bound | None) -> Bound | None:
    if len(values) < len(patterns):
        return None
    for pattern, value in zip(patterns, values):
        if bound is None:
            return None
        if isinstance(pattern, Pattern):
            bound = pattern.match(value, bound)
        elif isinstance(pattern, (list, tuple)):
            same = isinstance(value, (list, tuple)) and len(value) == len(pattern)
            bound = _match_all(pattern, value, bound) if same else None
        elif not _equal(pattern, value):
            return None
    return bound


def _equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and not isinstance(a, fx.Node) and bool(a == b)
