"""The scale search: never worse than rounding to nearest, and better for the inputs it was told about."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pocketphi.graph.errors import CompilerBug
from pocketphi.passes.quantizers import Feedback, RoundToNearest, ScaleSearch, Statistics
from pocketphi.passes.quantizers.in_turn import round_in_turn


def matrix(rows: int = 48, columns: int = 128, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=generator)
    w[3, 40] = 9.0  # an outlier
    w[5, 32:64] = 0.0  # a block of zeros
    return w


def inputs(columns: int = 128, seed: int = 1) -> torch.Tensor:
    """Correlated inputs of unequal size, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) * torch.logspace(-1, 1, columns)
    return torch.randn(1024, columns, generator=generator) @ mix


def feedback_of(x: torch.Tensor, block: int = 32) -> Feedback:
    return Feedback.of(Statistics(x.T @ x / x.shape[0]), block)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 32, 64])
def test_without_statistics_no_block_is_worse_than_rounding_to_nearest(block: int, symmetric: bool) -> None:
    w = matrix()
    errors = []
    for quantizer in (ScaleSearch(block, symmetric), RoundToNearest(block, symmetric)):
        made = quantizer.quantize(w)
        assert made.block == block
        errors.append((made.dequantize() - w).square().view(w.shape[0], -1, block).sum(-1))
    # the candidates contain a scale within 5 % of rounding to nearest's, refined: rounding noise apart it is at least as good
    assert (errors[0] <= errors[1] * 1.02 + 1e-12).all()
    assert errors[0].sum() < 0.95 * errors[1].sum()


@pytest.mark.parametrize("symmetric", [True, False])
def test_feedback_lowers_the_error_of_the_outputs(symmetric: bool) -> None:
    w, x = matrix(), inputs()
    feedback = feedback_of(x)
    fresh = inputs(seed=1)[torch.randperm(1024, generator=torch.Generator().manual_seed(5))]

    def error(made: torch.Tensor) -> float:
        return float((fresh @ (made - w).T).square().mean())

    plain = error(ScaleSearch(32, symmetric).quantize(w).dequantize())
    made = error(ScaleSearch(32, symmetric).quantize(w, feedback).dequantize())
    assert made < plain


def test_rows_are_independent() -> None:
    """Any row range gives the same bytes: a target may ask for chunks of any size."""
    w, x = matrix(), inputs()
    feedback = feedback_of(x)
    whole = ScaleSearch(32).quantize(w, feedback)
    part = ScaleSearch(32).quantize(w[10:20], feedback)
    assert torch.equal(part.q, whole.q[10:20])
    torch.testing.assert_close(part.scale, whole.scale[10:20], rtol=1e-6, atol=0)


def test_feedback_factor_is_what_its_docstring_says() -> None:
    x = inputs(32)
    moment = x.T @ x / x.shape[0]
    feedback = Feedback.of(Statistics(moment.triu()))  # the rest is not read
    order = feedback.order
    assert torch.equal(order, moment.diagonal().argsort(descending=True))
    mixing, cost = feedback.mixing.double(), feedback.cost[order].double()
    assert torch.equal(mixing, mixing.triu())
    assert torch.equal(mixing.diagonal(), torch.ones(32, dtype=torch.float64))
    damped = moment.double() + torch.eye(32) * 0.1 * moment.double().diagonal().mean()
    # computed in float64 and rounded to float32: entry i, j is a sum of up to 32 products with three rounded factors
    size = mixing.abs() @ torch.diag(cost) @ mixing.abs().T
    assert ((mixing @ torch.diag(cost) @ mixing.T - damped[order][:, order]).abs() <= 4 * 2**-24 * size).all()


