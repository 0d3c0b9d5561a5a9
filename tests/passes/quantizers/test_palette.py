"""Palettes by weighted k-means: as good as the optimum that is known, nearest entries, odd groups, and refusals."""

from __future__ import annotations

import pytest
import torch
from tiny_phi3 import TINY, normal

from pocketphi.graph.errors import InputError
from pocketphi.graph.lazy_weights import FloatWeight
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.passes.policy import policy_of
from pocketphi.passes.quantize_weights import QuantizedWeight
from pocketphi.passes.quantizers import Feedback, KMeans, Statistics, WeightedKMeans
from pocketphi.passes.quantizers.palette import nearest, tables

GAUSSIAN_OPTIMUM = 0.009497
"""Squared error of the best 16 values for a normal distribution, in units of its variance (J. Max, IRE Trans. IT-6, 1960)."""


def error(w: torch.Tensor, cost: torch.Tensor) -> float:
    lut = tables(w, cost)
    return float((cost * (lut.gather(1, nearest(w, lut).long()) - w).square()).sum() / (cost * w.square()).sum())


def test_the_optimum_of_a_normal_distribution_is_met() -> None:
    w = normal(4, 50_000)
    # of 50,000 values the error itself is known to about 1 %: √(2 / 50,000) times the spread of its terms
    assert error(w, torch.ones(50_000)) == pytest.approx(GAUSSIAN_OPTIMUM, rel=0.02)


def test_values_that_cost_more_get_more_of_the_table() -> None:
    """Half of the columns cost 100 times as much and hold values of their own: by cube roots, 13 entries to 3."""
    w = torch.cat((normal(1, 4000), normal(1, 4000, seed=1) + 20), 1)
    cost = torch.cat((torch.ones(4000), torch.full((4000,), 100.0)))
    dear, cheap = (int((tables(w, c)[0] > 10).sum()) for c in (cost, cost.flip(0)))
    assert dear >= 12
    assert cheap <= 4


@pytest.mark.parametrize("cost", [None, torch.rand(96, generator=torch.Generator().manual_seed(3)) + 0.1])
def test_tables_ascend_and_have_values_of_float16(cost: torch.Tensor | None) -> None:
    lut = tables(normal(8, 96), cost)
    assert bool((lut.diff(dim=1) >= 0).all())
    assert torch.equal(lut, lut.half().float())


def test_every_value_takes_its_nearest_entry() -> None:
    w, lut = normal(8, 96), tables(normal(8, 96))
    distance = (w[:, :, None] - lut[:, None]).abs()
    taken = distance.gather(2, nearest(w, lut).long()[..., None])[..., 0]
    assert bool((taken <= distance.amin(2) * (1 + 1e-6)).all())


@pytest.mark.parametrize("values", [[0.0], [0.25], [-3.0, 5.0], [0.0, 1.0, 2.0]])
def test_few_values_are_met_exactly(values: list[float]) -> None:
    w = torch.tensor(values).repeat(96)[:96].repeat(16, 1)
    for feedback in (None, Feedback.of(Statistics(torch.eye(96)))):
        made = WeightedKMeans(16).quantize(w, feedback).dequantize()
        # a histogram knows values to half of its bins
        assert float((made - w).abs().max()) <= (max(values) - min(values)) / 2048 + 2**-11 * max(map(abs, values))


