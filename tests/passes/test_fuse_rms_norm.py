"""FuseRmsNorm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_phi3 import VARIANTS, before, differing, normal, runs, small, twice
from torch import fx

from pocketphi.passes.fuse_rms_norm import FuseRmsNorm

aten = torch.ops.aten
FEEDS = {"x": normal(2, 3, 8)}


def norm(
    call: Any,
    x: fx.Node,
    w: Any,
    power: int = 2,
    axes: tuple[int, ...] = (-1,),
    keep: bool = True,
    eps: Any = 1e-5,
    other: fx.Node | None = None,
    swap: bool = False,
    **keywords: Any,
) -> fx.Node:
    mean = call(aten.mean.dim, call(aten.pow.Tensor_Scalar, x, power), list(axes), keep)
    inverse = call(aten.rsqrt.default, call(aten.add.Tensor, mean, eps, **keywords))
    pair = (other or x, inverse)
    scaled = call(aten.mul.Tensor, *(pair[::-1] if swap else pair))
    return call(aten.mul.Tensor, *((scaled, w) if swap else (w, scaled)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_on_a_model(variant: str) -> None:
    program = before(FuseRmsNorm, variant)
    want = runs(program)
    report = twice(FuseRmsNorm(), program)
    assert (dict(report.applied), report.refused) == ({"rms_norm": 7}, [])
    assert "rsqrt" not in program.operators()
    assert differing(want, runs(program)) == []


@pytest.mark.parametrize("swap", [True, False])
def test_either_order(swap: bool) -> None:
    program = small(lambda call, x, w: {"y": norm(call, x, w, swap=swap)}, FEEDS, {"w": normal(8)})
    want = program.run(FEEDS)
    assert twice(FuseRmsNorm(), program).applied == {"rms_norm": 1}
    assert program.operators() == {"edge.rms_norm": 1}
    assert differing([want], [program.run(FEEDS)]) == []


NEAR: dict[str, dict[str, Any]] = {
    "cubes": {"power": 3},
    "another axis": {"axes": (1,)},
    "two axes": {"axes": (-1, -2)},
    "eps is a whole number": {"eps": 1},
    "eps is scaled": {"alpha": 2},
}


@pytest.mark.parametrize("name", NEAR)
def test_near_misses(name: str) -> None:
    program = small(lambda call, x, w: {"y": norm(call, x, w, **NEAR[name])}, FEEDS, {"w": normal(8)})
    text = program.dump()
    assert not FuseRmsNorm()(program).changed
    assert program.dump() == text


def test_another_value_is_scaled() -> None:
    def body(call, x, w):
        return {"y": norm(call, x, w, other=call(aten.neg.default, x))}

    assert not FuseRmsNorm()(small(body, FEEDS, {"w": normal(8)})).changed


def test_a_weight_that_is_computed() -> None:
    def body(call, x, w):
        return {"y": norm(call, x, call(aten.neg.default, w))}

    assert not FuseRmsNorm()(small(body, FEEDS, {"w": normal(8)})).changed


def test_refuses_a_weight_of_another_shape() -> None:
    program = small(lambda call, x, w: {"y": norm(call, x, w)}, FEEDS, {"w": normal(3, 8)})
    report = twice(FuseRmsNorm(), program)
    assert [reason for _, reason in report.refused] == ["its weight is [3, 8], not one value a column"]


def test_inner_values_that_are_used_elsewhere_stay() -> None:
    def body(call, x, w):
        y = norm(call, x, w)
        return {"y": y, "scaled": y.args[1], "z": call(aten.neg.default, y), "w": w}

    program = small(body, FEEDS, {"w": normal(8)})
    want = program.run(FEEDS)
    assert twice(FuseRmsNorm(), program).applied == {"rms_norm": 1}
    assert program.operators()["rsqrt"] == 1
    assert differing([want], [program.run(FEEDS)]) == []


def test_one_mean_of_squares_for_two_norms() -> None:
    def body(call, x, w, v):
        y = norm(call, x, w)
        return {"y": y, "z": call(aten.mul.Tensor, v, y.args[1])}

    program = small(body, FEEDS, {"w": normal(8), "v": normal(8, seed=1)})
    want = program.run(FEEDS)
    assert twice(FuseRmsNorm(), program).applied == {"rms_norm": 2}
    assert differing([want], [program.run(FEEDS)]) == []