@pytest.mark.parametrize("columns", [1088, 2080])
def test_the_factor_of_a_wide_layer_is_made_in_strips(columns: int) -> None:
    """In float64 and, from 2,048 columns on, in float32 and in the moment's own memory: as torch makes it of a copy."""
    made = torch.Generator().manual_seed(0)
    x = torch.randn(256, columns, generator=made) * torch.rand(columns, generator=made)
    moment = x.T @ x / 256
    kept, used = (Feedback.of(Statistics(moment.triu()), 32, consume) for consume in (False, True))
    damped = moment.double() if columns <= 2048 else moment.clone()
    damped.diagonal().add_(0.1 * damped.diagonal().mean() + 1e-12)
    reverse = kept.order.flip(0)
    factor = torch.linalg.cholesky(damped[reverse][:, reverse]).flip(0, 1)
    for made_so in (kept, used):
        assert torch.equal(made_so.order, kept.order)
        torch.testing.assert_close(made_so.mixing, (factor / factor.diagonal()).float(), rtol=0, atol=1e-5)
    assert torch.equal(kept.mixing, used.mixing)


def test_blocks_with_large_inputs_come_first_and_their_large_columns_first_of_all() -> None:
    energy = torch.tensor([1.0, 2.0, 9.0, 3.0, 5.0, 5.0, 0.0, 7.0])
    order = Feedback.of(Statistics(torch.diag(energy)), 2).order
    assert order.tolist() == [2, 3, 4, 5, 7, 6, 1, 0]  # of two that are equal the first


def test_feedback_of_other_blocks_is_not_taken() -> None:
    with pytest.raises(CompilerBug, match="blocks of 16"):
        ScaleSearch(16).quantize(matrix(), feedback_of(inputs(), 64))


def test_the_order_leaves_less_of_the_outputs_error() -> None:
    """What large inputs' columns lose, more columns make up for."""
    w, x = matrix(), inputs().flip(1)[:, torch.randperm(128, generator=torch.Generator().manual_seed(9))]
    feedback = feedback_of(x)
    moment = (x.T @ x / 1024).double() + torch.eye(128) * 0.1 * float(x.square().mean())
    lower = torch.linalg.cholesky(moment.flip(0, 1)).flip(0, 1)
    diagonal = lower.diagonal()
    unordered = replace(
        feedback, order=torch.arange(128), mixing=(lower / diagonal).float(), cost=diagonal.square().float()
    )

    def error(given: Feedback) -> float:
        return float((x @ (ScaleSearch(32).quantize(w, given).dequantize() - w).T).square().mean())

    assert error(feedback) < error(unordered)


