"""LastLogits."""

from __future__ import annotations

import pytest
import torch
from tiny_phi3 import CASES, TINY, VARIANTS, fused, inputs, normal, quantized, rounding, runs, small, twice
from torch import fx

from pocketphi.graph.program import Program, op_name, shape_of
from pocketphi.passes.last_logits import LastLogits

aten = torch.ops.aten


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("make", [fused, quantized])
def test_on_a_model(variant: str, make) -> None:
    """What follows the last attention sees one row instead of all: its sums may be taken in another order."""
    program = make(variant)
    want = runs(program)
    report = twice(LastLogits(), program)
    assert (dict(report.applied), report.refused) == ({"last_token": 2}, [])  # what was attended to, and the residual
    assert [node for node in late_operators(program) if shape_of(node)[1] != 1] == []
    got = runs(program)
    size = max(float(w["logits"].abs().max()) for w in want)
    assert [g["logits"].shape for g in got] == [(batch, 1, TINY.vocab_size) for _, _, batch in CASES]
    assert max(float((g["logits"] - w["logits"][:, -1:]).abs().max()) for g, w in zip(got, want)) <= rounding(
        TINY, size
    )
    caches = [name for g, w in zip(got, want) for name in w if name != "logits" and not torch.equal(g[name], w[name])]
    assert caches == []


def late_operators(program: Program) -> list[fx.Node]:
    """The products of the last layer behind its attention, and the head."""
    products = [n for n in program.graph.nodes if op_name(n) in ("linear", "edge.matmul_nbits")]
    assert len(products) == 4 * TINY.layers + 1
    return products[-4:]


def test_right_padded_rows_have_their_own_last_token() -> None:
    program = fused()
    feeds = inputs(TINY, 8, 0, 3)
    lengths = torch.tensor([8, 3, 1])
    feeds["attention_mask"] = (torch.arange(8) < lengths[:, None]).long()
    want = program.run(feeds)["logits"][torch.arange(3), lengths - 1]
    LastLogits()(program)
    got = program.run(feeds)["logits"][:, 0]
    assert float((got - want).abs().max()) <= rounding(TINY, float(want.abs().max()))


def test_the_hidden_state_and_the_head_may_be_outputs() -> None:
    program = fused()
    head = program.outputs["logits"]
    program.graph.output_node().args = ({**program.outputs, "hidden": head.args[0], "again": head},)
    want = program.run(inputs(TINY, 6))
    assert LastLogits()(program).applied == {"last_token": 1}
    got = program.run(inputs(TINY, 6))
    assert torch.equal(got["hidden"], want["hidden"])
    assert torch.equal(got["again"], got["logits"])


def test_refuses_logits_that_are_no_projection() -> None:
    feeds = {"x": normal(1, 2, 4), "attention_mask": torch.ones(1, 2), "position_ids": torch.zeros(1, 2)}
    program = small(lambda call, x, attention_mask, position_ids: {"logits": call(aten.tanh.default, x)}, feeds)
    report = twice(LastLogits(), program)
    assert [why for _, why in report.refused] == ["logits come from tanh, not from a projection"]
    assert op_name(program.outputs["logits"]) == "tanh"
