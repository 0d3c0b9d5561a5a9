"""RMS norm and layer norm in float16, two ways."""

from __future__ import annotations

import math

import numpy as np

from pocketphi.targets.coreml.coremltools_parts import Var
from pocketphi.targets.coreml.emitter import Emitter

SMALLEST_PEAK = 2.0**-10
"""Rows whose largest value is below are divided by this instead: the division of a row of zeros."""


def rms_norm(e: Emitter, x: Var, weight: Var, eps: float, name: str) -> Var:
    """weight · x / sqrt(mean(x²) + eps) over the last axis of float16 [1, S, K]."""
    return (_max_scaled if e.form.norm == "max-scaled" else _in_float32)(e, x, weight, eps, name)


def layer_norm(e: Emitter, x: Var, weight: Var, bias: Var, eps: float, name: str) -> Var:
    """weight · (x - mean) / sqrt(variance + eps) + bias (arXiv:1607.06450, eq. 4): the RMS norm of x less its mean."""
    centred = (_centred if e.form.norm == "max-scaled" else _centred_in_float32)(e, x, name)
    return e.op("add", name, x=rms_norm(e, centred, weight, eps, f"{name}_scaled"), y=bias)


def _centred(e: Emitter, x: Var, name: str) -> Var:
    """x less its mean, which is taken of x / max|x|: a sum of many values leaves float16."""
    size = e.op("abs", f"{name}_abs", x=x)
    peak = e.op("reduce_max", f"{name}_max", x=size, axes=[-1], keep_dims=True)
    m = e.op("maximum", f"{name}_peak", x=peak, y=np.float16(SMALLEST_PEAK))
    z = e.op("real_div", f"{name}_z", x=x, y=m)
    share = e.op("reduce_mean", f"{name}_share", x=z, axes=[-1], keep_dims=True)
    return e.op("sub", f"{name}_centred", x=x, y=e.op("mul", f"{name}_mean", x=share, y=m))


def _centred_in_float32(e: Emitter, x: Var, name: str) -> Var:
    wide = e.op("cast", f"{name}_wide", x=x, dtype="fp32")
    mean = e.op("reduce_mean", f"{name}_mean", x=wide, axes=[-1], keep_dims=True)
    centred = e.op("sub", f"{name}_centred_wide", x=wide, y=mean)
    return e.op("cast", f"{name}_centred", x=centred, dtype="fp16")


def _max_scaled(e: Emitter, x: Var, weight: Var, eps: float, name: str) -> Var:
    """With m = max|x| and z = x / m: weight · z / sqrt(mean(z²) + eps / m²).

    Squares of a residual stream leave float16 (values of 300 do; trained models reach 20,000). z is at most 1 and mean(z²) at
    least 1/K, so that nothing overflows or vanishes whatever the accumulator. eps / m² is taken as (sqrt(eps) / m)².
    """
    size = e.op("abs", f"{name}_abs", x=x)
    peak = e.op("reduce_max", f"{name}_max", x=size, axes=[-1], keep_dims=True)
    m = e.op("maximum", f"{name}_peak", x=peak, y=np.float16(SMALLEST_PEAK))
    z = e.op("real_div", f"{name}_z", x=x, y=m)
    square = e.op("mul", f"{name}_square", x=z, y=z)
    mean = e.op("reduce_mean", f"{name}_mean", x=square, axes=[-1], keep_dims=True)
    root = e.op("real_div", f"{name}_root", x=np.float16(math.sqrt(eps)), y=m)
    least = e.op("mul", f"{name}_eps", x=root, y=root)
    total = e.op("add", f"{name}_total", x=mean, y=least)
    inverse = e.op("rsqrt", f"{name}_rsqrt", x=total)  # its own epsilon of 1e-12 is 0 in float16: total is at least 1/K
    unit = e.op("mul", f"{name}_unit", x=z, y=inverse)
    return e.op("mul", name, x=unit, y=weight)


def _in_float32(e: Emitter, x: Var, weight: Var, eps: float, name: str) -> Var:
    """The squares, their mean and its root in float32; a Neural Engine has no float32, so that it leaves at each norm."""
    wide = e.op("cast", f"{name}_wide", x=x, dtype="fp32")
    square = e.op("mul", f"{name}_square", x=wide, y=wide)
    mean = e.op("reduce_mean", f"{name}_mean", x=square, axes=[-1], keep_dims=True)
    inverse = e.op("rsqrt", f"{name}_rsqrt", x=mean, epsilon=np.float32(eps))
    unit = e.op("mul", f"{name}_unit", x=wide, y=inverse)
    narrow = e.op("cast", f"{name}_narrow", x=unit, dtype="fp16")
    return e.op("mul", name, x=narrow, y=weight)
