"""Spearman's rank correlation against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from pocketphi.targets.tvm_arm.tune.rank import spearman


def test_order_is_all_that_counts() -> None:
    assert spearman([1, 2, 3, 4], [10, 11, 500, 501]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)


def test_by_hand() -> None:
    # d = 1, -1, 0, 0, 0: 1 - 6·2 / (5·24) = 0.9
    assert spearman([1, 2, 3, 4, 5], [2, 1, 3, 4, 5]) == pytest.approx(0.9)


def test_ties_share_a_rank() -> None:
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_nothing_to_rank() -> None:
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))
