"""How far a number that was found on a few examples may be from that of all such examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z = 1.959964
"""Of a normal distribution, 95 % lies within so many standard deviations."""


@dataclass(frozen=True)
class Figure:
    """value: found; low, high: its 95 % interval; count: examples, or what else `value` is a mean of; low and high are the
    value where nothing is known of its spread"""

    value: float
    low: float
    high: float
    count: int

    @property
    def yes(self) -> int:
        """Of a share: how many examples it is."""
        return round(self.value * self.count)


def share(yes: int, count: int) -> Figure:
    """A share of examples, with Wilson's interval (Wilson 1927, doi:10.1080/01621459.1927.10502953), which is right for few of
    them too, and at 0 and 1."""
    found, square = yes / count, Z * Z
    middle = (found + square / (2 * count)) / (1 + square / count)
    half = Z / (1 + square / count) * math.sqrt(found * (1 - found) / count + square / (4 * count * count))
    return Figure(found, max(0.0, middle - half), min(1.0, middle + half), count)


def mean(values: Sequence[float], most: float = math.inf) -> Figure:
    """Of one value from 0 to `most` for each example, with Student's interval; examples, and not their tokens, are what is
    independent."""
    count = len(values)
    found = math.fsum(values) / count
    if count < 2:
        return Figure(found, found, found, count)
    deviation = math.sqrt(math.fsum((value - found) ** 2 for value in values) / (count - 1))
    half = student(count - 1) * deviation / math.sqrt(count)
    return Figure(found, max(0.0, found - half), min(most, found + half), count)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t (Abramowitz and Stegun 1964, 26.7.5; within 2 % from 3 degrees of freedom on)."""
    exact = {1: 12.7062, 2: 4.30265}
    if freedom in exact:
        return exact[freedom]
    z, v = Z, float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