@pytest.mark.parametrize("block", [0, 32])
@pytest.mark.parametrize("group", [1, 4, 16])
def test_groups_are_independent(group: int, block: int) -> None:
    """Any range of groups gives the same bytes: a target may ask for chunks of any size."""
    w, feedback = normal(32, 96), Feedback.of(Statistics(torch.eye(96) + 0.5), block)
    for given in (None, feedback):
        whole = WeightedKMeans(group, block).quantize(w, given)
        part = WeightedKMeans(group, block).quantize(w[16:], given)
        assert torch.equal(part.index, whole.index[16 // group :])
        assert torch.equal(part.lut, whole.lut[16 // group :])


def test_feedback_lowers_the_error_of_the_outputs() -> None:
    mix = normal(128, 128, seed=2) * torch.logspace(-1, 1, 128)
    w, x = normal(32, 128), normal(1024, 128, seed=3) @ mix
    feedback, fresh = Feedback.of(Statistics(x.T @ x / 1024)), normal(256, 128, seed=4) @ mix

    def output_error(given: Feedback | None) -> float:
        made = WeightedKMeans(16).quantize(w, given).dequantize()
        return float((fresh @ (made - w).T).square().mean())

    assert output_error(feedback) < output_error(None)


def test_each_block_of_columns_has_a_table_of_its_own() -> None:
    w = normal(32, 96)
    whole = KMeans(8, 32).quantize(w)
    assert whole.lut.shape == (4, 3, 16)
    for block in range(3):
        columns = slice(32 * block, 32 * block + 32)
        alone = KMeans(8).quantize(w[:, columns])
        assert torch.equal(whole.lut[:, block], alone.lut)
        assert torch.equal(whole.dequantize()[:, columns], alone.dequantize())
    assert torch.equal(
        KMeans(8, 32).quantize(w[:, :32].contiguous()).lut, KMeans(8).quantize(w[:, :32].contiguous()).lut
    )


def test_tables_of_blocks_follow_the_columns() -> None:
    """Columns in blocks of very different sizes, met in another order than theirs."""
    size = torch.logspace(-2, 1, 4).repeat_interleave(32)
    energy = torch.cat((torch.full((64,), 0.1), torch.full((64,), 3.0))) ** 2
    w, moment = normal(64, 128) * size, torch.diag(energy)
    feedback = Feedback.of(Statistics(moment), 32)
    assert feedback.order[0] >= 64
    made = WeightedKMeans(16, 32).quantize(w, feedback)
    for block in range(4):  # the inputs are independent: no column has to make up for another
        alone = tables(w[:, 32 * block : 32 * block + 32].reshape(4, -1), torch.ones(512))
        assert torch.allclose(made.lut[:, block], alone, rtol=2**-10)  # neighbours in float16
    lost = ((made.dequantize() - w) / size).square()
    whole = WeightedKMeans(16).quantize(w, Feedback.of(Statistics(moment)))
    assert float(((whole.dequantize() - w) / size).square().mean()) > 10 * float(lost.mean())


def test_a_weight_streams_group_by_group() -> None:
    source = FloatWeight(RandomWeights("random:tiny", TINY), "model.layers.0.mlp.gate_up_proj.weight")
    weight = QuantizedWeight(source, KMeans(16))
    chunks = list(weight.chunks())
    assert (chunks[0][0], chunks[-1][1]) == (0, source.parts[""].shape[0] // 16)
    assert {p: tuple(t.shape) for p, t in weight.read(1, 3).items()} == {"index": (2, 16, 32), "lut": (2, 16)}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_values_that_are_not_finite_or_too_large_are_refused(value: float) -> None:
    class Odd(RandomWeights):
        def read(self, name: str, start: int, stop: int) -> torch.Tensor:
            rows = super().read(name, start, stop).float()
            rows[18 - start, 3] = value
            return rows

    source = FloatWeight(Odd("random:tiny", TINY), "model.layers.0.mlp.gate_up_proj.weight")
    reason = "row 16 holds values too large" if value == 1e30 else "row 18 holds a value that is not finite"
    with pytest.raises(InputError, match=f"^model.layers.0.mlp.gate_up_proj.weight: {reason}"):
        QuantizedWeight(source, KMeans(16)).read(0, 2)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"^w: N=100 is not a multiple of --palette 16; choose one of 1, 2, 4$"):
        KMeans(16).check("w", 100, 64)
    with pytest.raises(InputError, match=r"^w: K=65: a row of 4-bit indices has to end with a byte$"):
        KMeans(1).check("w", 100, 65)
    with pytest.raises(InputError, match=r"^w: K=96 is not a multiple of block 64; choose --block 16 or 32$"):
        KMeans(1, 64).check("w", 100, 96)


def test_recipes_that_cannot_be_palettes() -> None:
    with pytest.raises(InputError, match="--recipe keep keeps the file's blocks; choose search or rtn"):
        policy_of("keep", palette=16)
    with pytest.raises(InputError, match="a table has no zero points; leave out --asymmetric"):
        policy_of("rtn", symmetric=False, palette=16)
    assert [policy_of(recipe, palette=16).calibrates for recipe in ("search", "rtn")] == [True, False]


def test_what_goes_into_the_key_of_the_cache() -> None:
    names = {kind(group).describe() for group in (8, 16) for kind in (KMeans, WeightedKMeans)}
    assert len(names) == 4
