"""Spend a number of bytes on weights so that the sum of their costs is least: one choice for each (a knapsack problem with
multiple choices, by dynamic programming over sizes; Kellerer, Pferschy, Pisinger, Knapsack Problems, 2004, section 11.5).

Sizes are counted in steps so fine that rounding them up wastes less than a thousandth of the budget; what is left over in the
end buys what helps most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_WASTE = 1000
"""The part of a budget that rounding sizes up may waste is one in so many."""
_MOST_STEPS = 200_000


@dataclass(frozen=True)
class Choice:
    """One way to store a weight. cost: what it costs in quality; size: bytes."""

    cost: float
    size: int


def smallest(tables: Sequence[Sequence[Choice]]) -> int:
    """Bytes below which no choice comes. tables: the choices of each weight."""
    return sum(min(choice.size for choice in table) for table in tables)


def size_of(tables: Sequence[Sequence[Choice]], chosen: Sequence[int]) -> int:
    """Bytes of the choices, one by its number for each weight."""
    return sum(table[index].size for table, index in zip(tables, chosen))


def allocate(tables: Sequence[Sequence[Choice]], budget: int) -> list[int]:
    """The number of a choice for each weight: of least total cost, of at most `budget` bytes in all.

    The budget is at least `smallest(tables)`. The cost is at most that of the best choice for 0.999 of what the budget leaves
    above the smallest, and every result is the same for the same numbers.
    """
    least = [min(choice.size for choice in table) for table in tables]
    spare = budget - sum(least)
    if spare < 0:
        raise ValueError(f"a budget of {budget} bytes, {-spare} below the smallest")
    useful = min(spare, sum(max(choice.size for choice in table) - one for table, one in zip(tables, least)))
    step = max(1, useful // min(_MOST_STEPS, _WASTE * len(tables)))
    steps = useful // step
    best = np.zeros(steps + 1)
    taken = np.zeros((len(tables), steps + 1), dtype=np.int16)
    for number, (table, one) in enumerate(zip(tables, least)):
        found = np.full(steps + 1, np.inf)
        for index, choice in enumerate(table):
            more = -(-(choice.size - one) // step)
            if more > steps:
                continue
            cost = best[: steps + 1 - more] + choice.cost
            better = cost < found[more:]
            found[more:][better] = cost[better]
            taken[number, more:][better] = index
        best = found
    chosen, left = [0] * len(tables), steps
    for number in reversed(range(len(tables))):
        chosen[number] = int(taken[number, left])
        left -= -(-(tables[number][chosen[number]].size - least[number]) // step)
    return _rest_spent(tables, chosen, budget)


def _rest_spent(tables: Sequence[Sequence[Choice]], chosen: list[int], budget: int) -> list[int]:
    """What is left over goes, again and again, where it lowers the cost most."""
    left = budget - size_of(tables, chosen)
    while True:
        gains = [
            (table[chosen[number]].cost - choice.cost, -number, -index)
            for number, table in enumerate(tables)
            for index, choice in enumerate(table)
            if choice.size - table[chosen[number]].size <= left
        ]
        gain, number, index = max(gains)
        if gain <= 0:
            return chosen
        number, index = -number, -index
        left -= tables[number][index].size - tables[number][chosen[number]].size
        chosen[number] = index
