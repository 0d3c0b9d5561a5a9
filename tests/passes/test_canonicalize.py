"""Canonicalize: each rule, its near-miss, and the whole on a traced model."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_phi3 import VARIANTS, differing, normal, runs, small, traced, twice

from pocketphi.graph.program import op_name
from pocketphi.passes.canonicalize import Canonicalize

aten = torch.ops.aten
X = {"x": normal(2, 4, 6), "i": torch.arange(48).view(2, 4, 6)}
F32 = torch.float32
Body = Callable[..., Any]

APPLIES: dict[str, tuple[str, Body]] = {
    "alias": ("copy", lambda call, x, i: call(aten.alias.default, x)),
    "clone": ("copy", lambda call, x, i: call(aten.clone.default, x)),
    "cast": ("cast", lambda call, x, i: call(aten.to.dtype, x, F32)),
    "view": ("reshape", lambda call, x, i: call(aten.view.default, x, [2, 4, 6])),
    "expand": ("reshape", lambda call, x, i: call(aten.expand.default, x, [2, -1, 6])),
    "times one": ("neutral", lambda call, x, i: call(aten.mul.Tensor, x, 1.0)),
    "plus zero": ("neutral", lambda call, x, i: call(aten.add.Tensor, x, 0)),
    "whole slice": ("full slice", lambda call, x, i: call(aten.slice.Tensor, x, 2, 0, 2**63 - 1)),
    "one part": ("single part", lambda call, x, i: call(aten.cat.default, [x], 2)),
    "no dropout": ("dropout", lambda call, x, i: call(aten.dropout.default, x, 0.0, True)),
    "dropout in use": ("dropout", lambda call, x, i: call(aten.dropout.default, x, 0.5, False)),
}
STAYS: dict[str, Body] = {
    "another type": lambda call, x, i: call(aten.to.dtype, x, torch.float64),
    "another shape": lambda call, x, i: call(aten.view.default, x, [4, 2, 6]),
    "repeated": lambda call, x, i: call(aten.expand.default, call(aten.slice.Tensor, x, 0, 0, 1), [2, 4, 6]),
    "times two": lambda call, x, i: call(aten.mul.Tensor, x, 2),
    "times true": lambda call, x, i: call(aten.mul.Tensor, x, True),
    "whole numbers times 1.0": lambda call, x, i: call(aten.mul.Tensor, i, 1.0),
    "whole numbers plus 0.0": lambda call, x, i: call(aten.add.Tensor, i, 0.0),
    "plus one": lambda call, x, i: call(aten.add.Tensor, x, 1),
    "a part": lambda call, x, i: call(aten.slice.Tensor, x, 2, 0, 5),
    "two parts": lambda call, x, i: call(aten.cat.default, [x, x], 2),
    "dropout": lambda call, x, i: call(aten.dropout.default, x, 0.5, True),
}


@pytest.mark.parametrize("name", APPLIES)
def test_drops(name: str) -> None:
    rule, body = APPLIES[name]

    def whole(call, x, i):
        odd = body(call, x, i)
        return {"y": call(aten.neg.default, odd), "also": odd}

    program = small(whole, X)
    want = program.run(X)
    report = twice(Canonicalize(), program)
    assert (dict(report.applied), report.removed) == ({rule: 1}, 1)
    assert program.operators() == {"neg": 1}
    assert differing([want], [program.run(X)]) == []


@pytest.mark.parametrize("name", STAYS)
def test_keeps(name: str) -> None:
    program = small(lambda call, x, i: {"y": STAYS[name](call, x, i)}, X)
    text = program.dump()
    assert not Canonicalize()(program).changed
    assert program.dump() == text


@pytest.mark.parametrize("target", [aten.chunk.default, aten.split.Tensor])
@pytest.mark.parametrize("axis", [2, -1])
def test_chunks_become_slices(target: Any, axis: int) -> None:
    """5 of 6 columns a part: a ragged tail; split counts columns, chunk parts, so both give two."""
    count = 2 if target is aten.chunk.default else 5

    def body(call, x):
        parts = call(target, x, count, axis)
        return {f"{i}": call(operator.getitem, parts, i) for i in (0, 1)}

    feeds = {"x": X["x"]}
    program = small(body, feeds)
    want = program.run(feeds)
    report = twice(Canonicalize(), program)
    assert (dict(report.applied), report.removed) == ({"chunk": 2}, 3)
    assert program.operators() == {"slice": 2}
    assert differing([want], [program.run(feeds)]) == []
    assert want["1"].shape[2] == 6 - want["0"].shape[2]


def test_empty_parts() -> None:
    def body(call, x):
        empty = call(aten.slice.Tensor, x, 2, 0, 0)
        return {"one": call(aten.cat.default, [empty, x], 2), "two": call(aten.cat.default, [x, empty, x], 2)}

    feeds = {"x": X["x"]}
    program = small(body, feeds)
    want = program.run(feeds)
    report = twice(Canonicalize(), program)
    assert dict(report.applied) == {"empty part": 2, "single part": 1}
    assert differing([want], [program.run(feeds)]) == []


def test_only_empty_parts_stay() -> None:
    def body(call, x):
        empty = call(aten.slice.Tensor, x, 2, 0, 0)
        return {"y": call(aten.cat.default, [empty, empty], 2)}

    assert not Canonicalize()(small(body, {"x": X["x"]})).changed


@pytest.mark.parametrize("variant", VARIANTS)
def test_on_a_model(variant: str) -> None:
    program = traced(variant)
    want = runs(program)
    report = twice(Canonicalize(), program)
    assert report.refused == []
    assert {report.applied[rule] for rule in ("chunk", "dropout")} == {6}
    # the part of a head that is not rotated is empty unless the rotary embedding is partial
    assert report.applied["empty part"] == report.applied["single part"] == (0 if variant == "partial" else 6)
    assert differing(want, runs(program)) == []
    gone = {"alias", "contiguous", "detach", "dropout", "chunk", "split", "_assert_tensor_metadata"}
    assert gone & set(program.operators()) == set()
    assert {op_name(n) for n in traced(variant).graph.nodes} & gone != set()
