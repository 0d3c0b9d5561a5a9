"""The passes in their order: what an order matters for, and the whole pipeline's counts."""

from __future__ import annotations

import pytest
from tiny_phi3 import VARIANTS, differing, runs, traced

from pocketphi.passes.canonicalize import Canonicalize
from pocketphi.passes.fuse_attention import FuseAttention
from pocketphi.passes.fuse_gated_mlp import FuseGatedMlp
from pocketphi.passes.fuse_residual_norm import FuseResidualNorm
from pocketphi.passes.fuse_rms_norm import FuseRmsNorm
from pocketphi.passes.last_logits import LastLogits
from pocketphi.passes.policy import Policy
from pocketphi.passes.quantize_weights import QuantizeWeights
from pocketphi.passes.quantizers import RoundToNearest

FUSIONS = [Canonicalize, FuseRmsNorm, FuseAttention, FuseResidualNorm, FuseGatedMlp]


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_left(variant: str) -> None:
    program = traced(variant)
    want = runs(program)
    reports = [make()(program) for make in FUSIONS]
    assert differing(want, runs(program)) == []
    reports += [QuantizeWeights(Policy.of(RoundToNearest(32)))(program), LastLogits()(program)]
    assert [report.refused for report in reports] == [[]] * 7
    assert program.operators() == {
        "edge.embedding_nbits": 1,
        "edge.rms_norm": 1,
        "edge.add_rms_norm": 6,
        "edge.attention": 3,
        "edge.gated_silu": 3,
        "edge.matmul_nbits": 13,
        "edge.last_token": 2,
        # of each residual norm both values but the last, whose sum nobody reads, and of each attention all three
        "getitem": 2 * 6 - 1 + 3 * 3,
    }


@pytest.mark.parametrize("late", [FuseAttention, FuseGatedMlp])
def test_canonical_spelling_comes_first(late: type) -> None:
    assert not late()(traced()).changed


def test_norms_come_before_their_residual() -> None:
    program = traced()
    Canonicalize()(program)
    assert not FuseResidualNorm()(program).changed
    FuseRmsNorm()(program)
    assert FuseResidualNorm()(program).changed


def test_other_orders_give_the_same_values() -> None:
    program = traced()
    want = runs(program)
    for make in (Canonicalize, FuseGatedMlp, FuseAttention, FuseRmsNorm, FuseResidualNorm):
        assert make()(program).changed
        assert differing(want, runs(program)) == []
