"""The order of weights in model.params: there and back, and against an index written for reading."""

from __future__ import annotations

import pytest
import torch
from tvm_kernels import WIDTHS, placed, random_weight

from pocketphi.graph.formats import FORMATS, Blocks, Int5, Int8, Levels, PartSpec
from pocketphi.targets.tvm_arm.held import held
from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.isa import ISAS, Isa

FORMS = [form for form in FORMATS.values() if issubclass(form, Blocks)]
PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}


@pytest.mark.parametrize("isa", ISAS.values(), ids=ISAS)
@pytest.mark.parametrize(("rows", "columns", "block"), [(32, 64, 32), (37, 96, 32), (5, 64, 16), (16, 256, 128)])
@pytest.mark.parametrize(("zero", "offset"), [(False, False), (True, False), (True, True)])
def test_restores_what_was_stored(isa, rows, columns, block, zero, offset) -> None:
    check_restored(random_weight(rows, columns, block, zero, offset), isa)


@pytest.mark.parametrize("isa", ISAS.values(), ids=ISAS)
@pytest.mark.parametrize(("rows", "columns", "block"), [(37, 96, 32), (5, 80, 16), (9, 48, 48), (16, 512, 256)])
@pytest.mark.parametrize(("form", "zero"), WIDTHS)
def test_restores_each_width(isa, form, zero, rows, columns, block) -> None:
    check_restored(random_weight(rows, columns, block, zero, form=form), isa)
    check_restored(random_weight(rows, columns, block, zero, form=form, by_row=True), isa)


def check_restored(weight: Blocks, isa: Isa) -> None:
    parts, matrix = weight.tensors(), placed(weight, isa)
    stored = matrix.store(parts)
    specs = matrix.specs({name: PartSpec(tuple(t.shape), t.dtype) for name, t in parts.items()})
    assert {name: (tuple(t.shape), t.dtype) for name, t in stored.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in specs.items()
    }
    restored = matrix.restore(stored, matrix.rows)
    assert [name for name in held(parts) if not torch.equal(parts[name], restored[name])] == []
    assert restored.keys() == held(parts).keys()


@pytest.mark.parametrize("isa", ISAS.values(), ids=ISAS)
@pytest.mark.parametrize("block", [16, 32])
@pytest.mark.parametrize("form", FORMS)
def test_a_vector_holds_what_an_instruction_takes(isa, block: int, form: type[Blocks]) -> None:
    """Every value of the file, from the row and column that the instruction multiplies it with."""
    rows, columns = 2 * isa.lanes, 64
    weight = random_weight(rows, columns, block, form=form)
    stored = placed(weight, isa).store(weight.tensors())[form.part_names()[0]].tolist()
    values = weight.values().tolist()
    turned = not issubclass(form, Levels) and (isa.signed or (form is Int8 and isa.name in ("neon", "avx2")))
    wrong = []
    for row in range(rows):
        for column in range(columns):
            found = value_in(stored[row // isa.lanes], row % isa.lanes, column, block, isa, form.bits)
            if found != values[row][column] ^ (form.middle() if turned else 0):
                wrong.append((row, column))
    assert wrong == []


def value_in(group: list[int], lane: int, column: int, step: int, isa: Isa, bits: int) -> int:
    """A value of a group of rows, as the file has it."""
    unit, inside = divmod(column, step)
    chunks, width = step // 4, 4 * isa.lanes
    if isa.pairs:
        chunk, byte = 2 * (inside // 8) + lane // 2, (lane % 2) * 8 + inside % 8
    else:
        chunk, byte = inside // 4, lane * 4 + inside % 4
    start, value = unit * chunks * width * bits // 8, 0
    for plane in PLANES[bits]:
        vectors = chunks * plane // 8
        if vectors:
            at, bit = width * (chunk % vectors) + byte, plane * (chunk // vectors)
        else:  # one bit of four chunks: the second half of a vector is in the upper nibbles
            at, bit = byte % (width // 2), chunk + 4 * (byte // (width // 2))
        value = value << plane | group[start + at] >> bit & (1 << plane) - 1
        start += chunks * width * plane // 8
    return value


def test_the_example_of_the_docstring() -> None:
    weight = torch.zeros(4, 16, dtype=torch.uint8)
    weight[0] = torch.arange(16)
    q = (weight[:, ::2] | weight[:, 1::2] << 4).contiguous()
    stored = Interleaved(4, 16, 16, 4, False).store({"q": q})["q"]
    assert bytes(stored[0, :4].numpy()) == bytes([0x80, 0x91, 0xA2, 0xB3])
    assert bytes(stored[0, 16:20].numpy()) == bytes([0xC4, 0xD5, 0xE6, 0xF7])
    five = Int5.pack(2 * torch.arange(16).repeat(4, 1), torch.ones(4, 1)).tensors()
    stored = Interleaved(4, 16, 16, 4, False, format=Int5).store(five)["q5"]
    assert bytes(stored[0, :4].numpy()) == bytes([0x80, 0x91, 0xA2, 0xB3])
    assert bytes(stored[0, 16:20].numpy()) == bytes([0xC4, 0xD5, 0xE6, 0xF7])
    assert stored.shape == (1, 40)
    assert stored[0, 32:].count_nonzero() == 0


def test_rows_that_are_not_there_are_zeros() -> None:
    weight = random_weight(5, 32, 32)
    stored = Interleaved(5, 32, 32, 4, False).store(weight.tensors())
    assert stored["scale"].shape == (2, 4)
    assert stored["scale"][1, 1:].abs().sum() == 0
