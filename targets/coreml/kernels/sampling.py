"""Values of images [B, C, H, W] at places between their pixels, and outside of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pocketphi.targets.coreml.kernels.arguments import Parameter, affordable, flag, grid, integer, number

_FARTHEST = float(1 << 20)
"""Places are clamped to it: far outside of every image, with float32 still telling neighbours apart."""


def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: Tensor,
    coordinates_mode: str,
    align_corners: Tensor,
) -> Tensor:
    """coordinates [B, H', W', 2] as (x, y) → [B, C, H', W']; with the rounding of torch's `grid_sample`."""
    if x.shape[0] != coordinates.shape[0] or coordinates.shape[-1] != 2 or not x.shape[2:].numel():
        raise ValueError(f"coordinates {list(coordinates.shape)} for images {list(x.shape)}")
    places = [
        _padded(
            _unnormalized(coordinates[..., i].float(), size, coordinates_mode, flag(align_corners)), size, padding_mode
        )
        for i, size in ((1, x.shape[2]), (0, x.shape[3]))
    ]
    value = number(padding_value, 0)
    if sampling_mode == "nearest":
        return _at(x, places[0].round().long(), places[1].round().long(), value)
    if sampling_mode != "bilinear":
        raise ValueError(f"sampling mode {sampling_mode!r} is not understood")
    return _bilinear(x, places[0], places[1], value)


def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: Tensor,
    output_width: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: Tensor,
    coordinates_mode: str,
    align_corners: Tensor,
) -> Tensor:
    """transform_matrix [B or 1, 6]: each output place (x, y) of -1 … 1 is taken from (a0 x + a1 y + a2, b0 x + b1 y + b2)."""
    if coordinates_mode != "normalized_minus_one_to_one":
        raise ValueError(f"coordinates mode {coordinates_mode!r} is not understood")
    theta = transform_matrix.reshape(-1, 2, 3).expand(x.shape[0], 2, 3)
    size = [x.shape[0], x.shape[1], integer(output_height, 1), integer(output_width, 1)]
    affordable(size)
    places = functional.affine_grid(theta, size, flag(align_corners))
    return resample(x, places, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners)


def crop_resize(
    x: Tensor,
    roi: Parameter = None,
    boxes: Parameter = None,
    box_indices: Parameter = None,
    target_height: Parameter = None,
    target_width: Parameter = None,
    normalized_coordinates: Parameter = None,
    spatial_scale: Parameter = None,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: Parameter = None,
) -> Tensor:
    """Boxes resized: [N, C, h, w] of boxes [N, 4] (iOS 17); of roi [N, 1, 4 or 5, 1, 1] [N, B or 1, C, h, w].

    A fifth element, the first, is the image's number. What lies outside of the image has pad_value.
    """
    if (roi is None) == (boxes is None):
        raise ValueError("needs either roi or boxes")
    given = boxes if roi is None else roi.reshape(roi.shape[0], -1)
    assert given is not None
    batch, count, every = x.shape[0], given.shape[0], roi is not None and given.shape[1] == 4
    if given.shape[1] == 5:
        index, given = given[:, 0].long(), given[:, 1:]
    elif every:
        index, given = torch.arange(batch).repeat(count), given.repeat_interleave(batch, 0)
    else:
        index = torch.arange(count) if box_indices is None else box_indices.long()
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < batch:
        raise ValueError(f"image {int(index.max())} of {batch}")
    corners = _corners(given.double() * number(spatial_scale, 1), box_coordinate_mode)
    height, width = x.shape[2:]
    if flag(normalized_coordinates):
        corners = corners * torch.tensor([height - 1, width - 1] * 2, dtype=torch.float64)
    top, left, bottom, right = corners.unbind(1)
    affordable([len(index), x.shape[1], integer(target_height, 1), integer(target_width, 1)])
    ys = _points(top, bottom, integer(target_height, 1), sampling_mode)
    xs = _points(left, right, integer(target_width, 1), sampling_mode)
    value, shape = number(pad_value, 0), (len(index), ys.shape[1], xs.shape[1])
    y, z = ys[:, :, None].expand(shape), xs[:, None, :].expand(shape)
    inside = (y >= 0) & (y <= height - 1) & (z >= 0) & (z <= width - 1)
    made = torch.where(inside.unsqueeze(1), _bilinear(x[index], y, z, value), torch.tensor(value))
    if roi is None:
        return made
    return made.reshape((count, batch if every else 1, *made.shape[1:]))


