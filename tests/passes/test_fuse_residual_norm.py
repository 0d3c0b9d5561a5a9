"""FuseResidualNorm."""

from __future__ import annotations

import pytest
import torch
from tiny_phi3 import VARIANTS, before, differing, normal, runs, small, twice

from pocketphi.passes.fuse_residual_norm import FuseResidualNorm

ADD, NORM, NEG = torch.ops.aten.add.Tensor, torch.ops.edge.rms_norm.default, torch.ops.aten.neg.default
FEEDS = {"x": normal(2, 3, 8), "y": normal(2, 3, 8, seed=1), "narrow": normal(1, 3, 8, seed=2)}
WEIGHTS = {"w": normal(8), "v": normal(8, seed=1)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_on_a_model(variant: str) -> None:
    """Every norm but the first reads a residual add."""
    program = before(FuseResidualNorm, variant)
    want = runs(program)
    report = twice(FuseResidualNorm(), program)
    assert (dict(report.applied), report.refused) == ({"add_rms_norm": 6}, [])
    assert (program.operators()["edge.rms_norm"], program.operators()["add"]) == (1, 0)
    assert differing(want, runs(program)) == []


def test_the_sum_may_be_an_output_and_have_other_readers() -> None:
    def body(call, x, y, narrow, w, v):
        total = call(ADD, x, y)
        earlier = call(NEG, total)
        return {
            "n": call(NORM, total, w, 1e-5),
            "total": total,
            "negative": earlier,
            "again": call(NORM, total, v, 1e-5),
        }

    program = small(body, FEEDS, WEIGHTS)
    want = program.run(FEEDS)
    assert twice(FuseResidualNorm(), program).applied == {"add_rms_norm": 1}  # the second norm reads the sum
    assert program.operators()["edge.rms_norm"] == 1
    assert differing([want], [program.run(FEEDS)]) == []


def test_a_weight_read_by_two_norms() -> None:
    def body(call, x, y, narrow, w, v):
        first = call(NORM, call(ADD, x, y), w, 1e-5)
        return {"n": call(NORM, call(ADD, first, y), w, 1e-5)}

    program = small(body, FEEDS, WEIGHTS)
    want = program.run(FEEDS)
    assert twice(FuseResidualNorm(), program).applied == {"add_rms_norm": 2}
    assert differing([want], [program.run(FEEDS)]) == []


def test_a_weight_that_stands_behind_the_sum() -> None:
    def body(call, x, y, narrow, w, v):
        total = call(ADD, x, y)
        total.append(w)
        return {"n": call(NORM, total, w, 1e-5)}

    program = small(body, FEEDS, WEIGHTS)
    want = program.run(FEEDS)
    assert twice(FuseResidualNorm(), program).applied == {"add_rms_norm": 1}
    assert differing([want], [program.run(FEEDS)]) == []


@pytest.mark.parametrize(
    ("arguments", "keywords", "reason"),
    [
        (("x", 1.0), {}, "the add has a scalar operand or a factor"),
        (("x", "y"), {"alpha": 2}, "the add has a scalar operand or a factor"),
        (("x", "narrow"), {}, "the add broadcasts"),
        (("narrow", "x"), {}, "the add broadcasts"),
    ],
)
def test_refuses(arguments: tuple[object, ...], keywords: dict[str, int], reason: str) -> None:
    def body(call, w, **nodes):
        total = call(ADD, *(nodes.get(a, a) for a in arguments), **keywords)
        return {"n": call(NORM, total, w, 1e-5)}

    program = small(body, FEEDS, {"w": normal(8)})
    text = program.dump()
    report = twice(FuseResidualNorm(), program)
    assert [why for _, why in report.refused] == [reason]
    assert program.dump() == text


def test_a_norm_of_something_else() -> None:
    program = small(lambda call, x, y, narrow, w, v: {"n": call(NORM, call(NEG, x), w, 1e-5)}, FEEDS, WEIGHTS)
    report = FuseResidualNorm()(program)
    assert (report.changed, report.refused) == (False, [])