def test_what_columns_lose_is_made_up_for_in_their_order() -> None:
    """Against GPTQ as its paper writes it, one column at a time in float64, by the Cholesky factor of the inverse."""
    w, x = matrix(), inputs()
    moment = x.T @ x / 1024
    feedback = Feedback.of(Statistics(moment), 32)
    order = feedback.order
    w, moment = w[:, order], moment[order][:, order]
    damped = moment.double() + torch.eye(128) * 0.1 * moment.double().diagonal().mean()
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    rest, want = w.double(), torch.empty(48, 128, dtype=torch.uint8)
    for k in range(128):
        q = (rest[:, k] / 0.25 + 8).round().clamp(0, 15)
        error = (rest[:, k] - (q - 8) * 0.25) / upper[k, k]
        rest[:, k:] -= error[:, None] * upper[k, k:]
        want[:, k] = q.to(torch.uint8)

    def nearest(column: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q = (column / 0.25 + 8).round().clamp(0, 15)
        return q, (q - 8) * 0.25

    made = round_in_turn(matrix(), feedback, 32, lambda _: nearest)[:, order]
    # a value within float32's rounding of the middle between two levels may go the other way, and its row then goes its own
    assert (made == want).all(1).float().mean() > 0.9


@pytest.mark.parametrize(("tokens", "cut"), [(40, 40), (40, 17), (200, 200), (200, 64)])
def test_statistics_of_inputs_are_the_plain_formulas(tokens: int, cut: int) -> None:
    """With fewer tokens than columns, and with more; in one piece and in several; over more than one strip of the moment."""
    exact = inputs(96)[:tokens]
    met = exact + torch.randn(exact.shape, generator=torch.Generator().manual_seed(3))
    w = matrix(columns=96)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pocketphi.passes.quantizers.base._STRIP", 40)
        feedback = Feedback.of(Statistics.of(met.split(cut), exact.split(cut)))
    x, missed = met.double(), (exact.double() - met.double()) / tokens
    order, cost = feedback.order, feedback.cost[feedback.order]
    moment = x.T @ x / tokens
    mean = moment.diagonal().mean() * torch.eye(96, dtype=torch.float64)
    mixing = feedback.mixing.double()
    size = (mixing.abs() * cost) @ mixing.abs().T
    # sums of `tokens` products in float32, then factors that are rounded to it
    bound = (x.abs().T @ x.abs() + 0.1 * mean)[order][:, order] + 4 * size
    missed_moment = (mixing * cost) @ mixing.T - (moment + 0.1 * mean)[order][:, order]
    assert (missed_moment.abs() <= 2**-24 * bound).all()
    shift = missed.T @ x @ torch.linalg.inv(moment + mean)
    want = w.double() + w.double() @ shift
    # the condition of a damped moment is at most its trace over its least eigenvalue, 1 + K
    bound = (tokens + 96) * 97 * 2**-24 * float((w.double() @ shift).norm())
    assert float((feedback.target(w) - want).norm()) <= bound


def test_a_layer_makes_up_for_what_was_lost_before_it() -> None:
    """Its inputs miss a part of the float model's that can be told from the rest: the shifted target gives W x̂ out of x."""
    w, exact = matrix(), torch.randn(4096, 128, generator=torch.Generator().manual_seed(2))
    met = exact.clone()
    met[:, :64] *= 0.8
    feedback = Feedback.of(Statistics(met.T @ met / 4096, (exact - met).T @ met / 4096), 32)

    def error(made: torch.Tensor) -> float:
        return float((met @ made.T - exact @ w.T).square().mean())

    # h = 0.64 there, 1 elsewhere: of the 0.25 that is wanted, 0.16 / (0.64 + 0.82) = 0.11 is given, for the text is short
    assert error(feedback.target(w)) == pytest.approx((1 - 0.11 / 0.25) ** 2 * error(w), rel=0.1)
    shifted = ScaleSearch(32).quantize(feedback.target(w), feedback).dequantize()
    unshifted = ScaleSearch(32).quantize(w, feedback_of(met)).dequantize()
    assert error(shifted) < 0.6 * error(unshifted)


def test_the_shift_is_what_its_docstring_says() -> None:
    x = inputs(32)
    moment, drift = x.T @ x / 1024, torch.randn(32, 32, generator=torch.Generator().manual_seed(7))
    shift = Feedback.of(Statistics(moment, drift)).shift
    assert shift is not None
    damped = moment.double() + torch.eye(32) * moment.double().diagonal().mean()
    want = drift.double() @ torch.linalg.inv(damped)
    # solved in float64, rounded to float32; the inverse here is as far off as the condition of H times float64's rounding
    torch.testing.assert_close(shift, want.float(), rtol=2**-22, atol=float(want.abs().max()) * 2**-22)


def test_no_drift_no_shift() -> None:
    x, w = inputs(), matrix()
    moment = x.T @ x / 1024
    still = Feedback.of(Statistics(moment, torch.zeros_like(moment)))
    assert torch.equal(still.target(w), w)
    assert torch.equal(still.mixing, Feedback.of(Statistics(moment)).mixing)


def test_zeros_stay_zeros_and_dead_inputs_do_no_harm() -> None:
    w, x = matrix(), inputs()
    x[:, 70] = 0.0  # a column that no input reaches
    made = ScaleSearch(32).quantize(torch.zeros_like(w), feedback_of(x))
    assert torch.equal(made.dequantize(), torch.zeros_like(w))
    assert torch.isfinite(ScaleSearch(32).quantize(w, feedback_of(x)).scale).all()


def test_a_scale_for_a_whole_row() -> None:
    """One scale a row; columns in panels, whose errors reach those behind as the errors of blocks do."""
    w, x = matrix(columns=160), inputs(160)
    feedback = feedback_of(x)
    made, plain = ScaleSearch(0).quantize(w, feedback), ScaleSearch(0).quantize(w)
    assert (made.scale.shape, made.block) == ((48, 1), 160)
    errors = [float((x @ (q.dequantize() - w).T).square().mean()) for q in (made, plain, RoundToNearest(0).quantize(w))]
    assert errors[0] < errors[1] < errors[2]
