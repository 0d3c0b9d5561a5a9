"""Matrix products on this host: exact to float32's rounding, and with int8 activations within half a step of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tvm_kernels import WIDTHS, here, placed, random_weight, run

pytest.importorskip("tvm")

from pocketphi.graph.formats import Affine, Blocks, Int4, Int5, Levels4
from pocketphi.targets.tvm_arm.interleave import Interleaved, step_of
from pocketphi.targets.tvm_arm.isa import ISAS, Isa
from pocketphi.targets.tvm_arm.kernels.dots import dots_of
from pocketphi.targets.tvm_arm.kernels.matmul import Form, Schedule, decode_schedule, matmul, prefill_schedule


def product(isa: Isa, weight: Blocks, x: torch.Tensor, exact: bool, schedule: Schedule | None = None) -> torch.Tensor:
    parts, matrix = weight.tensors(), placed(weight, isa)
    form = Form(matrix, "zero" in parts, "offset" in parts, exact, len(x) == 1)
    schedule = schedule or (decode_schedule(isa) if form.single else prefill_schedule(isa))
    stored = matrix.store(parts)
    arguments = [stored[part].reshape(-1) for part in form.parts]
    return run(isa, matmul("f", isa, form, schedule), x, *arguments, torch.zeros(len(x), matrix.rows))[-1]


def int8_bound(weight: Blocks, x: torch.Tensor) -> torch.Tensor:
    """[M, N]: what rounding each activation by half a step at most can change, and float32's own rounding."""
    step = step_of(weight.block)
    half = x.view(len(x), -1, step).abs().amax(-1) / 127 / 2
    spread = half[..., None].expand(-1, -1, step).reshape(x.shape)
    return spread.double() @ weight.dequantize().double().abs().T + float_bound(weight, x)


