"""The kernels of routed experts against torch in float64, for prompts and for single tokens."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("tvm")

from tvm_kernels import here, placed, random_weight, run

from pocketphi.graph import experts as reference
from pocketphi.graph.formats import Blocks, Int4, Int8
from pocketphi.targets.tvm_arm.isa import Isa
from pocketphi.targets.tvm_arm.kernels.experts import Routed, combine, experts, route
from pocketphi.targets.tvm_arm.kernels.matmul import Form

COUNT, SIZE, COLUMNS = 5, 48, 64

# format, zero points, offsets, row scales, float activations
KINDS: dict[str, tuple[type[Blocks], bool, bool, bool, bool]] = {
    "int4": (Int4, False, False, False, False),
    "exact": (Int4, True, True, False, True),
    "zeros and offsets": (Int4, True, True, False, False),
    "int8 by row": (Int8, False, False, True, False),
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stored(weight: Blocks, isa: Isa, parts: tuple[str, ...]) -> list[torch.Tensor]:
    held = placed(weight, isa).store(weight.tensors())
    return [held[part].flatten() for part in parts]


def case(isa: Isa, kind: str, rows: int, apart: bool) -> tuple[Routed, Blocks, torch.Tensor, torch.Tensor]:
    form, zero, offset, by_row, exact = KINDS[kind]
    weight = random_weight(COUNT * SIZE, COLUMNS, 32, zero, offset, form, by_row)
    made = Form(placed(weight, isa), zero, offset, exact, rows == 1)
    x = normal(rows * 2 if apart else rows, COLUMNS)
    # one expert that nobody chooses, and one that most do
    generator = torch.Generator().manual_seed(rows)
    first = torch.where(
        torch.rand(rows, generator=generator) < 0.6, 3, torch.randint(0, 3, (rows,), generator=generator)
    )
    second = (first + torch.randint(1, 3, (rows,), generator=generator)) % 4
    return Routed(made, COUNT, 2, apart), weight, x, torch.stack([first, second], 1)


def bound(x: torch.Tensor, values: torch.Tensor, exact: bool) -> torch.Tensor:
    """By how much products may be off: half a step of the rounded activations, and float32's own rounding."""
    own = 64 * 2.0**-23 * (x.abs() @ values.abs().T)
    if exact:
        return own
    half = x.view(len(x), -1, 32).abs().amax(-1) / 127 / 2
    return own + half @ values.view(len(values), -1, 32).abs().sum(-1).T


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "apart"), [(1, True), (37, False)])
def test_products_are_those_of_the_chosen(isa: Isa, kind: str, rows: int, apart: bool) -> None:
    routed, weight, x, chosen = case(isa, kind, rows, apart)
    held = stored(weight, isa, routed.form.parts)
    out = torch.full((2 * rows, SIZE), float("nan"))
    came = run(isa, experts("f", isa, routed), chosen.int(), x, *held, out)[-1]
    values = weight.dequantize().double().view(COUNT, SIZE, COLUMNS)
    for pair, number in enumerate(chosen.flatten().tolist()):
        of = x[pair if apart else pair // 2][None].double()
        off = (came[pair].double() - (of @ values[number].T)[0]).abs()
        assert (off <= bound(of, values[number], routed.form.exact)[0]).all()


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("rows", [1, 20])
def test_no_other_expert_is_read(isa: Isa, rows: int) -> None:
    """Scales of NaN in the rows of experts that nobody chose are met nowhere."""
    routed, weight, x, chosen = case(isa, "int4", rows, False)
    chosen = chosen % 2 * 2 + torch.tensor([0, 1])  # 0 and 1, or 2 and 3
    chosen = chosen if rows > 1 else torch.tensor([[3, 1]])
    used = set(chosen.flatten().tolist())
    assert used != set(range(COUNT))
    held = dict(zip(routed.form.parts, stored(weight, isa, routed.form.parts)))
    outputs = []
    for spoiled in (False, True):
        scale = held["scale"].clone().view(COUNT, -1)
        if spoiled:
            scale[[number for number in range(COUNT) if number not in used]] = float("nan")
        parts = {**held, "scale": scale.flatten()}
        outputs.append(
            run(isa, experts("f", isa, routed), chosen.int(), x, *parts.values(), torch.zeros(2 * rows, SIZE))[-1]
        )
    assert torch.equal(*outputs)
    assert bool(outputs[0].isfinite().all())


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("rows", [1, 30])
@pytest.mark.parametrize("threshold", [0.02, 0.5])
def test_route(isa: Isa, rows: int, threshold: float) -> None:
    """Scores of either sign, near each other and apart."""
    x, weight = normal(rows, 64), normal(6, 64, seed=1) / 8
    weight[3:] = weight[:3] + 0.01 * weight[3:]
    x[rows // 2 :] *= 5
    out = [torch.zeros(rows, 2), torch.zeros(rows, 2, dtype=torch.int32)]
    shares, chosen = run(isa, route("f", isa, 64, 6, threshold, rows == 1), x, weight, *out)[-2:]
    want, numbers = reference.route(x[None].double(), weight.double(), threshold)
    assert torch.equal(chosen.long(), numbers[0])
    assert torch.allclose(shares.double(), want[0], rtol=1e-5)


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("rows", [1, 7])
def test_combine(isa: Isa, rows: int) -> None:
    x, shares = normal(rows * 2, 64), normal(rows, 2, seed=1)
    out = run(isa, combine("f", isa, 64, 2, rows == 1), shares, x, torch.zeros(rows, 64))[-1]
    expected = (x.view(rows, 2, 64).double() * shares[..., None]).sum(1)
    assert torch.allclose(out.double(), expected, atol=1e-6)
