"""What an adapter adds to a product, against torch in float64, for any rank and for none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tvm_kernels import here, run

from pocketphi.targets.tvm_arm.isa import Isa
from pocketphi.targets.tvm_arm.kernels.low_rank import add_low_rank

COLUMNS, ROWS = 48, 83  # rows that no vector divides


@pytest.fixture(params=[(isa, single) for isa in here() for single in (True, False)][:2], scope="module")
def kernel(request: pytest.FixtureRequest) -> tuple[Isa, bool, Any]:
    parameter, single = request.param
    (isa,) = parameter.values
    return isa, single, add_low_rank("f", isa, COLUMNS, ROWS, single)


def inputs(rows: int, rank: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, ROWS), (rows, COLUMNS), (rank, COLUMNS), (rank, ROWS))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_it_is_the_product(kernel: tuple[Isa, bool, Any]) -> None:
    isa, single, function = kernel
    y, x, a, b = inputs(1 if single else 7, 20)
    came, *rest = run(isa, function, y, x, a, b)
    expected = y.double() + x.double() @ a.double().T @ b.double()
    # sums of COLUMNS and of 20 terms in float32, each within half a unit of its own terms
    terms = y.abs() + x.abs() @ a.abs().T @ b.abs()
    assert bool(((came - expected).abs() <= (COLUMNS + 20) * 2.0**-24 * terms).all())
    assert all(torch.equal(*pair) for pair in zip(rest, (x, a, b), strict=True))


def test_without_an_adapter_nothing_is_touched(kernel: tuple[Isa, bool, Any]) -> None:
    isa, single, function = kernel
    y, x, a, b = inputs(1 if single else 7, 0)
    y[0, :3] = torch.tensor([-0.0, float("inf"), float("nan")])
    came = run(isa, function, y, x, a, b)[0]
    assert torch.equal(came.view(torch.int32), y.view(torch.int32))
