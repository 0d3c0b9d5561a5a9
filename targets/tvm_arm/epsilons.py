"""The epsilon of each norm kernel, read back from a lowered module: it moves no logit where hidden values are large, as in a
model of random weights, and a built library does not show it any more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from tvm import IRModule, tirx
from tvm.ir import Call

from pocketphi.graph.errors import CompilerBug

_CHILDREN = ("body", "seq", "value", "a", "b", "args")
_ROOT = 'T.call_llvm_pure_intrin("float32", "llvm.sqrt"'


def require_epsilon(module: IRModule, epsilon: float) -> None:
    """Raise CompilerBug naming the first norm that takes the root of anything but a sum with the model's epsilon."""
    wanted = float(np.float32(epsilon))
    for variable, kernel in module.functions.items():
        name = variable.name_hint
        if name.startswith("norm_") and (added := _added(kernel.body)) != [wanted]:
            raise CompilerBug(f"{name} adds {added} to the mean of the squares, the model's epsilon is {epsilon}")


def _added(body: Any) -> list[float | None]:
    """What each square root of a kernel has added last: a constant, or None where that is none."""
    roots = [node.args[-1] for node in _within(body) if isinstance(node, Call) and str(node).startswith(_ROOT)]
    last = [root.b if isinstance(root, tirx.Add) else None for root in roots]
    return [float(np.float32(one.value)) if isinstance(one, tirx.FloatImm) else None for one in last]


def _within(node: Any) -> Iterator[Any]:
    yield node
    for name in _CHILDREN:
        child = getattr(node, name, None)
        if child is not None and not isinstance(child, (int, float, str)):
            for each in child if name in ("seq", "args") else [child]:
                yield from _within(each)
