"""Gather and scatter. An index outside its axis is an error, never memory that lies there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pocketphi.targets.coreml.kernels.arguments import Parameter, axis_of, integer


def gather(
    x: Any,
    indices: Tensor,
    axis: Parameter = None,
    batch_dims: Parameter = None,
    validate_indices: Parameter = None,
) -> Tensor:
    """x [B…, A…, D, C…], indices [B…, I…] → [B…, A…, I…, C…]. Of a stored table only the rows asked for are decoded."""
    dim, batch = axis_of(axis, len(x.shape), 0), integer(batch_dims, 0)
    index = _checked(indices, x.shape[dim], validate_indices)
    if not isinstance(x, Tensor):
        if dim == 0 and not batch:
            rows: Tensor = x.take(index.reshape(-1))
            return rows.reshape((*index.shape, *x.shape[1:]))
        x = x.dense()
    if not batch:
        picked = x.index_select(dim, index.reshape(-1))
        return picked.reshape((*x.shape[:dim], *index.shape, *x.shape[dim + 1 :]))
    if not batch <= dim or x.shape[:batch] != index.shape[:batch]:
        raise ValueError(f"{batch} axes of a batch: {list(x.shape)} and indices {list(index.shape)} along axis {dim}")
    places = index.reshape((*index.shape[:batch], *[1] * (dim - batch), -1, *[1] * (x.dim() - dim - 1)))
    picked = torch.take_along_dim(x, places, dim)
    return picked.reshape((*x.shape[:dim], *index.shape[batch:], *x.shape[dim + 1 :]))


def gather_along_axis(x: Tensor, indices: Tensor, axis: Parameter = None, validate_indices: Parameter = None) -> Tensor:
    dim = axis_of(axis, x.dim(), 0)
    return torch.take_along_dim(x, _checked(indices, x.shape[dim], validate_indices), dim)


def gather_nd(x: Tensor, indices: Tensor, batch_dims: Parameter = None, validate_indices: Parameter = None) -> Tensor:
    """indices [B…, I…, R] picks along the R axes that follow the batch."""
    batch, depth = integer(batch_dims, 0), indices.shape[-1]
    index = _checked_nd(indices.long(), x.shape[batch : batch + depth], validate_indices)
    if x.shape[:batch] != index.shape[:batch]:
        raise ValueError(f"{batch} axes of a batch: {list(x.shape)} and indices {list(index.shape)}")
    rows = torch.meshgrid(*(torch.arange(size) for size in x.shape[:batch]), indexing="ij") if batch else ()
    places = [row.reshape((*row.shape, *[1] * (index.dim() - 1 - batch))) for row in rows]
    return x[(*places, *index.unbind(-1))] if depth + batch else x


def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: Parameter = None,
    mode: str = "add",
    validate_indices: Parameter = None,
) -> Tensor:
    """Whole slices along an axis. updates: data's shape with the indices' in the place of that axis."""
    dim = axis_of(axis, data.dim(), 0)
    index = _checked(indices, data.shape[dim], validate_indices)
    positions = torch.arange(data.numel()).view(data.shape).index_select(dim, index.reshape(-1))
    return _scatter(data, positions, updates.reshape(positions.shape), mode)


def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: Parameter = None,
    mode: str = "add",
    validate_indices: Parameter = None,
) -> Tensor:
    dim = axis_of(axis, data.dim(), 0)
    index = _checked(indices, data.shape[dim], validate_indices)
    positions = torch.take_along_dim(torch.arange(data.numel()).view(data.shape), index, dim)
    return _scatter(data, positions, updates, mode)


def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: Parameter = None
) -> Tensor:
    index = _checked_nd(indices.long(), data.shape[: indices.shape[-1]], validate_indices)
    positions = torch.arange(data.numel()).view(data.shape)[tuple(index.unbind(-1))]
    return _scatter(data, positions, updates, mode)


def _checked(indices: Tensor, size: int, validate_indices: Parameter) -> Tensor:
    """int64 indices. Negative ones count from the end before iOS 17, whose operators say whether to validate."""
    index = indices.long()
    if not index.numel():
        return index
    lowest = -size if validate_indices is None else 0
    low, high = (int(v) for v in index.aminmax())
    if low < lowest or high >= size:
        raise ValueError(f"index {low if low < lowest else high} is outside {lowest} … {size - 1}")
    return torch.where(index < 0, index + size, index) if low < 0 else index


def _checked_nd(index: Tensor, sizes: tuple[int, ...], validate_indices: Parameter) -> Tensor:
    columns = [_checked(column, size, validate_indices) for column, size in zip(index.unbind(-1), sizes)]
    return torch.stack(columns, dim=-1)


def _scatter(data: Tensor, positions: Tensor, updates: Tensor, mode: str) -> Tensor:
    """mode: update (of equal positions any one stays), add, sub, mul, div, max, min."""
    if positions.shape != updates.shape:
        raise ValueError(f"updates {list(updates.shape)} for {list(positions.shape)} places")
    flat, where, new = data.flatten(), positions.flatten(), updates.flatten().to(data.dtype)
    if mode == "update":
        result = flat.scatter(0, where, new)
    elif mode in ("add", "sub"):
        result = flat.scatter_add(0, where, new if mode == "add" else -new)
    elif mode in ("mul", "max", "min"):
        how = {"mul": "prod", "max": "amax", "min": "amin"}[mode]
        result = flat.scatter_reduce(0, where, new, how, include_self=True)
    elif mode == "div" and data.is_floating_point():
        result = flat / torch.ones_like(flat).scatter_reduce(0, where, new, "prod", include_self=True)
    else:
        raise ValueError(f"scatter mode {mode!r} for {data.dtype} is not understood")
    return result.view(data.shape)
