"""Each kernel against coremltools' own evaluation of constants, and where that has none against torch or a written formula.

`ORACLE` cases are built with coremltools' builder on constant inputs, which makes it compute the value; `FORMULA` cases give
the expected value. Together they cover the whole table, which a test checks.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

logging.getLogger("coremltools").setLevel(logging.ERROR)
ct = pytest.importorskip("coremltools")

from coremltools.converters.mil.mil import Builder as mb  # noqa: E402, N813 - its usual name
from coremltools.converters.mil.mil import Function  # noqa: E402
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry  # noqa: E402

from pocketphi.targets.coreml.kernels import KERNELS, MOVES, VIEWS  # noqa: E402

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
    ("prelu", {"x": f(1, 3, 4, 2), "alpha": f(3)}),
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
    ("reshape", {"x": X, "shape": i(0, -1, 2)}),
    ("transpose", {"x": X, "perm": i(2, 0, 1)}),
    ("expand_dims", {"x": X, "axes": i(0, -1)}),
    ("squeeze", {"x": f(1, 3, 1), "axes": i(0)}),
    ("squeeze", {"x": f(1, 3, 1)}),
    ("flatten2d", {"x": X, "axis": 2}),
    ("concat", {"values": [f(2, 3), f(2, 1)], "axis": -1}),
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
    ("shape", {"x": X}),
    ("fill", {"shape": i(2, 3), "value": np.float32(1.5)}),
    ("fill_like", {"ref_tensor": X, "value": np.float32(1.5)}),
    ("range_1d", {"start": 2, "end": 9, "step": 3}),
    ("range_1d", {"start": 5, "end": -2, "step": -2}),
    ("band_part", {"x": f(4, 5), "lower": 1, "upper": 2}),
    ("band_part", {"x": f(4, 5), "lower": -1, "upper": 0}),
    ("non_zero", {"x": i(0, 3, 0, 4)}),
    # indexing
    ("gather", {"x": X, "indices": i(2, 0, 1), "axis": 1}),
    ("gather", {"x": X, "indices": np.int32([[0, 1], [1, 0]]), "axis": 0}),
    ("gather", {"x": X, "indices": np.int32([[0, 1], [2, 2]]), "axis": 1, "batch_dims": 1}),
    ("gather_along_axis", {"x": f(2, 3), "indices": np.int32([[0, 2], [1, 1]]), "axis": 1}),
    (
        "scatter_along_axis",
        {"data": f(2, 3), "indices": np.int32([[2], [0]]), "updates": f(2, 1), "axis": 1, "mode": "update"},
    ),
    ("quantize", {"input": f(2, 3), "scale": np.float32(0.02), "zero_point": np.int8(3), "output_dtype": "int8"}),
    ("quantize", {"input": f(2, 3), "scale": positive(3), "axis": 1, "output_dtype": "uint8"}),
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
        compare(mine, torch.from_numpy(np.array(theirs)))


def compare(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    """Integers and truth values exactly; floats within a few roundings of float32 of sums of at most a hundred terms."""
    assert list(mine.shape) == list(theirs.shape)
    assert mine.is_floating_point() == theirs.is_floating_point()
    torch.testing.assert_close(
        mine.double(), theirs.double(), rtol=1e-5, atol=1e-5 if theirs.is_floating_point() else 0
    )


def direct(
    x: Any, window: Sequence[int], steps: Sequence[int], pads: Any, of: Callable[[Any], Any], fill: float
) -> Any:
    """`of` each window of x [B, C, H, W] padded by (before, after) pairs: a reference written for reading."""
    padded = np.pad(x, [(0, 0), (0, 0), *pads], constant_values=fill)
    counts = [(size - k) // s + 1 for size, k, s in zip(padded.shape[2:], window, steps)]
    return np.array(
        [
            [of(padded[:, :, r * steps[0] :, c * steps[1] :][:, :, : window[0], : window[1]]) for c in range(counts[1])]
            for r in range(counts[0])
        ]
    ).transpose(2, 3, 0, 1)


def convolved(x: Any, weight: Any, steps: Sequence[int], pads: Any, dilation: int = 1) -> Any:
    reach = [dilation * (k - 1) + 1 for k in weight.shape[2:]]
    return direct(
        x, reach, steps, pads, lambda w: np.einsum("bchw,ochw->bo", w[:, :, ::dilation, ::dilation], weight), 0.0
    )


def attention(q: Any, k: Any, v: Any, mask: Any) -> Any:
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


Q, K, V = f(1, 2, 3, 4), f(1, 2, 5, 4), f(1, 2, 5, 6)
ATTEND = np.tril(np.ones((3, 5), bool), 1)
ADDED = f(1, 1, 3, 5)
WEIGHT, GROUPED = f(3, 2, 3, 2), f(4, 1, 2, 2)
D, U = f(4, 3), positive(2, 3)
SIZES = i(3, 2)
UPDATED = X.copy()
UPDATED[1, ::2, 1:3] = 7


def rows(change: Callable[[Any, Any], Any]) -> Any:
    """D with rows 2 and 0 combined with the updates."""
    made = D.copy()
    made[2], made[0] = change(D[2], U[0]), change(D[0], U[1])
    return made


FORMULA: list[tuple[str, dict[str, Any], Any]] = [
    ("silu", {"x": X}, X / (1 + np.exp(-X))),
    (
        "dequantize",
        {"input": i(1, -3), "scale": np.float32([0.5, 2]), "zero_point": i(1, 2), "axis": 0},
        np.float32([0, -10]),
    ),
    ("cumsum", {"x": i(1, 2, 4), "axis": 0, "exclusive": True, "reverse": True}, i(6, 4, 0)),
    ("concat", {"values": [i(1, 2), i(3, 4)], "axis": 0, "interleave": True}, i(1, 3, 2, 4)),
    ("sliding_windows", {"x": i(1, 2, 3, 4, 5), "axis": 0, "size": 3, "stride": 2}, np.int32([[1, 2, 3], [3, 4, 5]])),
    ("pixel_shuffle", {"x": np.arange(4).reshape(1, 4, 1, 1), "upscale_factor": 2}, np.arange(4).reshape(1, 1, 2, 2)),
    (
        "pixel_unshuffle",
        {"x": np.arange(4).reshape(1, 1, 2, 2), "downscale_factor": 2},
        np.arange(4).reshape(1, 4, 1, 1),
    ),
    (
        "one_hot",
        {"indices": i(0, 2), "one_hot_vector_size": 3, "on_value": 5, "off_value": -1},
        [[5, -1, -1], [-1, -1, 5]],
    ),
    ("one_hot", {"indices": i(0, 2), "one_hot_vector_size": 3, "axis": 0}, [[1, 0], [0, 0], [0, 1]]),
    ("gather_nd", {"x": X, "indices": np.int32([[0, 1], [1, 2]]), "batch_dims": 0}, X[[0, 1], [1, 2]]),
    ("gather_nd", {"x": X, "indices": np.int32([[0, 1], [1, 2]]), "batch_dims": 1}, X[[0, 1], [0, 1], [1, 2]]),
    *(
        ("scatter", {"data": D, "indices": i(2, 0), "updates": U, "axis": 0, "mode": mode}, rows(change))
        for mode, change in (
            ("update", lambda d, u: u),
            ("add", lambda d, u: d + u),
            ("sub", lambda d, u: d - u),
            ("mul", lambda d, u: d * u),
            ("div", lambda d, u: d / u),
            ("max", np.maximum),
            ("min", np.minimum),
        )
    ),
    ("scatter", {"data": D, "indices": i(2, 0), "updates": U}, rows(lambda d, u: d + u)),
    (
        "scatter_along_axis",
        {"data": i(1, 2, 3), "indices": i(2, 2), "updates": i(10, 20), "axis": 0, "mode": "add"},
        i(1, 2, 33),
    ),
    ("scatter_nd", {"data": D, "indices": np.int32([[2], [0]]), "updates": U, "mode": "update"}, rows(lambda d, u: u)),
    (
        "slice_update",
        {"x": X, "update": np.full((2, 2), 7, np.float32), "begin": i(1, 0, 1), "end": i(0, 3, 3), "stride": i(1, 2, 1)}
        | {"squeeze_mask": b(1, 0, 0)},
        UPDATED,
    ),
    (
        "slice_update",
        {"x": i(1, 2, 3, 4), "update": i(8, 9), "begin": i(3), "end": i(0), "stride": i(-2)},
        i(1, 9, 3, 8),
    ),
    (
        "scaled_dot_product_attention",
        {"query": Q, "key": K, "value": V, "attn_mask": ATTEND},
        attention(Q, K, V, ATTEND),
    ),
    ("scaled_dot_product_attention", {"query": Q, "key": K, "value": V, "attn_mask": ADDED}, attention(Q, K, V, ADDED)),
    (
        "batch_norm",
        {"x": IMAGE, "mean": np.float32([1, 2]), "variance": np.float32([4, 9])}
        | {"gamma": np.float32([2, 3]), "beta": np.float32([0, 1]), "epsilon": 0.0},
        (IMAGE - np.float32([1, 2]).reshape(2, 1, 1)) + np.float32([0, 1]).reshape(2, 1, 1),
    ),
    (
        "instance_norm",
        {"x": IMAGE, "gamma": np.float32([1, 2]), "beta": np.float32([0, 1]), "epsilon": np.float32(1e-3)},
        (IMAGE - IMAGE.mean((2, 3), keepdims=True))
        / np.sqrt(IMAGE.var((2, 3), keepdims=True) + 1e-3)
        * np.float32([1, 2]).reshape(2, 1, 1)
        + np.float32([0, 1]).reshape(2, 1, 1),
    ),
    (
        "local_response_norm",
        {"x": IMAGE, "size": 1, "alpha": 0.5, "beta": 2.0, "k": 1.5},
        IMAGE / (1.5 + 0.5 * IMAGE**2) ** 2,
    ),
    # convolution: 5 × 6 with a kernel of 3 × 2
    ("conv", {"x": IMAGE, "weight": WEIGHT, "bias": f(3) * 0}, convolved(IMAGE, WEIGHT, (1, 1), [(0, 0), (0, 0)])),
    (
        "conv",
        {"x": IMAGE, "weight": WEIGHT, "pad_type": "same", "strides": i(2, 1)},
        convolved(IMAGE, WEIGHT, (2, 1), [(1, 1), (0, 1)]),
    ),
    (
        "conv",
        {"x": IMAGE, "weight": WEIGHT, "pad_type": "same_lower", "strides": i(2, 1)},
        convolved(IMAGE, WEIGHT, (2, 1), [(1, 1), (1, 0)]),
    ),
    (
        "conv",
        {"x": IMAGE, "weight": WEIGHT, "pad_type": "custom", "pad": i(2, 0, 1, 3), "dilations": i(2, 2)},
        convolved(IMAGE, WEIGHT, (1, 1), [(2, 0), (1, 3)], dilation=2),
    ),
    (
        "conv",
        {"x": IMAGE, "weight": GROUPED, "groups": 2},
        np.concatenate(
            [convolved(IMAGE[:, g : g + 1], GROUPED[2 * g : 2 * g + 2], (1, 1), [(0, 0)] * 2) for g in (0, 1)], 1
        ),
    ),
    (
        "conv_transpose",
        {
            "x": np.float32([[[1, 2]]]),
            "weight": np.float32([[[1, 10, 100]]]),
            "strides": i(2),
            "bias": np.float32([0.5]),
        },
        np.float32([[[1.5, 10.5, 102.5, 20.5, 200.5]]]),
    ),
    (
        "conv_transpose",
        {"x": np.float32([[[1, 2]]]), "weight": np.float32([[[1, 10, 100]]]), "strides": i(2), "pad": i(1, 0)}
        | {"pad_type": "custom"},
        np.float32([[[10, 102, 20, 200]]]),
    ),
    (
        "conv_transpose",
        {"x": np.float32([[[1, 2]]]), "weight": np.float32([[[1, 10, 100]]]), "strides": i(2), "pad_type": "same"},
        np.float32([[[1, 10, 102, 20]]]),
    ),
    (
        "conv_transpose",
        {"x": np.float32([[[1, 2]]]), "weight": np.float32([[[1, 10, 100]]]), "strides": i(2), "pad": i(1, 1)}
        | {"pad_type": "custom", "output_shape": i(1, 1, 5)},
        np.float32([[[10, 102, 20, 200, 0]]]),
    ),
    # pooling
    (
        "max_pool",
        {"x": IMAGE, "kernel_sizes": SIZES, "strides": i(2, 2), "pad_type": "same"},
        direct(IMAGE, (3, 2), (2, 2), [(1, 1), (0, 0)], lambda w: w.max((2, 3)), -np.inf),
    ),
    (
        "max_pool",
        {"x": IMAGE, "kernel_sizes": SIZES, "strides": i(3, 2), "pad_type": "valid", "ceil_mode": True},
        direct(IMAGE, (3, 2), (3, 2), [(0, 1), (0, 0)], lambda w: w.max((2, 3)), -np.inf),
    ),
    (
        "avg_pool",
        {"x": IMAGE, "kernel_sizes": SIZES, "strides": i(2, 2), "pad_type": "custom", "pad": i(1, 1, 0, 0)},
        direct(IMAGE, (3, 2), (2, 2), [(1, 1), (0, 0)], lambda w: w.mean((2, 3)), 0.0),
    ),
    (
        "avg_pool",
        {"x": IMAGE, "kernel_sizes": SIZES, "strides": i(2, 2), "pad_type": "custom", "pad": i(1, 1, 0, 0)}
        | {"exclude_padding_from_average": True},
        direct(IMAGE, (3, 2), (2, 2), [(1, 1), (0, 0)], lambda w: np.nanmean(w, (2, 3)), np.nan),
    ),
    (
        "avg_pool",
        {"x": IMAGE, "kernel_sizes": SIZES, "strides": i(3, 2), "pad_type": "valid", "ceil_mode": True},
        direct(IMAGE, (3, 2), (3, 2), [(0, 1), (0, 0)], lambda w: np.nanmean(w, (2, 3)), np.nan),
    ),
    (
        "l2_pool",
        {"x": IMAGE, "kernel_sizes": SIZES, "strides": i(1, 2), "pad_type": "valid"},
        direct(IMAGE, (3, 2), (1, 2), [(0, 0), (0, 0)], lambda w: np.sqrt((w**2).sum((2, 3))), 0.0),
    ),
    # resizing
    (
        "upsample_nearest_neighbor",
        {"x": IMAGE, "scale_factor_height": 2, "scale_factor_width": 3},
        IMAGE.repeat(2, 2).repeat(3, 3),
    ),
    ("resize_nearest_neighbor", {"x": IMAGE, "target_size_height": 10, "target_size_width": 6}, IMAGE.repeat(2, 2)),
    *(
        (
            "upsample_bilinear",
            {"x": IMAGE, "scale_factor_height": 2.0, "scale_factor_width": 3.0, "align_corners": aligned},
            functional.interpolate(
                torch.from_numpy(IMAGE), scale_factor=(2, 3), mode="bilinear", align_corners=aligned
            ),
        )
        for aligned in (True, False)
    ),
    *(
        (
            "resize_bilinear",
            {
                "x": np.float32([[[0, 1], [0, 1]]]),
                "target_size_height": 2,
                "target_size_width": 4,
                "sampling_mode": mode,
            },
            np.float32([[expected, expected]]),
        )
        for mode, expected in (  # the examples of the operator's documentation
            ("STRICT_ALIGN_CORNERS", [0, 1 / 3, 2 / 3, 1]),
            ("DEFAULT", [0, 0.5, 1, 1]),
            ("OFFSET_CORNERS", [0.125, 0.375, 0.625, 0.875]),
            ("UNALIGN_CORNERS", [0, 0.25, 0.75, 1]),
        )
    ),
]


@pytest.mark.parametrize(("op", "inputs", "expected"), FORMULA, ids=[f"{n}-{c[0]}" for n, c in enumerate(FORMULA)])
def test_as_written_down(op: str, inputs: dict[str, Any], expected: Any) -> None:
    (came,) = run(op, inputs)
    compare(came, expected if isinstance(expected, torch.Tensor) else torch.from_numpy(np.array(expected)))


ELSEWHERE = {
    *("lstm", "gru", "rnn"),  # test_recurrent.py
    *("affine", "resample", "resize", "crop", "crop_resize", "reverse_sequence"),  # test_sampling.py
    *("depth_to_space", "space_to_depth", "space_to_batch", "batch_to_space"),
    "classify",  # test_blocks.py
}


def test_every_kernel_has_a_case() -> None:
    assert KERNELS.keys() == {case[0] for case in ORACLE} | {case[0] for case in FORMULA} | ELSEWHERE
    assert len(KERNELS) >= 60
    assert KERNELS.keys() >= VIEWS | MOVES


@pytest.mark.parametrize(
    ("op", "inputs", "message"),
    [
        ("gather", {"x": X, "indices": i(3), "axis": 1}, "index 3 is outside -3 … 2"),
        ("gather", {"x": X, "indices": i(-1), "axis": 1, "validate_indices": False}, "index -1 is outside 0 … 2"),
        ("gather_nd", {"x": X, "indices": np.int32([[0, 3]])}, "index 3 is outside -3 … 2"),
        ("gather_along_axis", {"x": D, "indices": np.int32([[9]]), "axis": 0}, "index 9 is outside"),
        ("scatter", {"data": D, "indices": i(4), "updates": D[:1], "axis": 0}, "index 4 is outside"),
        ("scatter", {"data": i(1), "indices": i(0), "updates": i(2), "mode": "div"}, "scatter mode 'div'"),
        ("scatter_nd", {"data": D, "indices": np.int32([[1]]), "updates": D[:2]}, r"updates \[2, 3\] for \[1, 3\]"),
        ("cast", {"x": np.float32([np.inf]), "dtype": "int32"}, "not finite"),
        ("slice_by_size", {"x": X, "begin": i(1, 0, 0), "size": i(2, 1, 1)}, "slice 1:3 of 2 along axis 0"),
        ("slice_by_index", {"x": X, "begin": i(0), "end": i(1)}, "1 begins and 1 ends"),
        (
            "slice_by_index",
            {"x": X, "begin": i(2, 0, 0), "end": i(0, 3, 4), "squeeze_mask": b(1, 0, 0)},
            "index 2 of 2 along axis 0",
        ),
        (
            "slice_update",
            {"x": X, "update": X[:, :, :2], "begin": i(0, 0, 3), "end": i(2, 3, 5)},
            r"an update \[2, 3, 2\] for a slice \[2, 3, 1\]",
        ),
        ("split", {"x": X, "num_splits": 2, "axis": 1}, "3 along axis 1 cannot be split into 2"),
        ("squeeze", {"x": X, "axes": i(0)}, "cannot be squeezed"),
        ("softmax", {"x": X, "axis": 3}, "axis 3 of a tensor with 3 axes"),
        ("reduce_sum", {"x": X, "axes": i(-4)}, r"axes \[-4\] of a tensor with 3 axes"),
        ("pad", {"x": D, "pad": i(3, 0), "mode": "reflect"}, "reflects"),
        ("pad", {"x": D, "pad": i(3, 0), "mode": "mirror"}, "pad mode 'mirror'"),
        ("conv", {"x": IMAGE, "weight": WEIGHT, "pad_type": "full"}, "pad_type 'full'"),
        (
            "resize_bilinear",
            {"x": IMAGE, "target_size_height": 1, "target_size_width": 1, "sampling_mode": "?"},
            "sampling mode",
        ),
    ],
)
def test_what_cannot_be_carried_out(op: str, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(op, inputs)


def test_negative_indices_count_from_the_end_before_ios17() -> None:
    (came,) = run("gather", {"x": X, "indices": i(-1, 0), "axis": 2})
    compare(came, torch.from_numpy(X[:, :, [-1, 0]]))


S, NONE = np.float32(2.5), np.zeros((0, 3), np.float32)
SMALL: list[tuple[str, dict[str, Any], Any]] = [  # no axes, one element, none
    ("gather", {"x": i(5, 6, 7), "indices": np.int32(1), "axis": 0}, np.int32(6)),
    ("gather", {"x": X, "indices": np.int32(1), "axis": 2}, X[:, :, 1]),
    ("gather", {"x": X, "indices": np.zeros(0, np.int32), "axis": 1}, X[:, :0]),
    ("gather", {"x": X, "indices": np.int32([[1], [0]]), "axis": 1, "batch_dims": 1}, X[[0, 1], [1, 0]][:, None]),
    ("gather", {"x": D[None], "indices": np.int32([2]), "axis": 1, "batch_dims": 1}, D[None, 2]),
    ("gather_nd", {"x": X, "indices": np.int32([1, 2])}, X[1, 2]),
    ("gather_nd", {"x": X[:0], "indices": np.zeros((0, 1), np.int32), "batch_dims": 1}, X[:0, 0]),
    (
        "gather_nd",
        {"x": X, "indices": np.int32([[[0], [2]], [[1], [1]]]), "batch_dims": 1},
        X[[[0], [1]], [[0, 2], [1, 1]]],
    ),
    ("concat", {"values": [np.int32(4), np.int32(5)], "axis": 0}, i(4, 5)),
    ("concat", {"values": [np.int32(4), i(5, 6)], "axis": 0}, i(4, 5, 6)),
    ("concat", {"values": [np.int32(4)], "axis": 0}, i(4)),
    ("concat", {"values": [D, D[:0]], "axis": 0}, D),
    ("stack", {"values": [S, S], "axis": 0}, np.float32([2.5, 2.5])),
    ("shape", {"x": S}, np.zeros(0, np.int32)),
    ("shape", {"x": NONE}, i(0, 3)),
    ("squeeze", {"x": np.float32([[2.5]])}, S),
    ("squeeze", {"x": i(3), "axes": i(0)}, np.int32(3)),
    ("squeeze", {"x": D}, D),
    ("expand_dims", {"x": S, "axes": i(0)}, np.float32([2.5])),
    ("expand_dims", {"x": S, "axes": i(0, -1)}, np.float32([[2.5]])),
    ("expand_dims", {"x": NONE, "axes": i(1)}, NONE[:, None]),
    ("reshape", {"x": S, "shape": i(1, 1)}, np.float32([[2.5]])),
    ("reshape", {"x": np.float32([2.5]), "shape": np.zeros(0, np.int32)}, S),
    ("reshape", {"x": NONE, "shape": i(0, 1, 3)}, NONE[:, None]),
    ("flatten2d", {"x": np.zeros((0, 2, 3), np.float32), "axis": 1}, np.zeros((0, 6))),
    ("transpose", {"x": S, "perm": np.zeros(0, np.int32)}, S),
    ("slice_by_index", {"x": i(7), "begin": i(0), "end": i(1), "squeeze_mask": b(1)}, np.int32(7)),
    ("slice_by_index", {"x": D, "begin": i(2, 0), "end": i(2, 3)}, D[2:2]),
    ("tile", {"x": i(3), "reps": i(0)}, np.zeros(0, np.int32)),
    ("fill", {"shape": np.zeros(0, np.int32), "value": S}, S),
    ("range_1d", {"start": np.int32(2), "end": np.int32(2), "step": np.int32(1)}, np.zeros(0, np.int32)),
    ("split", {"x": i(1, 2), "split_sizes": i(2), "axis": 0}, i(1, 2)),
    ("reduce_sum", {"x": NONE, "axes": i(0), "keep_dims": False}, np.zeros(3)),
    ("reduce_prod", {"x": np.int32(3), "axes": None}, np.int32(3)),
    ("one_hot", {"indices": np.int32(1), "one_hot_vector_size": 3}, i(0, 1, 0)),
    ("softmax", {"x": NONE, "axis": 1}, NONE),
    ("linear", {"x": NONE, "weight": D}, np.zeros((0, 4))),
    ("matmul", {"x": NONE, "y": D.T}, np.zeros((0, 4))),
    ("non_zero", {"x": NONE}, np.zeros((0, 2), np.int32)),
    *((op, {"x": S}, getattr(np, name)(S)) for op, name in (("exp", "exp"), ("floor", "floor"), ("square", "square"))),
    *((op, {"x": NONE}, NONE) for op in ("exp", "relu", "gelu", "softplus", "sigmoid", "erf", "round")),
    *(
        (op, {"x": np.int32(7), "y": np.int32(2)}, expected)
        for op, expected in (("floor_div", 3), ("mod", 1), ("sub", 5))
    ),
    ("add", {"x": NONE, "y": S}, NONE),
    ("select", {"cond": np.bool_(True), "a": S, "b": NONE}, np.zeros((0, 3))),
    ("cast", {"x": np.float32(2.9), "dtype": "int32"}, np.int32(2)),
    ("clip", {"x": S, "alpha": np.float32(0), "beta": np.float32(1)}, np.float32(1)),
]


@pytest.mark.parametrize(("op", "inputs", "expected"), SMALL, ids=[f"{n}-{c[0]}" for n, c in enumerate(SMALL)])
def test_without_axes_and_without_elements(op: str, inputs: dict[str, Any], expected: Any) -> None:
    (came,) = run(op, inputs)
    compare(came, torch.from_numpy(np.array(expected)))


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("tile", {"x": i(1), "reps": i(2**31 - 1)}),
        ("fill", {"shape": i(2**20, 2**20)}),
        ("range_1d", {"start": np.int32(0), "end": np.int32(2**31 - 1), "step": np.int32(1)}),
        ("pad", {"x": D, "pad": i(2**30, 0)}),
        ("one_hot", {"indices": i(0), "one_hot_vector_size": 2**30}),
        ("upsample_nearest_neighbor", {"x": IMAGE, "scale_factor_width": np.float32(1e9)}),
        ("resize_bilinear", {"x": IMAGE, "target_size_height": 2**30, "target_size_width": 1}),
    ],
)
def test_what_no_memory_can_be_made_for(op: str, inputs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="more than 536,870,912 elements"):
        run(op, inputs)


def test_a_text_that_is_left_out_is_what_coremltools_says() -> None:
    """By operator and version: the defaults of modes, directions and spellings; numbers are compared by the cases above."""
    seen = 0
    for kind in KERNELS:
        ours = inspect.signature(KERNELS[kind]).parameters
        for version in SSAOpRegistry.core_ops.get(kind, {}).values():
            with contextlib.suppress(AttributeError, TypeError):  # defaults that depend on the operation's inputs
                theirs = dict(version.default_inputs(object())._default_inputs)
                texts = {name: value for name, value in theirs.items() if isinstance(value, str)}
                seen += len(texts)
                plain = {name: ours[name].default or value for name, value in texts.items()}  # "" is not looked at
                assert plain == texts, kind
    assert seen > 30
