"""The epsilon of each norm of a package, read back from its operations: it moves no logit where hidden values are large, as in
a model of random weights. Both spellings of `norms.py` are understood, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from pocketphi.targets.base import Check
from pocketphi.targets.coreml.mlpackage import MLPackage, Operation
from pocketphi.targets.coreml.raw import Raw

Made = Mapping[str, Operation]
"""The operations of a function by the names of their values."""


def epsilon_check(package: MLPackage, epsilon: float) -> Check:
    """Every norm of every function adds the model's epsilon, as float32 has it or as the square of a float16."""
    wanted = float(np.float32(epsilon)), float(np.float16(math.sqrt(epsilon))) ** 2
    count, odd = 0, []
    for function in package.functions.values():
        made = {name: op for op in function.operations for name, _ in op.outputs}
        for op in function.operations:
            if op.kind == "rsqrt":
                count += 1
                found = _epsilon(op, made)
                odd += [] if found in wanted else [f"{op.name} in {function.name}: {found:.3g}, not {epsilon:.3g}"]
    detail = f"first {odd[0]}" if odd else f"{count} norms"
    return Check("norms with another epsilon", len(odd), 0, detail)


def _epsilon(rsqrt: Operation, made: Made) -> float:
    """What is added to the mean of x², in units of x²; NaN where it is none of the two spellings."""
    try:
        total = _source(rsqrt, "x", made)
        if total.kind == "reduce_mean":
            return _number(rsqrt, "epsilon", made)
        # mean(z²) + (root of epsilon / m)², z = x / m, m = max|x|, but at least a constant, for rows of zeros
        z = _source(_source(_source(total, "x", made), "x", made), "x", made)
        square = _source(total, "y", made)
        root, peak = _source(square, "y", made), _source(z, "y", made)
        largest = _source(peak, "x", made)
        size = _source(largest, "x", made)
        kinds = [op.kind for op in (total, square, root, z, peak, largest, size)]
        wanted = ["add", "mul", "real_div", "real_div", "maximum", "reduce_max", "abs"]
        spelled = kinds == wanted and _number(peak, "y", made) > 0
        same = (
            square.inputs["x"] == square.inputs["y"]
            and root.inputs["y"] == z.inputs["y"]
            and size.inputs == {"x": z.inputs["x"]}
        )
        return _number(root, "x", made) ** 2 if spelled and same else math.nan
    except (KeyError, IndexError):
        return math.nan


def _source(op: Operation, parameter: str, made: Made) -> Operation:
    return made[str(op.inputs[parameter][0])]


def _number(op: Operation, parameter: str, made: Made) -> float:
    value = op.inputs[parameter][0]
    found = made[value].attributes["val"] if isinstance(value, str) else value
    return float(found.tensor()) if isinstance(found, Raw) and found.count == 1 else math.nan