def float_bound(weight: Blocks, x: torch.Tensor) -> torch.Tensor:
    """[M, N]: a rounding of each of K terms. Zero points and offsets are added apart: their terms count by themselves."""
    most = float(weight.reach() if weight.zeros() is None else (1 << weight.bits) - 1)
    magnitude = most * weight.scale.abs()
    if "offset" in weight.tensors():
        magnitude = magnitude + weight.tensors()["offset"].abs()
    columns = magnitude.repeat_interleave(weight.block, 1)
    return x.shape[1] * torch.finfo(torch.float32).eps * (x.double().abs() @ columns.double().T)


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("block", [16, 32, 128])
@pytest.mark.parametrize(("zero", "offset"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("tokens", [1, 5])
def test_products(isa: Isa, block: int, zero: bool, offset: bool, tokens: int) -> None:
    check_products(isa, random_weight(37, 128, block, zero, offset), tokens)  # the last group of rows is not full


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize(("block", "tokens"), [(16, 5), (32, 1), (128, 5)])
@pytest.mark.parametrize(("form", "zero"), WIDTHS)
def test_products_of_each_width(isa: Isa, form: type[Blocks], zero: bool, block: int, tokens: int) -> None:
    check_products(isa, random_weight(37, 128, block, zero, form=form), tokens)


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize(("block", "tokens"), [(16, 1), (32, 5)])
@pytest.mark.parametrize(("form", "zero"), [(Int4, True), (Int4, False), (Levels4, False)])
def test_products_with_row_scales(isa: Isa, form: type[Blocks], zero: bool, block: int, tokens: int) -> None:
    check_products(isa, random_weight(37, 128, block, zero, form=form, by_row=True), tokens)


def check_products(isa: Isa, weight: Blocks, tokens: int) -> None:
    x = torch.randn(tokens, weight.values().shape[1], generator=torch.Generator().manual_seed(1))
    x[0, :32] = 0  # a step of zeros has no scale
    x[-1, 40] = 300.0  # an outlier takes the others' resolution
    expected = x.double() @ weight.dequantize().double().T
    assert torch.all((product(isa, weight, x, exact=True) - expected).abs() <= float_bound(weight, x))
    rounded = product(isa, weight, x, exact=False)
    assert torch.all((rounded - expected).abs() <= int8_bound(weight, x))
    assert (rounded - expected).abs().max() > float_bound(weight, x).min()  # it did round


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("form", [Int4, Int5])
def test_whole_rows_that_32_does_not_divide(isa: Isa, form: type[Blocks]) -> None:
    check_products(isa, random_weight(37, 48, 48, form=form), 5)


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("form", [Int4, *dict(WIDTHS)])
def test_the_largest_sums(isa: Isa, form: type[Blocks]) -> None:
    """Every value at an end of its range, and every activation rounded to 127 or -127: no sum of few bits overflows."""
    most = (1 << form.bits) - 1
    q = torch.tensor([0, most]).repeat(8)[:, None].repeat(1, 64)
    more = {"offset": torch.full((16, 2), -0.25)} if issubclass(form, Affine) else {}
    weight = form.pack(q, torch.full((16, 2), 0.5), **more)
    x = torch.tensor([[1.0], [-1.0]]).repeat(1, 64)
    expected = x.double() @ weight.dequantize().double().T
    assert torch.all((product(isa, weight, x, exact=False) - expected).abs() <= float_bound(weight, x))


@pytest.mark.parametrize(("name", "products"), [("avx2", 2), ("neon", 1)])
@pytest.mark.parametrize(("largest", "chunks"), [(15, 8), (31, 4), (63, 2), (128, 1)])
def test_sums_of_16_bits_take_as_many_chunks_as_they_hold(name: str, products: int, largest: int, chunks: int) -> None:
    """Each adds so many products of a weight and an activation of 127 to a sum."""
    count = dots_of(ISAS[name]).at_once(largest)
    assert count * products * largest * 127 < 1 << 15
    assert count >= chunks * 2 // products


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("schedule", [Schedule(2, 4), Schedule(1, 12), Schedule(4, 2), Schedule(5, 1)])
def test_no_schedule_changes_a_bit(isa: Isa, schedule: Schedule) -> None:
    weight = random_weight(64, 96, 32)
    x = torch.randn(7, 96, generator=torch.Generator().manual_seed(2))
    assert torch.equal(product(isa, weight, x, False, schedule), product(isa, weight, x, False))


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("form", [Int4, Levels4])
def test_a_row_of_a_prompt_is_the_same_with_fewer(isa: Isa, form: type[Blocks]) -> None:
    """Alone, in a part of a tile, in a whole one, and in those after it."""
    weight = random_weight(64, 64, 32, form=form)
    x = torch.randn(33, 64, generator=torch.Generator().manual_seed(3))
    together = product(isa, weight, x, False)
    for count in (1, 2, 3, 6, 8, 13, 16):
        assert torch.equal(product(isa, weight, x[:count], False), together[:count]), count


WANTED = {
    "neon": ("smlal", "smull"),
    "dotprod": ("sdot",),
    "i8mm": ("smmla",),
    "avx2": ("vpmaddubsw",),
    "avx512vnni": ("vpdpbusd",),
}


@pytest.mark.parametrize("isa", ISAS.values(), ids=ISAS)
@pytest.mark.parametrize("single", [True, False], ids=["decode", "prefill"])
def test_the_loop_has_the_instruction_and_no_spills(isa: Isa, single: bool) -> None:
    """For every instruction set, not only this host's: the assembly of the loop over a unit's steps."""
    form = Form(Interleaved(64, 256, 32, isa.lanes, isa.pairs, isa.signed), single=single)
    schedule = decode_schedule(isa) if single else prefill_schedule(isa)
    body = hot_loop(assembly(isa, matmul("f", isa, form, schedule)))
    operations = [line.split()[0] for line in body]
    wanted = ("sdot",) if isa.name == "i8mm" and single else WANTED[isa.name]
    assert any(operation.startswith(wanted) for operation in operations), operations
    if (isa.name, single) in (("avx2", True), ("avx512vnni", False)):
        return  # more streams of weights spill, and are a fifth or a seventh faster from memory than those that do not
    stack = "[sp" if isa.arch == "aarch64" else "(%rsp"
    assert [line for line in body if stack in line and line.split()[0].startswith(("str", "stp", "vmov"))] == []


def assembly(isa: Isa, function: Any) -> str:
    import tvm

    from pocketphi.targets.tvm_arm.objects import passes

    target = tvm.target.Target(isa.target())
    with passes():
        return str(tvm.compile(tvm.IRModule({"f": function}), target=target).mod.inspect_source("asm"))


def hot_loop(text: str) -> list[str]:
    """The instructions of the innermost loop with the most multiplications: from its label to the jump back to it."""
    lines = [line.strip() for line in text.splitlines()]
    labels = {line.rstrip(":"): at for at, line in enumerate(lines) if line.startswith(".L") and line.endswith(":")}
    best: list[str] = []
    for at, line in enumerate(lines):
        words = line.replace(",", " ").split()
        start = labels.get(words[-1]) if len(words) > 1 else None
        if start is None or start >= at:
            continue
        body = [text for text in lines[start:at] if text and not text.startswith((".", "#", "//", ";"))]
        if sum(_multiplies(text) for text in body) > sum(_multiplies(text) for text in best):
            best = body
    return best


def _multiplies(line: str) -> bool:
    return line.split()[0].startswith(("sdot", "smmla", "smlal", "smull", "vpmaddubsw", "vpdpbusd"))
