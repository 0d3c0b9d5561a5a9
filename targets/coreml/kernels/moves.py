"""Values that only move: shapes, slices, joins. They keep the type they come in, and give views where torch does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pocketphi.targets.coreml.kernels.arguments import Parameter, affordable, axes_of, axis_of, flag, integer, integers


def identity(x: Tensor) -> Tensor:
    return x


def reshape(x: Tensor, shape: Tensor) -> Tensor:
    """A size of -1 takes what is left; 0 keeps the input's, where both have as many axes."""
    sizes = integers(shape)
    if len(sizes) == x.dim():
        sizes = [size or own for size, own in zip(sizes, x.shape)]
    return x.reshape(sizes)


def transpose(x: Tensor, perm: Tensor) -> Tensor:
    return x.permute(integers(perm))


def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    rank = x.dim() + axes.numel()
    for axis in sorted(axes_of(axes, rank)):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Parameter = None) -> Tensor:
    chosen = [a for a, size in enumerate(x.shape) if size == 1] if axes is None else axes_of(axes, x.dim())
    if any(x.shape[axis] != 1 for axis in chosen):
        raise ValueError(f"axes {chosen} of {list(x.shape)} cannot be squeezed")
    return x.squeeze(tuple(chosen)) if chosen else x


def flatten2d(x: Tensor, axis: Parameter = None) -> Tensor:
    split = integer(axis, 1)
    return x.reshape(x.shape[:split].numel(), x.shape[split:].numel())


def concat(values: Sequence[Tensor], axis: Tensor, interleave: Parameter = None) -> Tensor:
    """interleave: one element of each value in turn. Scalars join to a vector."""
    values = [value.reshape(1) if value.dim() == 0 else value for value in values]
    dim = axis_of(axis, values[0].dim(), 0)
    if not flag(interleave):
        return torch.cat(tuple(values), dim)
    return torch.stack(tuple(values), dim + 1).flatten(dim, dim + 1)


def stack(values: Sequence[Tensor], axis: Tensor) -> Tensor:
    return torch.stack(tuple(values), axis_of(axis, values[0].dim() + 1, 0))


