"""Bytes are spent where they help most: compared with trying all choices."""

from __future__ import annotations

import itertools
import random

import pytest

from pocketphi.passes.allocate import Choice, allocate, smallest


@pytest.mark.parametrize("seed", range(40))
def test_against_all_combinations(seed: int) -> None:
    generator = random.Random(seed)
    tables = [
        [Choice(generator.random(), generator.randrange(1, 1000)) for _ in range(generator.randrange(1, 6))]
        for _ in range(5)
    ]
    budget = generator.randrange(smallest(tables), smallest(tables) + 2000)
    combinations = [c for c in itertools.product(*tables) if sum(one.size for one in c) <= budget]
    chosen = [table[i] for table, i in zip(tables, allocate(tables, budget))]
    assert sum(one.size for one in chosen) <= budget
    assert sum(one.cost for one in chosen) == pytest.approx(min(sum(one.cost for one in c) for c in combinations))


def test_sizes_that_are_rounded_waste_less_than_a_thousandth() -> None:
    generator = random.Random(1)
    tables = [
        [Choice(2.0**-i, (i + 2) * 10_000_000 + generator.randrange(10_000)) for i in range(6)] for _ in range(40)
    ]
    least, most = smallest(tables), sum(max(one.size for one in table) for table in tables)
    for part in (0.1, 0.5, 0.9):
        budget = int(least + part * (most - least))
        taken = sum(table[i].size for table, i in zip(tables, allocate(tables, budget)))
        assert budget - 11_000_000 < taken <= budget  # no choice costs less than 10 MB more than the one before it


def test_what_cannot_be_met() -> None:
    with pytest.raises(ValueError, match="1 below the smallest"):
        allocate([[Choice(1.0, 5)]], 4)