def _corners(boxes: Tensor, mode: str) -> Tensor:
    """[N, 4] as (top, left, bottom, right)."""
    if mode.endswith("WIDTH_FIRST"):
        boxes = boxes[:, [1, 0, 3, 2]]
    if mode.startswith("CORNERS_"):
        return boxes
    if not mode.startswith("CENTER_SIZE_"):
        raise ValueError(f"box coordinate mode {mode!r} is not understood")
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)


def _points(first: Tensor, last: Tensor, count: int, mode: str) -> Tensor:
    """Points between the edges of boxes, clamped to them: [N] each → float64 [N, count]. An edge may be the larger one."""
    made = torch.empty(len(first), count, dtype=torch.float64)
    for n, (a, b) in enumerate(zip(first.tolist(), last.tolist())):
        length = abs(b - a)
        points = grid(length + 1, count, mode)
        points = points if mode == "OFFSET_CORNERS" else points.clamp(0, length)
        made[n] = a + points * (1 if b >= a else -1)
    return made


def _unnormalized(place: Tensor, size: int, mode: str, align: bool) -> Tensor:
    if mode == "unnormalized":
        return place
    if mode == "normalized_zero_to_one":
        place = place * 2 - 1
    elif mode != "normalized_minus_one_to_one":
        raise ValueError(f"coordinates mode {mode!r} is not understood")
    return (place + 1) / 2 * (size - 1) if align else ((place + 1) * size - 1) / 2


def _padded(place: Tensor, size: int, mode: str) -> Tensor:
    """Places as if the image went on: clamped to it, or mirrored at its last pixels or at their outer edges."""
    if mode == "reflection":
        place = _mirrored(place, 0, size - 1)
    elif mode == "symmetric":
        place = _mirrored(place, -0.5, size - 0.5)
    elif mode not in ("constant", "border"):
        raise ValueError(f"padding mode {mode!r} is not understood")
    return place.clamp(-_FARTHEST, _FARTHEST) if mode == "constant" else place.clamp(0, size - 1)


def _mirrored(place: Tensor, low: float, high: float) -> Tensor:
    if high <= low:
        return torch.zeros_like(place)
    place = (place - low).abs()
    part, odd = torch.fmod(place, high - low), (place / (high - low)).floor() % 2 == 1
    return torch.where(odd, high - low - part, part) + low


def _bilinear(x: Tensor, y: Tensor, z: Tensor, value: float) -> Tensor:
    """y, z [B, h, w]: rows and columns → [B, C, h, w]."""
    y, z = (place.clamp(-_FARTHEST, _FARTHEST) for place in (y, z))
    top, left = y.floor(), z.floor()
    result = torch.zeros(())
    for row, along_y in ((top, top + 1 - y), (top + 1, y - top)):
        for column, along_z in ((left, left + 1 - z), (left + 1, z - left)):
            part = _at(x, row.long(), column.long(), value) * (along_y * along_z).unsqueeze(1)
            result = result + part.float()
    return result


def _at(x: Tensor, row: Tensor, column: Tensor, value: float) -> Tensor:
    """Pixels by row and column int64 [B, h, w], outside of the image the value → [B, C, h, w]."""
    height, width = x.shape[2:]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    flat = index.reshape(index.shape[0], 1, -1).expand(-1, x.shape[1], -1)
    picked = x.flatten(2).gather(2, flat).reshape((*x.shape[:2], *index.shape[1:]))
    return torch.where(inside.unsqueeze(1), picked, torch.tensor(value, dtype=x.dtype))
