"""FuseGatedMlp."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_phi3 import VARIANTS, before, differing, normal, runs, small, twice

from pocketphi.passes.fuse_gated_mlp import FuseGatedMlp

aten = torch.ops.aten
FEEDS = {"x": normal(8, 8, 8), "y": normal(8, 8, 8, seed=1)}
END = 2**63 - 1


def gated(
    call: Any, gate: tuple[Any, ...], up: tuple[Any, ...], swap: bool = False, activation: Any = aten.silu.default
) -> Any:
    pair = (call(aten.slice.Tensor, *up), call(activation, call(aten.slice.Tensor, *gate)))
    return call(aten.mul.Tensor, *(pair[::-1] if swap else pair))


@pytest.mark.parametrize("variant", VARIANTS)
def test_on_a_model(variant: str) -> None:
    program = before(FuseGatedMlp, variant)
    want = runs(program)
    report = twice(FuseGatedMlp(), program)
    assert (dict(report.applied), report.refused) == ({"gated_silu": 3}, [])
    assert "silu" not in program.operators()
    assert differing(want, runs(program)) == []


@pytest.mark.parametrize("swap", [True, False])
@pytest.mark.parametrize("end", [8, END])
@pytest.mark.parametrize("axis", [2, -1])
def test_spellings(swap: bool, end: int, axis: int) -> None:
    program = small(lambda call, x, y: {"z": gated(call, (x, axis, 0, 4), (x, axis, 4, end), swap)}, FEEDS)
    want = program.run(FEEDS)
    assert twice(FuseGatedMlp(), program).applied == {"gated_silu": 1}
    assert program.operators() == {"edge.gated_silu": 1}
    assert differing([want], [program.run(FEEDS)]) == []


@pytest.mark.parametrize(
    ("gate", "up", "reason"),
    [
        ((1, 0, 4), (1, 4, 8), "gate and up are not the two halves of 8 columns"),
        ((2, 0, 3), (2, 3, 6), "gate and up are not the two halves of 8 columns"),
        ((2, 0, 1), (2, 1, 2), "gate and up are not the two halves of 8 columns"),
        ((2, 4, 8), (2, 0, 4), None),  # up before gate
        ((2, 0, 8, 2), (2, 0, 8, 2), None),
        ((2, 0, 4, 2), (2, 4, 8, 2), None),
    ],
)
def test_near_misses(gate: tuple[int, ...], up: tuple[int, ...], reason: str | None) -> None:
    program = small(lambda call, x, y: {"z": gated(call, (x, *gate), (x, *up))}, FEEDS)
    text = program.dump()
    report = twice(FuseGatedMlp(), program)
    assert [why for _, why in report.refused] == ([reason] if reason else [])
    assert (report.changed, program.dump()) == (False, text)


def test_two_sources_or_another_activation() -> None:
    def body(call, x, y):
        halves = (x, 2, 0, 4), (y, 2, 4, 8)
        return {"a": gated(call, *halves), "b": gated(call, halves[0], (x, 2, 4, 8), activation=aten.relu.default)}

    report = FuseGatedMlp()(small(body, FEEDS))
    assert (report.changed, report.refused) == (False, [])


def test_parts_that_are_used_elsewhere_stay() -> None:
    def body(call, x, y):
        z = gated(call, (x, 2, 0, 4), (x, 2, 4, 8))
        return {"z": z, "silu": z.args[1], "again": call(aten.neg.default, z), "up": z.args[0]}

    program = small(body, FEEDS)
    want = program.run(FEEDS)
    assert twice(FuseGatedMlp(), program).applied == {"gated_silu": 1}
    assert program.operators()["silu"] == 1
    assert differing([want], [program.run(FEEDS)]) == []
