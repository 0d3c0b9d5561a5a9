"""The formats of weights: worked examples, dequantization by definition, operators, sizes, and telling them apart."""

from __future__ import annotations

import doctest
import itertools

import numpy as np
import pytest
import torch
from tiny_phi3 import normal

from pocketphi.graph.edge_ops import operators_of
from pocketphi.graph.formats import (
    FORMATS,
    Affine,
    Affine4,
    Blocks,
    Format,
    Int3,
    Int4,
    Int8,
    Layout,
    Levels,
    Levels3,
    Levels4,
    Tables,
    bytes_of,
    format_of,
    shape_of_parts,
    weight_of,
)
from pocketphi.graph.formats import affine as affine_module
from pocketphi.graph.formats import blocks as blocks_module
from pocketphi.graph.formats import levels as levels_module
from pocketphi.graph.formats import palette as palette_module
from pocketphi.graph.formats import specs as specs_of
from pocketphi.graph.formats.blocks import row_scales, scale_codes
from pocketphi.graph.packing import pack_bits, unpack_bits

BLOCKS = [form for form in FORMATS.values() if issubclass(form, Blocks)]
TABLES = [form for form in FORMATS.values() if issubclass(form, Tables)]


def random_blocks(form: type[Blocks], rows: int, columns: int, block: int, zeros: bool = False) -> Blocks:
    generator = torch.Generator().manual_seed(rows)
    q = torch.randint(0, 1 << form.bits, (rows, columns), generator=generator)
    zero = torch.randint(0, 1 << form.bits, (rows, columns // block), generator=generator) if zeros else None
    offset = {"offset": normal(rows + 1, columns // block)[:rows]} if issubclass(form, Affine) else {}
    return form.pack(q, normal(rows, columns // block), zero, **offset)


def random_tables(form: type[Tables], groups: int, rows: int, columns: int, blocks: int = 0) -> Tables:
    """blocks: of columns that have tables of their own; 0: a group has one table."""
    generator = torch.Generator().manual_seed(rows)
    indices = torch.randint(0, form.entries(), (groups, rows, columns), generator=generator)
    return form.pack(indices, normal(groups, *([blocks] if blocks else []), form.entries()))


WEIGHTS: dict[str, Format] = {
    **{form.name: random_blocks(form, 12, 64, 32) for form in BLOCKS},
    **{form.name: random_tables(form, 3, 4, 64) for form in TABLES},
}


def layout_of(form: str) -> Layout:
    found = FORMATS[form]
    return found.layout((12, 64), 32) if issubclass(found, Blocks) else found.layout((12, 64), 4)  # type: ignore[attr-defined]


def unpacked(packed: torch.Tensor, bits: int, count: int) -> list[list[int]]:
    """By numpy: value i of a row in bits i · bits and up, the lowest first."""
    each = np.unpackbits(packed.numpy(), axis=-1, bitorder="little")[:, : count * bits]
    return (each.reshape(len(packed), count, bits) @ (1 << np.arange(bits))).tolist()


@pytest.mark.parametrize(
    ("module", "examples"), [(blocks_module, 2), (levels_module, 2), (affine_module, 2), (palette_module, 2)]
)
def test_the_worked_examples_run(module: object, examples: int) -> None:
    results = doctest.testmod(module, extraglobs={"torch": torch, "Int3": Int3, "Levels4": Levels4, "Affine4": Affine4})  # type: ignore[arg-type]
    assert (results.attempted, results.failed) == (examples, 0)


@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("form", BLOCKS, ids=lambda form: form.name)
def test_blocks_by_their_definition(form: type[Blocks], zeros: bool, block: int) -> None:
    if zeros and not form.has_zeros():
        pytest.skip("without zero points")
    weight = random_blocks(form, 3, 64, block, zeros)
    made, values = weight.dequantize(), unpacked(getattr(weight, form.part_names()[0]), form.bits, 64)
    zero = unpacked(weight.zero, form.bits, 64 // block) if zeros else [[2 ** (form.bits - 1)] * (64 // block)] * 3  # type: ignore[attr-defined]
    levels = form.levels if issubclass(form, Levels) else None
    for n in range(3):
        for k in range(64):
            level = levels[values[n][k]] if levels else values[n][k] - zero[n][k // block]
            value = level * weight.scale[n, k // block]
            assert made[n, k] == (value + weight.offset[n, k // block] if issubclass(form, Affine) else value)  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", [Levels3, Levels4], ids=lambda form: form.name)
def test_the_nearest_level(form: type[Levels]) -> None:
    """Against every distance; halfway between two, either is right."""
    levels = torch.tensor(form.levels, dtype=torch.float64)
    assert (levels.diff() > 0).all()
    assert levels.abs().max() == form.reach() == -levels[0] == 63
    steps = torch.cat([torch.arange(-600, 600) / 4, normal(4000) * 30, torch.tensor([torch.inf, -torch.inf])])
    steps = steps.clamp(-1e9, 1e9)
    found = levels[form.nearest(steps)]
    assert torch.equal((found - steps).abs(), (levels[:, None] - steps).abs().amin(0))
    assert torch.equal(form.at(torch.arange(len(levels))).double(), levels)


@pytest.mark.parametrize("largest", [1.0, 0.015625, 3e-7, 1.2e-9, 0.0, 500.0])
def test_scales_in_units_of_their_row(largest: float) -> None:
    """The least of four significant bits whose 127-fold is no less; its multiples are values of float16."""
    spread = torch.tensor([[largest], [largest * 1.37]])
    row = row_scales(spread)
    assert (row * 127 >= spread * (1 - 2**-20)).all()
    smallest = 2.0**-24
    assert (row <= torch.maximum(spread / 127 * 1.125 * (1 + 2**-20), torch.full_like(spread, smallest))).all()
    multiples = torch.arange(-127, 128) * row
    assert torch.equal(multiples.half().float(), multiples)
    assert torch.equal(scale_codes(multiples, row), torch.where(row > 0, torch.arange(-127.0, 128.0), 0.0))
    assert torch.equal(scale_codes(multiples * 3, row).abs().amax(), torch.tensor(127.0 if largest else 0.0))


@pytest.mark.parametrize("form", TABLES, ids=lambda form: form.name)
def test_a_palette_by_its_definition(form: type[Tables]) -> None:
    weight = random_tables(form, 3, 4, 24)
    made, values = weight.dequantize(), unpacked(weight.indices.flatten(0, 1), form.bits, 24)
    for n in range(12):
        for k in range(24):
            assert made[n, k] == weight.lut[n // 4, values[n][k]]
    numbers = torch.tensor([11, 0, 5, 5])
    assert torch.equal(weight.take(numbers), made[numbers])


@pytest.mark.parametrize("form", TABLES, ids=lambda form: form.name)
def test_tables_of_blocks_of_columns(form: type[Tables]) -> None:
    weight = random_tables(form, 3, 4, 24, blocks=3)
    made, values = weight.dequantize(), unpacked(weight.indices.flatten(0, 1), form.bits, 24)
    for n in range(12):
        for k in range(24):
            assert made[n, k] == weight.lut[n // 4, k // 8, values[n][k]]
    numbers = torch.tensor([11, 0, 5, 5])
    assert torch.equal(weight.take(numbers), made[numbers])
    planned = specs_of(form.layout((12, 24), 4, 8))
    assert {part: spec.shape for part, spec in planned.items()} == {
        p: tuple(t.shape) for p, t in weight.tensors().items()
    }
    assert form.layout((12, 24), 4, 24) == form.layout((12, 24), 4)  # one block is all of a row


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 5, 8, 24, 35])
def test_packed_bits_come_back(bits: int, count: int) -> None:
    values = torch.randint(0, 1 << bits, (3, count), generator=torch.Generator().manual_seed(count))
    packed = pack_bits(values, bits)
    assert packed.shape == (3, -(-count * bits // 8))
    assert unpacked(packed, bits, count) == values.tolist() == unpack_bits(packed, bits, count).tolist()


@pytest.mark.parametrize("form", WEIGHTS)
def test_forms_are_told_apart_by_their_parts(form: str) -> None:
    weight = WEIGHTS[form]
    parts = weight.tensors()
    assert (format_of(parts), shape_of_parts(parts)) == (FORMATS[form], (12, 64))
    assert set(parts) <= set(FORMATS[form].part_names())
    assert torch.equal(weight_of(parts).dequantize(), weight.dequantize())
    specs = specs_of(layout_of(form))
    assert {p: (tuple(t.shape), t.dtype) for p, t in parts.items()} == {p: (s.shape, s.dtype) for p, s in specs.items()}
    assert len({s.shape[0] for s in specs.values()}) == 1  # rows of all parts, that they can be streamed together


def test_a_float_weight_has_no_form() -> None:
    assert format_of({"": torch.zeros(1)}) is None


@pytest.mark.parametrize("form", WEIGHTS)
def test_the_operators(form: str) -> None:
    x, ids, weight = normal(2, 5, 64), torch.tensor([[0, 11], [7, 7]]), WEIGHTS[form]
    product, embedding, experts = operators_of(type(weight))
    parts, dense = list(vars(weight).values()), weight.dequantize()
    assert torch.equal(product(x, *parts), torch.nn.functional.linear(x, dense))
    assert torch.equal(embedding(ids, *parts), dense[ids])
    chosen, each = torch.tensor([[0, 1], [2, 1], [0, 2], [1, 0], [2, 2]]).expand(2, 5, 2), dense.chunk(3)
    found = experts(x, chosen, 3, *parts)
    for row, token in itertools.product(range(2), range(5)):
        for place, number in enumerate(chosen[row, token].tolist()):
            assert torch.allclose(found[row, token, place], each[number] @ x[row, token], atol=1e-4)
    torch.library.opcheck(experts, (x, chosen, 3, *parts), test_utils="test_faketensor")
    torch.library.opcheck(product, (x, *parts), test_utils="test_faketensor")
    torch.library.opcheck(embedding, (ids, *parts), test_utils="test_faketensor")


@pytest.mark.parametrize("form", WEIGHTS)
def test_what_a_weight_takes_can_be_asked_of_its_format(form: str) -> None:
    weight = WEIGHTS[form]
    layout = layout_of(form)
    assert bytes_of(layout) == sum(tensor.nbytes for tensor in weight.tensors().values())
    halves = bytes_of(layout, {"scale": 16, "lut": 16})
    assert halves == bytes_of(layout) - weight.half_values.nbytes // 2


def test_whole_rows_and_every_part() -> None:
    parts = Int4.layout((5, 96), 32, symmetric=False, offset=True)
    assert {name: values.bytes for name, values in parts.items()} == {"q": 240, "scale": 60, "zero": 10, "offset": 60}
    assert Int4.layout((5, 96), 0) == Int4.layout((5, 96), 96)
    assert Int8.layout((5, 96), 0) == Int8.layout((5, 96), 96)


def test_no_two_formats_are_told_by_the_same_part() -> None:
    marks = [form.part_names()[0] for form in FORMATS.values()]
    every = [name for form in FORMATS.values() for name in form.part_names()]
    assert [every.count(mark) for mark in marks] == [1] * len(FORMATS)
    assert [name for name, form in FORMATS.items() if form.name != name] == []
