"""Element by element: arithmetic, comparisons, logic, activations. `SIMPLE` has those that are one expression."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from pocketphi.targets.coreml.kernels.arguments import Parameter, number

_ONE = (
    *("abs", "acos", "asin", "atan", "atanh", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "logical_not"),
    *("round", "sigmoid", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh"),
)
_TWO = (
    *("add", "sub", "mul", "pow", "logical_and", "logical_or", "logical_xor"),
    *("not_equal", "less", "less_equal", "greater", "greater_equal"),
)
"""Functions of one and of two tensors that torch calls as MIL does. `round` goes to the even one of two neighbours."""


def _of_one(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """A function of torch under the parameter's name in MIL."""
    return lambda x: function(x)


def _of_two(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x, y: function(x, y)


SIMPLE: Mapping[str, Callable[..., Tensor]] = {
    **{name: _of_one(getattr(torch, name)) for name in _ONE},
    **{name: _of_two(getattr(torch, name)) for name in _TWO},
    "equal": _of_two(torch.eq),
    "mod": _of_two(torch.remainder),  # x - floor(x / y) · y: the sign of y
    "floor_div": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "maximum": lambda x, y: torch.maximum(*_same(x, y)),
    "minimum": lambda x, y: torch.minimum(*_same(x, y)),
    "select": lambda cond, a, b: torch.where(cond, a, b),
    "log": lambda x, epsilon=None: torch.log(x + number(epsilon, 1e-45)),
    "rsqrt": lambda x, epsilon=None: torch.rsqrt(x + number(epsilon, 1e-12)),
    "inverse": lambda x, epsilon=None: torch.reciprocal(x + number(epsilon, 1e-4)),
    "clip": lambda x, alpha, beta: x.clamp(float(alpha), float(beta)),
    "threshold": lambda x, alpha: x.clamp(min=float(alpha)),
    "linear_activation": lambda x, alpha, beta: x * float(alpha) + float(beta),
    "silu": _of_one(functional.silu),
    "softsign": _of_one(functional.softsign),
    "relu": lambda x: x.clamp(min=0),
    "relu6": lambda x: x.clamp(0, 6),
    "leaky_relu": lambda x, alpha: functional.leaky_relu(x, float(alpha)),
    "thresholded_relu": lambda x, alpha: torch.where(x >= float(alpha), x, torch.zeros_like(x)),
    "clamped_relu": lambda x, alpha, beta: torch.where(x >= 0, x, x * float(alpha)).clamp(max=float(beta)),
    "elu": lambda x, alpha: functional.elu(x, float(alpha)),
    "scaled_tanh": lambda x, alpha, beta: float(alpha) * torch.tanh(float(beta) * x),
    "sigmoid_hard": lambda x, alpha, beta: (x * float(alpha) + float(beta)).clamp(0, 1),
}


def _same(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def real_div(x: Tensor, y: Tensor) -> Tensor:
    """x / y; of integers the quotient without its fraction."""
    return torch.true_divide(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def cast(x: Tensor, dtype: str) -> Tensor:
    """To integers by cutting the fraction off; raises ValueError for a value that no integer of that type stands for."""
    if dtype == "bool":
        return x != 0
    if dtype in ("fp16", "fp32"):
        return x.float()
    if not x.is_floating_point():
        return x.long()
    if not torch.isfinite(x).all():
        raise ValueError(f"casts a value that is not finite to {dtype}")
    return x.double().trunc().long()


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """EXACT: x · Φ(x); the two approximations of arXiv:1606.08415, section 2."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return functional.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """A slope for each channel, axis 1 (or 0 of a tensor without a batch)."""
    return torch.where(x >= 0, x, x * _channels(alpha, x))


def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """A pair of parameters for each channel: α · log(1 + exp(β · x))."""
    return _channels(alpha, x) * softplus(_channels(beta, x) * x)


def _channels(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.view(-1, *[1] * (x.dim() - 2)) if x.dim() > 1 else parameter


# activations that were quantized at run time


def quantize(
    input: Tensor, scale: Tensor, zero_point: Parameter = None, axis: Parameter = None, output_dtype: str = "int8"
) -> Tensor:
    """clip(round(x / scale) + zero point), halves to the even one."""
    low, high = (-128, 127) if output_dtype == "int8" else (0, 255)
    zero = 0 if zero_point is None else _along(zero_point, input, axis)
    return (torch.round(input / _along(scale, input, axis)) + zero).clamp(low, high).long()


def dequantize(input: Tensor, scale: Tensor, zero_point: Parameter = None, axis: Parameter = None) -> Tensor:
    zero = 0 if zero_point is None else _along(zero_point, input, axis)
    return (input - zero) * _along(scale, input, axis)


def _along(parameter: Tensor, x: Tensor, axis: Parameter) -> Tensor:
    if parameter.dim() == 0 or axis is None:
        return parameter
    shape = [1] * x.dim()
    shape[int(axis.item())] = -1
    return parameter.view(shape)
