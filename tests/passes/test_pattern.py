"""Patterns over single calls."""

from __future__ import annotations

import pytest
import torch
from tiny_phi3 import normal, small
from torch import fx

from pocketphi.passes.pattern import OneOf, Op, Pattern, Var, part

aten = torch.ops.aten
MUL, ADD, NEG = aten.mul.Tensor, aten.add.Tensor, aten.neg.default


@pytest.fixture(scope="module")
def nodes() -> dict[str, fx.Node]:
    found: dict[str, fx.Node] = {}

    def body(call, x, y):
        found.update(x=x, y=y, square=call(MUL, x, x), product=call(MUL, x, y), negative=call(NEG, x))
        found.update(scaled=call(ADD, x, y, alpha=2), plus=call(ADD, found["negative"], y), two=call(MUL, x, 2))
        found.update(cat=call(aten.cat.default, [x, y], 1), head=call(aten.slice.Tensor, x, 1, 0, 2))
        found.update(every_second=call(aten.slice.Tensor, x, 1, 0, 2, 2), float_two=call(MUL, x, 2.0))
        return dict(found)

    small(body, {"x": normal(2, 4), "y": normal(2, 4)})
    return found


X, Y = Var("x"), Var("y")


@pytest.mark.parametrize(
    ("pattern", "name", "bound"),
    [
        (X, "square", ["x"]),
        (Op(MUL, X, X), "square", ["x"]),
        (Op(MUL, X, X), "product", None),  # a variable met twice is the same value
        (Op(MUL, X, Y), "product", ["x", "y"]),
        (Op(ADD, X, Y), "product", None),
        (Op((ADD, MUL), X, Y), "product", ["x", "y"]),
        (Op(MUL, X), "product", ["x"]),  # the rest may be anything
        (Op(MUL, X, exact=True), "product", None),
        (Op(MUL, X, Y, name="it"), "product", ["it", "x", "y"]),
        (Op(MUL, X, 2), "two", ["x"]),
        (Op(MUL, X, 2), "float_two", None),  # 2 is not 2.0
        (Op(MUL, X, 3), "two", None),
        (Op(MUL, 2, X), "two", None),
        (Op(MUL, 2, X, commutes=True), "two", ["x"]),
        (Op(ADD, Y, Op(NEG, X)), "plus", None),
        (Op(ADD, Y, Op(NEG, X), commutes=True), "plus", ["x", "y"]),
        (Op(ADD, X, Y), "scaled", None),  # alpha=2
        (Op(ADD, X, Y, keywords=True), "scaled", ["x", "y"]),
        (Op(NEG, X, Y), "negative", None),
        (Op(aten.cat.default, [X, Y], 1), "cat", ["x", "y"]),
        (Op(aten.cat.default, [X], 1), "cat", None),
        (Op(aten.cat.default, X, 1), "cat", ["x"]),
        (part(X, 1, 0, 2), "head", ["x"]),
        (part(X, 1, 0, 2), "every_second", None),
        (OneOf(Op(ADD, X, Y), Op(MUL, X, Y)), "product", ["x", "y"]),
        (OneOf(Op(ADD, X, Y), Op(NEG, X)), "product", None),
        (Var("x", lambda v: v.op == "placeholder"), "x", ["x"]),
        (Var("x", lambda v: v.op == "placeholder"), "square", None),
        (Op(MUL, X, X), "x", None),  # not a call
    ],
)
def test_match(nodes: dict[str, fx.Node], pattern: Pattern, name: str, bound: list[str] | None) -> None:
    found = pattern.match(nodes[name])
    assert (found if found is None else sorted(found)) == bound


def test_bindings_are_the_nodes(nodes: dict[str, fx.Node]) -> None:
    found = Op(ADD, Var("y"), Op(NEG, Var("x"), name="n"), commutes=True).match(nodes["plus"])
    assert found == {"y": nodes["y"], "x": nodes["x"], "n": nodes["negative"]}


def test_a_failed_alternative_leaves_nothing_bound(nodes: dict[str, fx.Node]) -> None:
    """x is bound to the wrong side first: the other order must start afresh."""
    pattern = Op(ADD, Var("x"), Op(NEG, Var("x")), commutes=True)
    assert pattern.match(nodes["plus"]) is None
    before = {"y": nodes["x"]}
    assert Op(MUL, X, Y).match(nodes["product"], before) is None
    assert before == {"y": nodes["x"]}
