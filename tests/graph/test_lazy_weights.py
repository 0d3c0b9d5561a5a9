"""Recipes: parts that agree with what is read, chunk by chunk and whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_phi3 import checkpoint, normal

from pocketphi.graph.formats import Int4, PartSpec
from pocketphi.graph.formats import specs as specs_of
from pocketphi.graph.lazy_weights import Constant, FloatWeight, materialize


def test_float_weight() -> None:
    source = checkpoint("tiny")
    weight = FloatWeight(source, "lm_head.weight")
    assert weight.parts == {"": PartSpec((256, 64), torch.float32)}
    assert torch.equal(materialize(weight)[""], source.read("lm_head.weight", 0, 256).float())
    assert torch.equal(weight.read(3, 7)[""], source.read("lm_head.weight", 3, 7).float())
    assert weight.describe() == "lm_head.weight [bf16] → float32"
    assert weight.parts[""].bytes == 256 * 64 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_constant(dtype: torch.dtype) -> None:
    value = (10 * normal(5, 3)).to(dtype)
    weight = Constant(value, "a test")
    assert weight.parts == {"": PartSpec((5, 3), dtype)}
    assert torch.equal(materialize(weight)[""], value)
    assert torch.equal(weight.read(1, 3)[""], value[1:3])
    assert weight.describe() == "constant from a test"


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 32, 64])
def test_int4_parts_are_those_of_int4(symmetric: bool, block: int) -> None:
    """192 / 64 gives three blocks: a ragged byte of zero points."""
    scale = torch.ones(4, 192 // block)
    made = Int4.pack(torch.zeros(4, 192), scale, None if symmetric else torch.zeros(scale.shape)).tensors()
    specs = specs_of(Int4.layout((4, 192), block, symmetric))
    assert {n: (tuple(t.shape), t.dtype) for n, t in made.items()} == {n: (s.shape, s.dtype) for n, s in specs.items()}
    assert {n: t.nbytes for n, t in made.items()} == {n: s.bytes for n, s in specs.items()}


def test_materialize_joins_chunks() -> None:
    class Odd(Constant):
        def chunks(self) -> Iterator[tuple[int, int]]:
            return iter([(0, 2), (2, 3), (3, 5)])

    value = normal(5, 2)
    assert torch.equal(materialize(Odd(value, "x"))[""], value)
