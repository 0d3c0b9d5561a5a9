"""Each kernel against coremltools' own evaluation of constants, and where that has none against torch or a written formula.

`ORACLE` cases are built with coremltools' builder on constant inputs, which makes it compute the value; `FORMULA` cases give
the expected value. Together they cover the whole table, which a test checks.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

logging.getLogger("coremltools").setLevel(logging.ERROR)
ct = pytest.importorskip("coremltools")

from coremltools.converters.mil.mil import Builder as mb  # noqa: E402, N813 - its usual name
from coremltools.converters.mil.mil import Function  # noqa: E402

from pocketphi.targets.coreml.kernels import KERNELS  # noqa: E402

rng = np.random.default_rng(0)


def f(*shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> Any:
    return np.abs(f(*shape)) + np.float32(0.1)


def unit(*shape: int) -> Any:
    return rng.uniform(-0.9, 0.9, shape).astype(np.float32)


def i(*values: int) -> Any:
    return np.array(values, np.int32)


def b(*values: int) -> Any:
    return np.array(values, bool)


X = f(2, 3, 4)
BOOLS = rng.random((2, 3)) > 0.5
IMAGE = f(1, 2, 5, 6)

ORACLE: list[tuple[str, dict[str, Any]]] = [
    *(
        (op, {"x": f(2, 3)})
        for op in ("abs", "atan", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "relu", "relu6")
    ),
    *(
        (op, {"x": f(2, 3)})
        for op in ("round", "sigmoid", "sign", "sin", "sinh", "softplus", "softsign", "square", "tan")
    ),
    *((op, {"x": f(2, 3)}) for op in ("tanh",)),
    ("round", {"x": np.array([0.5, 1.5, -2.5, 2.4], np.float32)}),
    *((op, {"x": unit(5)}) for op in ("acos", "asin", "atanh")),
    ("sqrt", {"x": positive(4)}),
    ("log", {"x": positive(4)}),
    ("rsqrt", {"x": positive(4), "epsilon": np.float32(0.25)}),
    ("inverse", {"x": positive(4), "epsilon": np.float32(0.25)}),
    *((op, {"x": f(2, 1, 3), "y": f(4, 1)}) for op in ("add", "sub", "mul", "real_div", "maximum", "minimum")),
    *(
        (op, {"x": i(-7, 7, 5), "y": i(2, -2, 5)})
        for op in ("add", "sub", "mul", "floor_div", "mod", "maximum", "minimum")
    ),
    *((op, {"x": np.float32([-7, 7, 5.5]), "y": np.float32([2, -2, 2])}) for op in ("floor_div", "mod")),
    ("pow", {"x": positive(4), "y": f(4)}),
    ("pow", {"x": i(2, 3), "y": i(3, 2)}),
    *(
        (op, {"x": i(1, 2, 3), "y": i(3, 2, 1)})
        for op in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
    ),
    *((op, {"x": BOOLS, "y": ~BOOLS[:1]}) for op in ("logical_and", "logical_or", "logical_xor")),
    ("logical_not", {"x": BOOLS}),
    ("select", {"cond": BOOLS, "a": f(2, 3), "b": f(2, 3)}),
    ("cast", {"x": np.float32([1.7, -1.7, 0]), "dtype": "int32"}),
    ("cast", {"x": i(0, 3), "dtype": "bool"}),
    ("cast", {"x": i(0, 3), "dtype": "fp32"}),
    ("clip", {"x": f(9), "alpha": np.float32(-0.5), "beta": np.float32(0.5)}),
    ("threshold", {"x": f(9), "alpha": np.float32(0.2)}),
    ("thresholded_relu", {"x": f(9), "alpha": np.float32(0.2)}),
    ("linear_activation", {"x": f(9), "alpha": np.float32(2), "beta": np.float32(1)}),
    ("leaky_relu", {"x": f(9), "alpha": np.float32(0.2)}),
    ("elu", {"x": f(9), "alpha": np.float32(0.7)}),
    ("prelu", {"x": f(1, 3, 4), "alpha": f(3)}),
    ("clamped_relu", {"x": f(9), "alpha": np.float32(0.2), "beta": np.float32(0.4)}),
    ("scaled_tanh", {"x": f(9), "alpha": np.float32(2), "beta": np.float32(0.4)}),
    ("sigmoid_hard", {"x": f(9), "alpha": np.float32(0.4), "beta": np.float32(0.4)}),
    ("softplus_parametric", {"x": f(1, 3, 4), "alpha": positive(3), "beta": positive(3)}),
    *(("gelu", {"x": f(9), "mode": mode}) for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")),
    # reductions
    *(
        (f"reduce_{op}", {"x": positive(2, 3, 4), "axes": axes, "keep_dims": keep})
        for op in ("sum", "mean", "max", "min", "prod", "sum_square", "l1_norm", "l2_norm", "log_sum", "log_sum_exp")
        for axes, keep in ((i(-1), True), (i(0, 2), False))
    ),
    ("reduce_sum", {"x": i(1, 2, 3), "axes": i(0), "keep_dims": False}),
    ("reduce_argmax", {"x": f(3, 4), "axis": -1, "keep_dims": True}),
    ("reduce_argmin", {"x": f(3, 4), "axis": 0, "keep_dims": False}),
    ("cumsum", {"x": f(3, 4), "axis": 1, "exclusive": False, "reverse": False}),
    ("cumsum", {"x": f(3, 4), "axis": 0, "exclusive": True, "reverse": True}),
    ("topk", {"x": f(3, 5), "k": 2, "axis": -1, "ascending": False}),
    ("topk", {"x": f(3, 5), "k": 2, "axis": 0, "ascending": True}),
    ("argsort", {"x": f(3, 5), "axis": 1, "ascending": True}),
    ("softmax", {"x": f(3, 5), "axis": 0}),
    ("layer_norm", {"x": f(2, 3, 4), "axes": i(-1), "gamma": f(4), "beta": f(4), "epsilon": np.float32(1e-3)}),
    ("layer_norm", {"x": f(2, 3, 4), "axes": i(1, 2), "epsilon": np.float32(1e-3)}),
    ("l2_norm", {"x": f(2, 3, 4), "epsilon": np.float32(1e-3)}),
    # products
    ("linear", {"x": f(2, 4), "weight": f(3, 4), "bias": f(3)}),
    ("matmul", {"x": f(2, 3, 4), "y": f(4, 5)}),
    ("matmul", {"x": f(2, 4, 3), "y": f(2, 5, 4), "transpose_x": True, "transpose_y": True}),
    ("einsum", {"values": [f(1, 2, 3, 4), f(1, 4, 3, 5)], "equation": "nchw,nwhu->nchu"}),
    # moves
    ("identity", {"x": X}),
    ("reshape", {"x": X, "shape": i(4, -1)}),
    ("reshape", {"x": X, "shape": i(0, -1)}),
    ("transpose", {"x": X, "perm": i(2, 0, 1)}),
    ("expand_dims", {"x": X, "axes": i(0, -1)}),
    ("squeeze", {"x": f(1, 3, 1), "axes": i(0)}),
    ("squeeze", {"x": f(1, 3, 1)}),
    ("flatten2d", {"x": X, "axis": 2}),
    ("concat", {"values": [f(2, 3), f(2, 1)], "axis": -1}),
    ("concat", {"values": [f(2, 3), f(2, 3)], "axis": 1, "interleave": True}),
    ("stack", {"values": [f(2, 3), f(2, 3)], "axis": -1}),
    ("split", {"x": X, "num_splits": 2, "axis": 2}),
    ("split", {"x": X, "split_sizes": i(1, 2), "axis": 1}),
    ("slice_by_size", {"x": X, "begin": i(1, 0, 2), "size": i(1, 2, -1)}),
    ("slice_by_index", {"x": X, "begin": i(0, 1, 0), "end": i(2, 3, 4), "stride": i(1, 1, 2)}),
    ("slice_by_index", {"x": X, "begin": i(0, 2, 3), "end": i(2, 0, 0), "stride": i(1, -1, -2)}),
    (
        "slice_by_index",
        {"x": X, "begin": i(0, 0, -1), "end": i(0, 0, 0), "end_mask": b(1, 1, 0), "squeeze_mask": b(0, 0, 1)},
    ),
    (
        "slice_by_index",
        {"x": X, "begin": i(1, 2, 3), "end": i(2, 0, 0), "stride": i(1, -1, -1), "end_mask": b(0, 1, 1)},
    ),
    ("tile", {"x": f(2, 3), "reps": i(2, 3)}),
    ("reverse", {"x": X, "axes": i(0, -1)}),
    ("pad", {"x": f(2, 3), "pad": i(1, 0, 2, 1), "mode": "constant", "constant_val": np.float32(2)}),
    ("pad", {"x": f(2, 4), "pad": i(2, 1), "mode": "reflect"}),
    ("pad", {"x": f(2, 4), "pad": i(2, 1), "mode": "replicate"}),
    ("sliding_windows", {"x": f(2, 6), "axis": 1, "size": 3, "stride": 2}),
    ("pixel_shuffle", {"x": f(1, 4, 2, 3), "upscale_factor": 2}),
    ("pixel_unshuffle", {"x": f(1, 1, 4, 6), "downscale_factor": np.uint32(2)}),
    ("shape", {"x": X}),
    ("fill", {"shape": i(2, 3), "value": np.float32(1.5)}),
    ("fill_like", {"ref_tensor": X, "value": np.float32(1.5)}),
    ("range_1d", {"start": 2, "end": 9, "step": 3}),
    ("range_1d", {"start": 5, "end": -2, "step": -2}),
    ("band_part", {"x": f(4, 5), "lower": 1, "upper": 2}),
    ("band_part", {"x": f(4, 5), "lower": -1, "upper": 0}),
    ("one_hot", {"indices": i(0, 2, 1), "one_hot_vector_size": 3, "axis": -1, "on_value": 5, "off_value": -1}),
    ("one_hot", {"indices": i(0, 2, 1), "one_hot_vector_size": 4, "axis": 0}),
    ("non_zero", {"x": i(0, 3, 0, 4)}),
    # indexing
    ("gather", {"x": X, "indices": i(2, 0, 1), "axis": 1}),
    ("gather", {"x": X, "indices": np.int32([[0, 1], [1, 0]]), "axis": 0}),
    ("gather", {"x": X, "indices": np.int32([[0, 1], [2, 2]]), "axis": 1, "batch_dims": 1}),
    ("gather_along_axis", {"x": f(2, 3), "indices": np.int32([[0, 2], [1, 1]]), "axis": 1}),
    ("gather_nd", {"x": X, "indices": np.int32([[0, 1], [1, 2]]), "batch_dims": 0}),
    ("gather_nd", {"x": X, "indices": np.int32([[0, 1], [1, 2]]), "batch_dims": 1}),
    *(
        ("scatter", {"data": f(4, 3), "indices": i(2, 0), "updates": positive(2, 3), "axis": 0, "mode": mode})
        for mode in ("update", "add", "sub", "mul", "div", "max", "min")
    ),
    (
        "scatter_along_axis",
        {"data": f(2, 3), "indices": np.int32([[2], [0]]), "updates": f(2, 1), "axis": 1, "mode": "add"},
    ),
    ("scatter_nd", {"data": f(4, 3), "indices": np.int32([[1], [3]]), "updates": f(2, 3), "mode": "update"}),
]


def wrapped(values: Any) -> Any:
    """A numpy input as kernels get it."""
    if isinstance(values, (list, tuple)):
        return [wrapped(v) for v in values]
    if isinstance(values, str) or values is None:
        return values
    tensor = torch.from_numpy(np.ascontiguousarray(values)).reshape(np.shape(values))
    return tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.long()


def run(op: str, inputs: dict[str, Any]) -> list[torch.Tensor]:
    result = KERNELS[op](**{name: wrapped(value) for name, value in inputs.items()})
    return list(result) if isinstance(result, tuple) else [result]


def oracle(op: str, inputs: dict[str, Any]) -> list[Any]:
    with Function({}, opset_version=ct.target.iOS18):
        made = getattr(mb, op)(**inputs)
    return [v.val for v in (made if isinstance(made, (list, tuple)) else [made])]


@pytest.mark.parametrize(("op", "inputs"), ORACLE, ids=[f"{n}-{op}" for n, (op, _) in enumerate(ORACLE)])
def test_as_coremltools_evaluates_it(op: str, inputs: dict[str, Any]) -> None:
    expected = oracle(op, inputs)
    assert all(value is not None for value in expected), "coremltools does not evaluate this: give a formula"
    came = run(op, inputs)
    assert len(came) == len(expected)
    for mine, theirs in zip(came, expected):
        compare(mine, torch.from_numpy(np.asarray(theirs)))


def compare(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    """Integers and truth values exactly; floats within a few roundings of float32 of sums of at most a hundred terms."""
    assert list(mine.shape) == list(theirs.shape)
    assert mine.is_floating_point() == theirs.is_floating_point()
    torch.testing.assert_close(
        mine.double(), theirs.double(), rtol=1e-5, atol=1e-5 if theirs.is_floating_point() else 0
    )
