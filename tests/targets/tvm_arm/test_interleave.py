"""The order of weights in model.params: there and back, and against an index written for reading."""

from __future__ import annotations

import pytest
import torch
from tvm_kernels import random_int4

from pocketphi.graph.formats import PartSpec
from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.isa import ISAS


@pytest.mark.parametrize("isa", ISAS.values(), ids=ISAS)
@pytest.mark.parametrize(("rows", "columns", "block"), [(32, 64, 32), (37, 96, 32), (5, 64, 16), (16, 256, 128)])
@pytest.mark.parametrize(("zero", "offset"), [(False, False), (True, False), (True, True)])
def test_restores_what_was_stored(isa, rows, columns, block, zero, offset) -> None:
    parts = random_int4(rows, columns, block, zero, offset).tensors()
    matrix = Interleaved(rows, columns, block, isa.lanes, isa.pairs, isa.signed)
    stored = matrix.store(parts)
    specs = matrix.specs({name: PartSpec(tuple(t.shape), t.dtype) for name, t in parts.items()})
    assert {name: (tuple(t.shape), t.dtype) for name, t in stored.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in specs.items()
    }
    restored = matrix.restore(stored, rows)
    assert [name for name in parts if not torch.equal(parts[name], restored[name])] == []


@pytest.mark.parametrize("isa", ISAS.values(), ids=ISAS)
@pytest.mark.parametrize("block", [16, 32])
def test_a_vector_holds_what_an_instruction_takes(isa, block: int) -> None:
    """Every nibble of the file, from the row and column that the instruction multiplies it with."""
    rows, columns = 2 * isa.lanes, 64
    weight = random_int4(rows, columns, block)
    stored = Interleaved(rows, columns, block, isa.lanes, isa.pairs, isa.signed).store(weight.tensors())["q"]
    values, step = weight.values(), block
    wrong = []
    for row in range(rows):
        for column in range(columns):
            group, lane, unit, inside = row // isa.lanes, row % isa.lanes, column // step, column % step
            high, place = divmod(inside, step // 2)
            if isa.pairs:
                vector, byte = 2 * (place // 8) + lane // 2, (lane % 2) * 8 + place % 8
            else:
                vector, byte = place // 4, lane * 4 + place % 4
            at = (unit * (step // 8) + vector) * 4 * isa.lanes + byte
            nibble = int(stored[group, at]) >> (4 * high) & 15
            if nibble != int(values[row, column]) ^ (8 if isa.signed else 0):
                wrong.append((row, column))
    assert wrong == []


def test_the_example_of_the_docstring() -> None:
    weight = torch.zeros(4, 16, dtype=torch.uint8)
    weight[0] = torch.arange(16)
    q = (weight[:, ::2] | weight[:, 1::2] << 4).contiguous()
    stored = Interleaved(4, 16, 16, 4, False).store({"q": q})["q"]
    assert bytes(stored[0, :4].numpy()) == bytes([0x80, 0x91, 0xA2, 0xB3])
    assert bytes(stored[0, 16:20].numpy()) == bytes([0xC4, 0xD5, 0xE6, 0xF7])


def test_rows_that_are_not_there_are_zeros() -> None:
    weight = random_int4(5, 32, 32)
    stored = Interleaved(5, 32, 32, 4, False).store(weight.tensors())
    assert stored["scale"].shape == (2, 4)
    assert stored["scale"][1, 1:].abs().sum() == 0
