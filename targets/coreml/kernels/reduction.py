"""Sums, means and extremes over axes; sorting; normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pocketphi.targets.coreml.kernels.arguments import Parameter, axes_of, axis_of, flag, integer, number
from pocketphi.targets.coreml.raw import Raw

Over = Callable[[Tensor, list[int], bool], Tensor]
"""(tensor, axes, whether they stay) → what is left of them."""


def _over(function: Over) -> Callable[..., Tensor]:
    """A reduction with MIL's parameters."""

    def kernel(x: Tensor, axes: Parameter = None, keep_dims: Parameter = None) -> Tensor:
        return function(x, axes_of(axes, x.dim()), flag(keep_dims))

    return kernel


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    """Of integers without the fraction."""
    mean = (x if x.is_floating_point() else x.double()).mean(axes, keep)
    return mean if x.is_floating_point() else mean.trunc().long()


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keep)
    return x


reduce_sum = _over(torch.sum)
reduce_mean = _over(_mean)
reduce_max = _over(torch.amax)
reduce_min = _over(torch.amin)
reduce_prod = _over(_product)
reduce_sum_square = _over(lambda x, axes, keep: (x * x).sum(axes, keep))
reduce_l1_norm = _over(lambda x, axes, keep: x.abs().sum(axes, keep))
reduce_l2_norm = _over(lambda x, axes, keep: (x * x).sum(axes, keep).sqrt())
reduce_log_sum = _over(lambda x, axes, keep: x.sum(axes, keep).log())
reduce_log_sum_exp = _over(torch.logsumexp)


def reduce_argmax(x: Tensor, axis: Parameter = None, keep_dims: Parameter = None, output_dtype: str = "") -> Tensor:
    return x.argmax(axis_of(axis, x.dim(), -1), keepdim=flag(keep_dims))


def reduce_argmin(x: Tensor, axis: Parameter = None, keep_dims: Parameter = None, output_dtype: str = "") -> Tensor:
    return x.argmin(axis_of(axis, x.dim(), -1), keepdim=flag(keep_dims))


def cumsum(x: Tensor, axis: Parameter = None, exclusive: Parameter = None, reverse: Parameter = None) -> Tensor:
    dim = axis_of(axis, x.dim(), 0)
    x = x.flip(dim) if flag(reverse) else x
    total = x.cumsum(dim) - (x if flag(exclusive) else 0)
    return total.flip(dim) if flag(reverse) else total


def topk(
    x: Tensor,
    k: Parameter = None,
    axis: Parameter = None,
    ascending: Parameter = None,
    sort: Parameter = None,
    return_indices: Parameter = None,
    output_indices_dtype: str = "",
) -> tuple[Tensor, ...]:
    """The k largest (or smallest) along an axis and where they were; of equal values the first ones."""
    dim = axis_of(axis, x.dim(), -1)
    count = integer(k, 1)
    order = torch.argsort(x, dim=dim, descending=not flag(ascending), stable=True)
    order = order.narrow(dim, 0, x.shape[dim] if count == -1 else count)
    values = torch.take_along_dim(x, order, dim)
    return (values, order) if flag(return_indices, True) else (values,)


def argsort(x: Tensor, axis: Parameter = None, ascending: Parameter = None) -> Tensor:
    return torch.argsort(x, dim=axis_of(axis, x.dim(), -1), descending=not flag(ascending), stable=True)


def softmax(x: Tensor, axis: Parameter = None) -> Tensor:
    return x.softmax(axis_of(axis, x.dim(), -1))


def layer_norm(
    x: Tensor, axes: Parameter = None, gamma: Parameter = None, beta: Parameter = None, epsilon: Parameter = None
) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) · gamma + beta; gamma and beta have the axes' sizes."""
    dims = axes_of(axes, x.dim())
    centred = x - x.mean(dims, keepdim=True)
    normed = centred * torch.rsqrt((centred * centred).mean(dims, keepdim=True) + number(epsilon, 1e-5))
    shape = [size if axis in dims else 1 for axis, size in enumerate(x.shape)]
    normed = normed if gamma is None else normed * gamma.view(shape)
    return normed if beta is None else normed + beta.view(shape)


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Parameter = None,
    beta: Parameter = None,
    epsilon: Parameter = None,
) -> Tensor:
    return functional.batch_norm(x, mean, variance, gamma, beta, eps=number(epsilon, 1e-5))


def instance_norm(x: Tensor, gamma: Parameter = None, beta: Parameter = None, epsilon: Parameter = None) -> Tensor:
    return functional.instance_norm(x, weight=gamma, bias=beta, eps=number(epsilon, 1e-5))


def l2_norm(x: Tensor, epsilon: Parameter = None) -> Tensor:
    """x / sqrt(Σ x² + epsilon), summed over the last three axes."""
    dims = list(range(max(0, x.dim() - 3), x.dim()))
    return x * torch.rsqrt((x * x).sum(dims, keepdim=True) + number(epsilon, 1e-6))


def local_response_norm(
    x: Tensor, size: Tensor, alpha: Parameter = None, beta: Parameter = None, k: Parameter = None
) -> Tensor:
    return functional.local_response_norm(x, integer(size, 1), number(alpha, 1e-4), number(beta, 0.75), number(k, 1.0))


def classify(probabilities: Tensor, classes: Sequence[Raw | str]) -> tuple[Tensor | str, dict[int | str, float]]:
    """The class of the largest probability, and each class with its own."""
    labels = [name if isinstance(name, str) else int(name.tensor()) for name in classes]
    flat = probabilities.reshape(-1)
    if len(labels) != len(flat) or not labels:
        raise ValueError(f"{len(labels)} classes for {len(flat)} probabilities")
    if len(set(labels)) < len(labels):
        twice = next(label for i, label in enumerate(labels) if label in labels[:i])
        raise ValueError(f"two classes have the name {twice!r}: its probability would be that of one of them")
    best = labels[int(flat.argmax())]
    return best if isinstance(best, str) else torch.tensor(best), dict(zip(labels, flat.tolist()))
