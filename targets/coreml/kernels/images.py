"""Convolution, pooling and resizing over the axes that follow batch and channels."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pocketphi.targets.coreml.kernels.arguments import Parameter, affordable, flag, grid, integer, integers

_CONV = (functional.conv1d, functional.conv2d, functional.conv3d)
_CONV_TRANSPOSE = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
_MAX_POOL = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_AVG_POOL = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Parameter = None,
    strides: Parameter = None,
    pad_type: str = "valid",
    pad: Parameter = None,
    dilations: Parameter = None,
    groups: Parameter = None,
) -> Tensor:
    """x [B, C, …], weight [C_out, C/groups, …]."""
    n = x.dim() - 2
    step, dilation = _each(strides, n), _each(dilations, n)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:])]
    padded = functional.pad(x, _affordable_pad(x, _padding(x.shape[2:], reach, step, pad_type, pad)))
    return _CONV[n - 1](padded, weight, bias, step, 0, dilation, integer(groups, 1))


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Parameter = None,
    pad: Parameter = None,
    output_shape: Parameter = None,
    pad_type: str = "valid",
    strides: Parameter = None,
    dilations: Parameter = None,
    groups: Parameter = None,
) -> Tensor:
    """x [B, C, …], weight [C, C_out/groups, …]. The full result is cropped by the padding, to output_shape where given."""
    n = x.dim() - 2
    step = _each(strides, n)
    full = _CONV_TRANSPOSE[n - 1](x, weight, None, step, 0, 0, integer(groups, 1), _each(dilations, n))
    crop = [(0, 0)] * n
    if pad_type == "custom" and pad is not None:
        crop = _pairs(integers(pad))
    sizes = [size - before - after for size, (before, after) in zip(full.shape[2:], crop)]
    if output_shape is not None:
        sizes = integers(output_shape)[-n:]
    elif pad_type.startswith("same"):
        sizes = [size * s for size, s in zip(x.shape[2:], step)]
    if pad_type.startswith("same"):
        extra = [size - wanted for size, wanted in zip(full.shape[2:], sizes)]
        crop = [((e + (pad_type == "same_lower")) // 2, 0) for e in extra]
    for axis, (size, (before, _)) in enumerate(zip(sizes, crop), start=2):
        missing = max(0, before + size - full.shape[axis])
        if missing:
            full = functional.pad(full, [0, 0] * (full.dim() - 1 - axis) + [0, missing])
        full = full.narrow(axis, before, size)
    return full if bias is None else full + bias.view(-1, *[1] * n)


def max_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Parameter = None,
    pad_type: str = "valid",
    pad: Parameter = None,
    ceil_mode: Parameter = None,
) -> Tensor:
    kernel, step, padding = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    padded = functional.pad(x, _affordable_pad(x, padding[1]), value=-math.inf)
    return _MAX_POOL[x.dim() - 3](padded, kernel, step)


def avg_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Parameter = None,
    pad_type: str = "valid",
    pad: Parameter = None,
    exclude_padding_from_average: Parameter = None,
    ceil_mode: Parameter = None,
) -> Tensor:
    """The mean of each window: over its real elements, or with the padding that was asked for counted as zeros."""
    kernel, step, (asked, with_ceil) = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    pool = _AVG_POOL[x.dim() - 3]
    counted = torch.ones_like(x[:1, :1])
    more = [(whole[0] - own[0], whole[1] - own[1]) for whole, own in zip(with_ceil, asked)]
    outside = 0.0 if flag(exclude_padding_from_average) else 1.0
    counted = functional.pad(functional.pad(counted, _torch_pad(asked), value=outside), _torch_pad(more))
    return pool(functional.pad(x, _affordable_pad(x, with_ceil)), kernel, step) / pool(counted, kernel, step)


def l2_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Parameter = None,
    pad_type: str = "valid",
    pad: Parameter = None,
    ceil_mode: Parameter = None,
) -> Tensor:
    kernel, step, padding = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    mean = _AVG_POOL[x.dim() - 3](functional.pad(x * x, _affordable_pad(x, padding[1])), kernel, step)
    return (mean * math.prod(kernel)).sqrt()


Pairs = list[tuple[int, int]]


def _windows(
    x: Tensor, kernel_sizes: Tensor, strides: Parameter, pad_type: str, pad: Parameter, ceil_mode: Parameter
) -> tuple[list[int], list[int], tuple[Pairs, Pairs]]:
    """Kernel, strides, and the padding: as asked for, and with what rounding the output's size up adds at the end."""
    kernel = integers(kernel_sizes)
    step = _each(strides, len(kernel))
    asked = _padding(x.shape[2:], kernel, step, pad_type, pad)
    if not flag(ceil_mode):
        return kernel, step, (asked, asked)
    whole = []
    for size, k, s, (before, after) in zip(x.shape[2:], kernel, step, asked):
        count = -(-(size + before + after - k) // s) + 1
        count -= (count - 1) * s >= size + before  # a window must start in the input or in the padding before it
        whole.append((before, max(after, (count - 1) * s + k - size - before)))
    return kernel, step, (asked, whole)


def _padding(sizes: torch.Size, reach: list[int], step: list[int], pad_type: str, pad: Parameter) -> Pairs:
    """(before, after) for each axis. `same` puts an odd element after, `same_lower` before."""
    if pad_type == "custom" and pad is not None:
        return _pairs(integers(pad))
    if pad_type in ("valid", "custom"):
        return [(0, 0)] * len(sizes)
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"pad_type {pad_type!r} is not understood")
    pairs = []
    for size, k, s in zip(sizes, reach, step):
        total = max(0, (-(-size // s) - 1) * s + k - size)
        small, large = total // 2, total - total // 2
        pairs.append((small, large) if pad_type == "same" else (large, small))
    return pairs


def _pairs(values: list[int]) -> Pairs:
    return list(zip(values[::2], values[1::2]))


def _affordable_pad(x: Tensor, pairs: Pairs) -> list[int]:
    affordable([*x.shape[:2], *(size + before + after for size, (before, after) in zip(x.shape[2:], pairs))])
    return _torch_pad(pairs)


def _torch_pad(pairs: Pairs) -> list[int]:
    return [amount for pair in reversed(pairs) for amount in pair]


def _each(values: Parameter, n: int) -> list[int]:
    return [1] * n if values is None else integers(values)


# resizing of the last two axes


def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: Parameter = None, scale_factor_width: Parameter = None
) -> Tensor:
    for axis, parameter in ((-2, scale_factor_height), (-1, scale_factor_width)):
        count, step = _scaled(x.shape[axis], parameter)
        x = _nearest(x, axis, count, step)
    return x


def resize_nearest_neighbor(x: Tensor, target_size_height: Tensor, target_size_width: Tensor) -> Tensor:
    for axis, parameter in ((-2, target_size_height), (-1, target_size_width)):
        count = integer(parameter, 1)
        x = _nearest(x, axis, count, x.shape[axis] / max(1, count))
    return x


def _scaled(size: int, parameter: Parameter) -> tuple[int, float]:
    """The size that a scale factor leads to, and the step between the points in the input.

    The factor is a float32 in the file; the number meant is the shortest one that rounds to it. coremltools writes a target
    size as (size + 1e-4) / (input size), so that the product's floor is that size: what was meant then is the plain ratio.
    """
    if parameter is None:
        return size, 1.0
    factor = float(str(np.float32(parameter.item())))
    if not 0 < factor < math.inf:
        raise ValueError(f"a scale factor of {factor}")
    count = math.floor(size * factor)
    plain = count in (size, 2 * size) or np.float32(factor) == np.float32((count + 1e-4) / max(1, size))
    return count, size / count if count and (plain or count == size * factor) else 1 / factor


def _nearest(x: Tensor, axis: int, count: int, step: float) -> Tensor:
    """Points along an axis at floor(i · step), in float32 as torch and TensorFlow compute it."""
    affordable([*x.shape[:axis], count])
    index = (torch.arange(count, dtype=torch.float32) * torch.tensor(step, dtype=torch.float32)).long()
    return x.index_select(axis, index.clamp(max=x.shape[axis] - 1))


def upsample_bilinear(
    x: Tensor,
    scale_factor_height: Parameter = None,
    scale_factor_width: Parameter = None,
    align_corners: Parameter = None,
    half_pixel_centers: Parameter = None,
) -> Tensor:
    aligned = flag(align_corners, True)
    for axis, parameter in ((-2, scale_factor_height), (-1, scale_factor_width)):
        size, (count, _) = x.shape[axis], _scaled(x.shape[axis], parameter)
        affordable([*x.shape[:axis], count])
        i = torch.arange(count, dtype=torch.float32)  # as torch, whose points carry float32's rounding
        if aligned:
            place = i * torch.tensor((size - 1) / max(1, count - 1), dtype=torch.float32)
        else:
            half = 0.5 if flag(half_pixel_centers, True) else 0.0
            place = (i + half) * torch.tensor(size / max(1, count), dtype=torch.float32) - half
        x = _interpolate(x, axis, place)
    return x


def resize_bilinear(
    x: Tensor,
    target_size_height: Parameter = None,
    target_size_width: Parameter = None,
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """Grid points of each sampling mode as the operator's documentation gives them (coremltools, iOS15 image_resizing)."""
    for axis, parameter in ((-2, target_size_height), (-1, target_size_width)):
        x = _interpolate(x, axis, grid(x.shape[axis], integer(parameter, 1), sampling_mode))
    return x


def resize(
    x: Tensor, shape: Tensor, resized_dims: Tensor, interpolation_mode: str = "LINEAR", sampling_mode: str = "DEFAULT"
) -> Tensor:
    """The last `resized_dims` axes to the sizes that `shape` ends with; a size of 0 keeps the input's."""
    sizes, count = integers(shape), integer(resized_dims, 0)
    if not 0 <= count <= len(sizes) <= x.dim():
        raise ValueError(f"resizes {count} axes of {list(x.shape)} to {sizes}")
    for axis in range(-count, 0):
        size = sizes[axis] or x.shape[axis]
        if interpolation_mode == "NEAREST_NEIGHBOR" and sampling_mode == "DEFAULT":
            x = _nearest(x, axis, size, x.shape[axis] / max(1, size))
        elif interpolation_mode == "LINEAR" and x.is_floating_point():
            x = _interpolate(x, axis, grid(x.shape[axis], size, sampling_mode))
        else:
            raise ValueError(f"{interpolation_mode} with {sampling_mode} of {x.dtype} is not understood")
    return x


def _interpolate(x: Tensor, axis: int, place: Tensor) -> Tensor:
    """Values between neighbours along an axis, at places clamped to it. place: float32 or float64 [n]."""
    if not x.shape[axis]:
        raise ValueError(f"nothing to resize in {list(x.shape)}")
    place = place.clamp(0, x.shape[axis] - 1)
    low = place.floor().long()
    part = (place - low).to(x.dtype).view(-1, *[1] * (-axis - 1))
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    below, above = x.index_select(axis, low), x.index_select(axis, high)
    return below * (1 - part) + above * part