def split(x: Tensor, axis: Tensor, num_splits: Parameter = None, split_sizes: Parameter = None) -> tuple[Tensor, ...]:
    dim = axis_of(axis, x.dim(), 0)
    if split_sizes is not None:
        return x.split(integers(split_sizes), dim)
    count = integer(num_splits, 1)
    if x.shape[dim] % count:
        raise ValueError(f"{x.shape[dim]} along axis {dim} cannot be split into {count}")
    return x.split(x.shape[dim] // count, dim)


def slice_by_size(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    """A size of -1 goes to the end. Raises ValueError where the slice leaves the tensor."""
    for axis, (start, length) in enumerate(zip(integers(begin), integers(size))):
        start += x.shape[axis] if start < 0 else 0
        length = x.shape[axis] - start if length == -1 else length
        if not 0 <= start <= start + length <= x.shape[axis]:
            raise ValueError(f"slice {start}:{start + length} of {x.shape[axis]} along axis {axis}")
        x = x.narrow(axis, start, length)
    return x


def slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Parameter = None,
    begin_mask: Parameter = None,
    end_mask: Parameter = None,
    squeeze_mask: Parameter = None,
) -> Tensor:
    view, flipped, squeezed = _slice(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    view = view.flip(flipped) if flipped else view
    return view.squeeze(tuple(squeezed)) if squeezed else view


def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Parameter = None,
    begin_mask: Parameter = None,
    end_mask: Parameter = None,
    squeeze_mask: Parameter = None,
    in_place: bool = False,
) -> Tensor:
    """x with a slice replaced. in_place: x itself is changed, where the plan found that nobody needs it any more.

    Raises ValueError where the update has not exactly the slice's shape, which a slice that leaves the tensor also is.
    """
    result = x if in_place else x.clone(memory_format=torch.contiguous_format)
    view, flipped, squeezed = _slice(result, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    shape = [size for axis, size in enumerate(view.shape) if axis not in squeezed]
    if list(update.shape) != shape:
        raise ValueError(
            f"an update {list(update.shape)} for a slice {shape}: from {integers(begin)} to {integers(end)} of {list(x.shape)}"
        )
    for axis in squeezed:
        update = update.unsqueeze(axis)
    view.copy_(update.flip(flipped) if flipped else update)
    return result


def _slice(
    x: Tensor, begin: Tensor, end: Tensor, stride: Parameter, *masks: Parameter
) -> tuple[Tensor, list[int], list[int]]:
    """A view with positive strides, the axes to flip (their stride is negative), the axes to squeeze, in rising order."""
    rank = x.dim()
    starts, ends = integers(begin), integers(end)
    if not len(starts) == len(ends) == rank:
        raise ValueError(f"a slice with {len(starts)} begins and {len(ends)} ends of a tensor with {rank} axes")
    steps = [1] * rank if stride is None else integers(stride)
    open_start, open_end, single = ([False] * rank if mask is None else mask.bool().tolist() for mask in masks)
    flipped = []
    for axis, size in enumerate(x.shape):
        start = None if open_start[axis] else starts[axis]
        if single[axis]:
            index = start or 0
            if not -size <= index < size:
                raise ValueError(f"index {index} of {size} along axis {axis}")
            x = x.narrow(axis, index % size, 1)
            continue
        chosen = range(size)[start : None if open_end[axis] else ends[axis] : steps[axis]]
        if len(chosen) and chosen.step < 0:
            flipped.append(axis)
            chosen = chosen[::-1]
        if len(chosen) == size:
            continue
        first, last = (chosen[0], chosen[-1] + 1) if len(chosen) else (0, 0)
        x = x[(slice(None),) * axis + (slice(first, last, chosen.step if len(chosen) else 1),)]
    return x, flipped, [axis for axis in range(rank) if single[axis]]


def tile(x: Tensor, reps: Tensor) -> Tensor:
    counts = integers(reps)
    affordable([size * count for size, count in zip(x.shape, counts)])
    return x.repeat(counts)


def reverse(x: Tensor, axes: Parameter = None) -> Tensor:
    return x.flip(axes_of(axes, x.dim()))


def pad(x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Parameter = None) -> Tensor:
    """pad: [before, after] for each of the last axes, in their order."""
    amounts = integers(pad)
    axes = len(amounts) // 2
    more = [0] * (x.dim() - axes) + [first + last for first, last in zip(amounts[::2], amounts[1::2])]
    affordable([size + extra for size, extra in zip(x.shape, more)])
    if mode == "constant":
        reordered = [amounts[2 * i + j] for i in reversed(range(axes)) for j in (0, 1)]
        return functional.pad(x, reordered, value=0 if constant_val is None else constant_val.item())
    if mode not in ("reflect", "replicate"):
        raise ValueError(f"pad mode {mode!r} is not understood")
    for i in range(axes):
        axis = x.dim() - axes + i
        size = x.shape[axis]
        index = torch.arange(-amounts[2 * i], size + amounts[2 * i + 1])
        if mode == "reflect":
            if max(amounts[2 * i : 2 * i + 2]) >= size:
                raise ValueError(f"reflects {amounts[2 * i : 2 * i + 2]} of {size} along axis {axis}")
            index = (size - 1) - ((size - 1) - index.abs()).abs()
        x = x.index_select(axis, index.clamp(0, size - 1))
    return x


def sliding_windows(x: Tensor, axis: Tensor, size: Tensor, stride: Parameter = None) -> Tensor:
    """[…, D, …] → […, windows, size, …]."""
    dim = axis_of(axis, x.dim(), 0)
    return x.unfold(dim, integer(size, 1), integer(stride, 1)).movedim(-1, dim + 1)


def pixel_shuffle(x: Tensor, upscale_factor: Tensor) -> Tensor:
    return functional.pixel_shuffle(x, integer(upscale_factor, 1))


def pixel_unshuffle(x: Tensor, downscale_factor: Tensor) -> Tensor:
    return functional.pixel_unshuffle(x, integer(downscale_factor, 1))


def depth_to_space(x: Tensor, block_size: Tensor) -> Tensor:
    """[N, b·b·C, H, W] → [N, C, b·H, b·W]; the channels lie as (row, column, C), not as `pixel_shuffle` has them."""
    b = integer(block_size, 1)
    n, channels, height, width = x.shape
    blocks = x.reshape(n, b, b, channels // (b * b), height, width)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, channels // (b * b), height * b, width * b)


def space_to_depth(x: Tensor, block_size: Tensor) -> Tensor:
    """[N, C, b·H, b·W] → [N, b·b·C, H, W], the way back of `depth_to_space`."""
    b = integer(block_size, 1)
    n, channels, height, width = x.shape
    blocks = x.reshape(n, channels, height // b, b, width // b, b)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, b * b * channels, height // b, width // b)


def space_to_batch(x: Tensor, block_shape: Tensor, paddings: Tensor) -> Tensor:
    """[N, C, H, W], padded with zeros → [b·c·N, C, H / b, W / c]; the batch lies as (row, column, N)."""
    (b, c), (top, bottom, left, right) = integers(block_shape), integers(paddings)
    affordable([*x.shape[:2], x.shape[2] + top + bottom, x.shape[3] + left + right])
    x = functional.pad(x, [left, right, top, bottom])
    n, channels, height, width = x.shape
    blocks = x.reshape(n, channels, height // b, b, width // c, c)
    return blocks.permute(3, 5, 0, 1, 2, 4).reshape(b * c * n, channels, height // b, width // c)


def batch_to_space(x: Tensor, block_shape: Tensor, crops: Tensor) -> Tensor:
    """The way back of `space_to_batch`, then cropped."""
    b, c = integers(block_shape)
    n, channels, height, width = x.shape
    blocks = x.reshape(b, c, n // (b * c), channels, height, width).permute(2, 3, 4, 0, 5, 1)
    whole = blocks.reshape(n // (b * c), channels, height * b, width * c)
    return crop(whole, crops.reshape(-1)[:2], crops.reshape(-1)[2:])


def crop(x: Tensor, crop_height: Tensor, crop_width: Tensor) -> Tensor:
    """Without the first and last rows and columns of the last two axes, as many as given."""
    for axis, amounts in ((-2, integers(crop_height)), (-1, integers(crop_width))):
        first, last = amounts
        if min(first, last) < 0 or first + last > x.shape[axis]:
            raise ValueError(f"crops {amounts} of {x.shape[axis]} along axis {axis}")
        x = x.narrow(axis, first, x.shape[axis] - first - last)
    return x


def reverse_sequence(x: Tensor, lengths: Tensor, seq_axis: Parameter = None, batch_axis: Parameter = None) -> Tensor:
    """Of each element along batch_axis the first lengths[i] ones along seq_axis in reverse order."""
    along, batch = axis_of(seq_axis, x.dim(), 0), axis_of(batch_axis, x.dim(), 0)
    counts, size = lengths.long().reshape(-1, 1), x.shape[along]
    if along == batch or len(counts) != x.shape[batch]:
        raise ValueError(f"{len(counts)} lengths for {x.shape[batch]} sequences, axes {along} and {batch}")
    if counts.numel() and not 0 <= int(counts.min()) <= int(counts.max()) <= size:
        raise ValueError(f"lengths {integers(lengths)} of {size}")
    place = torch.arange(size).expand(len(counts), size)
    place = torch.where(place < counts, counts - 1 - place, place)
    shape = [1] * x.dim()
    shape[batch], shape[along] = place.shape
    return torch.take_along_dim(x, (place if batch < along else place.t()).reshape(shape), along)


# values made from sizes


def shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int64)


def fill(shape: Tensor, value: Parameter = None) -> Tensor:
    sizes = affordable(integers(shape))
    return torch.full(sizes, 0.0) if value is None else value.reshape(()).expand(sizes).clone()


def fill_like(ref_tensor: Tensor, value: Parameter = None) -> Tensor:
    return fill(shape(ref_tensor), value)


def range_1d(end: Tensor, start: Tensor, step: Tensor) -> Tensor:
    """start, start + step, … before end."""
    affordable([max(0, int((end.item() - start.item()) / step.item()))])
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


def band_part(x: Tensor, lower: Parameter = None, upper: Parameter = None) -> Tensor:
    """Zero outside a band around the diagonal of the last two axes; -1 keeps that whole side."""
    low, high = integer(lower, -1), integer(upper, -1)
    x = x if high < 0 else x.tril(high)
    return x if low < 0 else x.triu(-low)


def one_hot(
    indices: Tensor,
    one_hot_vector_size: Tensor,
    axis: Parameter = None,
    on_value: Parameter = None,
    off_value: Parameter = None,
) -> Tensor:
    """A new axis with on_value where its position is the index. An index outside gives off_value everywhere."""
    size, dim = integer(one_hot_vector_size, 1), axis_of(axis, indices.dim() + 1, -1)
    affordable([*indices.shape, size])
    hit = (indices.unsqueeze(-1) == torch.arange(size)).movedim(-1, dim)
    on = torch.tensor(1) if on_value is None else on_value
    return torch.where(hit, on, torch.zeros_like(on) if off_value is None else off_value)


def non_zero(x: Tensor) -> Tensor:
    return x.nonzero()
