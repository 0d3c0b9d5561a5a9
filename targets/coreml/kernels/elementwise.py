"""Element by element: arithmetic, comparisons, logic, activations.

Every operator computes on float32 or int64 tensors; the interpreter brings the result to the declared type.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from pocketphi.targets.coreml.kernels.arguments import number


def add(x: Tensor, y: Tensor) -> Tensor:
    return x + y


def sub(x: Tensor, y: Tensor) -> Tensor:
    return x - y


def mul(x: Tensor, y: Tensor) -> Tensor:
    return x * y


def real_div(x: Tensor, y: Tensor) -> Tensor:
    """x / y; of integers the quotient without its fraction."""
    return torch.true_divide(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def floor_div(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode="floor")


def mod(x: Tensor, y: Tensor) -> Tensor:
    """x - floor(x / y) · y: the sign of y."""
    return torch.remainder(x, y)


def power(x: Tensor, y: Tensor) -> Tensor:
    return torch.pow(x, y)


def maximum(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(*_same(x, y))


def minimum(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(*_same(x, y))


def _same(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def equal(x: Tensor, y: Tensor) -> Tensor:
    return x == y


def not_equal(x: Tensor, y: Tensor) -> Tensor:
    return x != y


def less(x: Tensor, y: Tensor) -> Tensor:
    return x < y


def less_equal(x: Tensor, y: Tensor) -> Tensor:
    return x <= y


def greater(x: Tensor, y: Tensor) -> Tensor:
    return x > y


def greater_equal(x: Tensor, y: Tensor) -> Tensor:
    return x >= y


def logical_and(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_and(x, y)


def logical_or(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_or(x, y)


def logical_xor(x: Tensor, y: Tensor) -> Tensor:
    return torch.logical_xor(x, y)


def logical_not(x: Tensor) -> Tensor:
    return torch.logical_not(x)


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where cond, b elsewhere; all three broadcast."""
    return torch.where(cond, a, b)


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


# of one tensor


def unary(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of torch under the one parameter's name in MIL."""

    def kernel(x: Tensor) -> Tensor:
        return function(x)

    return kernel


def log(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    return torch.log(x + number(epsilon, 1e-45))


def rsqrt(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    return torch.rsqrt(x + number(epsilon, 1e-12))


def inverse(x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    return torch.reciprocal(x + number(epsilon, 1e-4))


def absolute(x: Tensor) -> Tensor:
    return torch.abs(x)


def square(x: Tensor) -> Tensor:
    return x * x


def sign(x: Tensor) -> Tensor:
    return torch.sign(x)


def rounded(x: Tensor) -> Tensor:
    """To the nearest integer, halves to the even one."""
    return torch.round(x)


def clip(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return x.clamp(number(alpha, 0), number(beta, 0))


# activations


def silu(x: Tensor) -> Tensor:
    return functional.silu(x)


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """EXACT: x · Φ(x); the two approximations of arXiv:1606.08415, section 2."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return functional.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def relu6(x: Tensor) -> Tensor:
    return x.clamp(0, 6)


def leaky_relu(x: Tensor, alpha: Tensor) -> Tensor:
    return functional.leaky_relu(x, number(alpha, 0.01))


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """A slope for each channel, axis 1 (or 0 of a tensor without a batch)."""
    return torch.where(x >= 0, x, x * _channels(alpha, x))


def elu(x: Tensor, alpha: Tensor) -> Tensor:
    return functional.elu(x, number(alpha, 1.0))


def clamped_relu(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return torch.where(x >= 0, x, x * number(alpha, 0)).clamp(max=number(beta, 0))


def thresholded_relu(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x >= number(alpha, 1.0), x, torch.zeros_like(x))


def threshold(x: Tensor, alpha: Tensor) -> Tensor:
    return x.clamp(min=number(alpha, 0))


def linear_activation(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return x * number(alpha, 1) + number(beta, 0)


def scaled_tanh(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return number(alpha, 1) * torch.tanh(number(beta, 1) * x)


def sigmoid_hard(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return (x * number(alpha, 0.2) + number(beta, 0.5)).clamp(0, 1)


def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """A pair of parameters for each channel: α · log(1 + exp(β · x))."""
    return _channels(alpha, x) * softplus(_channels(beta, x) * x)


def softsign(x: Tensor) -> Tensor:
    return functional.softsign(x)


def _channels(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.view(-1, *[1] * (x.dim() - 2)) if x.dim() > 1 else parameter


# activations that were quantized at run time


def quantize(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    axis: Tensor | None = None,
    output_dtype: str = "int8",
) -> Tensor:
    """clip(round(x / scale) + zero point), halves to the even one."""
    low, high = (-128, 127) if output_dtype == "int8" else (0, 255)
    zero = 0 if zero_point is None else _along(zero_point, input, axis)
    return (torch.round(input / _along(scale, input, axis)) + zero).clamp(low, high).long()


def dequantize(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    axis: Tensor | None = None,
) -> Tensor:
    zero = 0 if zero_point is None else _along(zero_point, input, axis)
    return (input - zero) * _along(scale, input, axis)


def _along(parameter: Tensor, x: Tensor, axis: Tensor | None) -> Tensor:
    if parameter.dim() == 0 or axis is None:
        return parameter
    shape = [1] * x.dim()
    shape[int(axis.item())] = -1
    return parameter.view(shape)
