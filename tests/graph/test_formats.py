"""The formats of weights: worked examples, dequantization by definition, operators, sizes, and telling them apart."""

from __future__ import annotations

import doctest

import pytest
import torch
from tiny_phi3 import normal

from pocketphi.graph.formats import FORMATS, Format, Int4, Int8, Palette, bytes_of, format_of, shape_of_parts, weight_of
from pocketphi.graph.formats import int8 as int8_module
from pocketphi.graph.formats import palette as palette_module
from pocketphi.graph.formats import specs as specs_of

edge = torch.ops.edge


def random_int8(rows: int, columns: int, block: int) -> Int8:
    generator = torch.Generator().manual_seed(rows)
    q8 = torch.randint(0, 256, (rows, columns), generator=generator, dtype=torch.uint8)
    return Int8(q8, normal(rows, columns // block))


def random_palette(groups: int, rows: int, columns: int) -> Palette:
    generator = torch.Generator().manual_seed(rows)
    return Palette.pack(torch.randint(0, 16, (groups, rows, columns), generator=generator), normal(groups, 16))


WEIGHTS: dict[str, Format] = {
    "int4": Int4.pack(torch.randint(0, 16, (12, 64)), normal(12, 2)),
    "int8": random_int8(12, 64, 32),
    "palette": random_palette(3, 4, 64),
}


@pytest.mark.parametrize(("module", "examples"), [(int8_module, 1), (palette_module, 2)])
def test_the_worked_examples_run(module: object, examples: int) -> None:
    results = doctest.testmod(module, extraglobs={"torch": torch})  # type: ignore[arg-type]
    assert (results.attempted, results.failed) == (examples, 0)


@pytest.mark.parametrize("block", [16, 64])
def test_int8_by_its_definition(block: int) -> None:
    weight, made = random_int8(3, 64, block), random_int8(3, 64, block).dequantize()
    for n in range(3):
        for k in range(64):
            assert made[n, k] == (float(weight.q8[n, k]) - 128) * weight.scale[n, k // block]


def test_a_palette_by_its_definition() -> None:
    weight, made = random_palette(3, 4, 10), random_palette(3, 4, 10).dequantize()
    values = weight.values()
    for n in range(12):
        for k in range(10):
            assert made[n, k] == weight.lut[n // 4, int(values[n // 4, n % 4, k])]
    numbers = torch.tensor([11, 0, 5, 5])
    assert torch.equal(weight.take(numbers), made[numbers])


@pytest.mark.parametrize("form", WEIGHTS)
def test_forms_are_told_apart_by_their_parts(form: str) -> None:
    weight = WEIGHTS[form]
    parts = weight.tensors()
    assert (format_of(parts), shape_of_parts(parts)) == (FORMATS[form], (12, 64))
    assert set(parts) <= set(FORMATS[form].part_names())
    assert torch.equal(weight_of(parts).dequantize(), weight.dequantize())
    specs = {
        "int4": specs_of(Int4.layout((12, 64), 32)),
        "int8": specs_of(Int8.layout((12, 64), 32)),
        "palette": specs_of(Palette.layout((12, 64), 4)),
    }[form]
    assert {p: (tuple(t.shape), t.dtype) for p, t in parts.items()} == {p: (s.shape, s.dtype) for p, s in specs.items()}
    assert len({s.shape[0] for s in specs.values()}) == 1  # rows of all parts, that they can be streamed together


def test_a_float_weight_has_no_form() -> None:
    assert format_of({"": torch.zeros(1)}) is None


def test_the_operators() -> None:
    x, ids = normal(2, 5, 64), torch.tensor([[0, 11], [7, 7]])
    for product, embedding, weight in (
        (edge.matmul_int8, edge.embedding_int8, WEIGHTS["int8"]),
        (edge.matmul_palette, edge.embedding_palette, WEIGHTS["palette"]),
    ):
        parts, dense = list(weight.tensors().values()), weight.dequantize()
        assert torch.equal(product(x, *parts), torch.nn.functional.linear(x, dense))
        assert torch.equal(embedding(ids, *parts), dense[ids])
        torch.library.opcheck(product.default, (x, *parts), test_utils="test_faketensor")
        torch.library.opcheck(embedding.default, (ids, *parts), test_utils="test_faketensor")


@pytest.mark.parametrize("form", WEIGHTS)
def test_what_a_weight_takes_can_be_asked_of_its_format(form: str) -> None:
    weight = WEIGHTS[form]
    layout = {
        "int4": Int4.layout((12, 64), 32),
        "int8": Int8.layout((12, 64), 32),
        "palette": Palette.layout((12, 64), 4),
    }[form]
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
