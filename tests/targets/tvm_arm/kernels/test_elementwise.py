"""Norms, the gated activation, the embedding and the last row, against their references."""

from __future__ import annotations

import math

import pytest
import torch
from tvm_kernels import WIDTHS, here, placed, random_weight, run

pytest.importorskip("tvm")

from pocketphi.graph import edge_ops
from pocketphi.graph.formats import Blocks
from pocketphi.targets.tvm_arm.isa import Isa
from pocketphi.targets.tvm_arm.kernels.affine import add, gegelu, layer_norm, scaled
from pocketphi.targets.tvm_arm.kernels.elementwise import embedding, gated_silu, last_row, rms_norm
from pocketphi.targets.tvm_arm.kernels.matmul import Form

EPS = torch.finfo(torch.float32).eps


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("rows", [1, 5])
def test_norms(isa: Isa, rows: int) -> None:
    x, y, weight = 3 * random(rows, 96), random(rows, 96, seed=1), random(96, seed=2)
    out = run(isa, rms_norm("f", isa, 96, 1e-5, False, rows == 1), x, weight, torch.zeros(rows, 96))[-1]
    expected = edge_ops.rms_norm(x[None], weight, 1e-5)[0]
    assert torch.all((out - expected).abs() <= 96 * EPS * expected.abs())
    *_, out, total = run(
        isa, rms_norm("f", isa, 96, 1e-5, True, rows == 1), x, y, weight, torch.zeros(rows, 96), torch.zeros(rows, 96)
    )
    expected, sums = (t[0] for t in edge_ops.add_rms_norm(x[None], y[None], weight, 1e-5))
    assert torch.equal(total, sums)
    assert torch.all((out - expected).abs() <= 96 * EPS * expected.abs())


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("rows", [1, 5])
def test_gated_silu(isa: Isa, rows: int) -> None:
    x = 8 * random(rows, 192)
    x[0, :4] = torch.tensor([0.0, -90.0, 90.0, -1e-20])  # nothing, and what e^x would overflow or lose
    out = run(isa, gated_silu("f", isa, 96, rows == 1), x, torch.zeros(rows, 96))[-1]
    expected = edge_ops.gated_silu(x[None].double())[0]
    clipped = (x[:, :96] * x[:, 96:]).abs() * 2 * math.exp(-87)  # e^x is not less than e^-87
    assert torch.all((out - expected).abs() <= 16 * EPS * expected.abs() + clipped)


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize(("zero", "offset"), [(False, False), (True, False), (True, True)])
def test_embedding(isa: Isa, block: int, zero: bool, offset: bool) -> None:
    check_embedding(isa, random_weight(37, 64, block, zero, offset))


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("block", [16, 32])
@pytest.mark.parametrize(("form", "zero"), WIDTHS)
def test_embedding_of_each_width(isa: Isa, block: int, form: type[Blocks], zero: bool) -> None:
    check_embedding(isa, random_weight(37, 96, block, zero, form=form))
    check_embedding(isa, random_weight(37, 96, block, zero, form=form, by_row=True))


def check_embedding(isa: Isa, weight: Blocks) -> None:
    parts, matrix = weight.tensors(), placed(weight, isa)
    stored = matrix.store(parts)
    ids = torch.tensor([36, 0, 17, 17], dtype=torch.int32)
    form = Form(matrix, "zero" in parts, "offset" in parts)
    arguments = [stored[part].reshape(-1) for part in form.parts]
    out = run(isa, embedding("f", isa, form), ids, *arguments, torch.zeros(4, matrix.columns))[-1]
    assert torch.equal(out, weight.dequantize()[ids.long()])


@pytest.mark.parametrize("isa", here())
def test_last_row(isa: Isa) -> None:
    x = random(5, 96)
    assert torch.equal(run(isa, last_row("f", isa, 96), x, torch.zeros(1, 96))[-1][0], x[-1])


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("rows", [1, 5])
def test_layer_norm(isa: Isa, rows: int) -> None:
    """Of values far from zero too, whose variance is small."""
    x = (
        torch.randn(rows, 96, generator=torch.Generator().manual_seed(1))
        + torch.tensor([[0.0], [50.0]])[:rows].repeat(3, 1)[:rows]
    )
    weight, bias = torch.randn(2, 96, generator=torch.Generator().manual_seed(2))
    out = run(isa, layer_norm("f", isa, 96, 1e-5, rows == 1), x, weight, bias, torch.zeros(rows, 96))[-1]
    expected = torch.nn.functional.layer_norm(x.double(), [96], weight.double(), bias.double(), 1e-5)
    bound = 96 * torch.finfo(torch.float32).eps * x.abs().amax(1, keepdim=True) * weight.abs().max() * 2
    assert ((out - expected).abs() <= bound).all()


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("size", [96, 101])
def test_sums_and_multiples(isa: Isa, rows: int, size: int) -> None:
    x, y = torch.randn(2, rows, size, generator=torch.Generator().manual_seed(1))
    assert torch.equal(run(isa, add("f", isa, size, False, rows == 1), x, y, torch.zeros(rows, size))[-1], x + y)
    assert torch.equal(run(isa, add("f", isa, size, True, rows == 1), x, y[0], torch.zeros(rows, size))[-1], x + y[0])
    if size == 96:
        assert torch.equal(run(isa, scaled("f", isa, size, 0.3, rows == 1), x, torch.zeros(rows, size))[-1], x * 0.3)


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("limit", [0.0, 1.5])
def test_gegelu(isa: Isa, rows: int, limit: float) -> None:
    x = 6 * torch.randn(rows, 192, generator=torch.Generator().manual_seed(1))
    out = run(isa, gegelu("f", isa, 96, limit, rows == 1), x, torch.zeros(rows, 96))[-1]
    expected = edge_ops.gegelu(x[None].double(), limit)[0]
    assert (out - expected).abs().max() <= 8 * torch.finfo(torch.float32).eps * expected.abs().max()
