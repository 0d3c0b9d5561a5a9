"""MIL operators: one small function each, with the operator's name and the parameters' own.

A kernel gets float32 (for fp16 and fp32), int64 (for all integers) and bool tensors, and str for texts; a list of tensors
for a parameter of several values. It raises ValueError for values that it cannot take. The interpreter brings its result to
the declared type, rounds it where that is fp16, and adds the names of operation and function to an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pocketphi.targets.coreml.kernels import (
    elementwise,
    images,
    indexing,
    moves,
    products,
    recurrent,
    reduction,
    sampling,
)

KERNELS: Mapping[str, Callable[..., Any]] = {
    **elementwise.SIMPLE,
    **{
        name: function
        for module in (elementwise, images, indexing, moves, products, recurrent, reduction, sampling)
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
    },
}
"""By operator: every public function of these modules is called as MIL calls what it computes."""

VIEWS = frozenset(
    {
        *("identity", "reshape", "transpose", "expand_dims", "squeeze", "flatten2d", "split", "reverse", "cast"),
        *("slice_by_index", "slice_by_size", "sliding_windows", "pad", "tile", "band_part", "slice_update"),
        *("pixel_shuffle", "pixel_unshuffle", "depth_to_space", "space_to_depth"),
        *("space_to_batch", "batch_to_space", "crop", "reverse_sequence"),
    }
)
"""Operators whose result may share memory with x."""

MOVES = (VIEWS - {"cast"}) | {"concat", "stack"}
"""Operators that only move values: nothing is converted before them nor rounded after."""

READ_STORED = frozenset({("linear", "weight"), ("matmul", "x"), ("matmul", "y"), ("gather", "x")})
"""Operators and their parameters that read a stored weight in pieces; all others get it decoded as a whole."""
