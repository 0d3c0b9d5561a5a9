"""Remove what changes no value, and give one spelling to what has several.

Before: `mul(to(alias(x), float32), 1.0)`, `getitem(chunk(x, 2, -1), 1)`.  After: `x`, `slice(x, 2, K/2, K)`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from pocketphi.graph.program import Program, op_name, shape_of
from pocketphi.graph.types import TensorType
from pocketphi.passes.base import Pass, PassReport

aten = torch.ops.aten

_COPIES = (aten.alias.default, aten.contiguous.default, aten.clone.default, aten.detach.default)
_CASTS = (aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten._to_copy.default)
_RESHAPES = (aten.view.default, aten.reshape.default, aten.expand.default)
_CHECKS = (aten._assert_tensor_metadata.default, aten._assert_scalar.default, aten.sym_constrain_range_for_size.default)


class Canonicalize(Pass):
    """Drops copies, casts to the same type, reshapes to the same shape, ×1, +0, full slices, empty parts of a
    concatenation and run-time checks; turns `chunk` into `slice`."""

    name = "canonicalize"

    def rewrite(self, program: Program, report: PassReport) -> None:
        for node in list(program.graph.nodes):
            if node.op != "call_function":
                continue
            if node.target in _CHECKS:
                report.applied["check"] += 1  # it has no users, so dead code removal takes it
            elif node.target is operator.getitem and _is_chunk(node.args[0]):
                self._replace(node, _as_slice(program, node), "chunk", report)
            elif node.target is aten.cat.default:
                _drop_empty_parts(node, report)
            for rule, find in _IDENTITIES.items():
                source = find(node)
                if source is not None:
                    self._replace(node, source, rule, report)
                    break

    @staticmethod
    def _replace(node: fx.Node, by: fx.Node, rule: str, report: PassReport) -> None:
        node.replace_all_uses_with(by)
        report.applied[rule] += 1


def _copy(node: fx.Node) -> Any:
    return node.args[0] if node.target in _COPIES else None


def _dropout(node: fx.Node) -> Any:
    off = node.target is aten.dropout.default and (node.args[1] == 0.0 or node.args[2] is False)
    return node.args[0] if off else None


def _cast(node: fx.Node) -> Any:
    if node.target in _CASTS and node.args[0].meta["val"].dtype == node.meta["val"].dtype:  # type: ignore[union-attr]
        return node.args[0]
    return None


def _reshape(node: fx.Node) -> Any:
    if node.target in _RESHAPES and shape_of(node.args[0]) == shape_of(node):  # type: ignore[arg-type]
        return node.args[0]
    return None


def _neutral(node: fx.Node) -> Any:
    if node.target not in (aten.mul.Tensor, aten.add.Tensor) or not _same_type(node.args[0], node):
        return None
    if node.target is aten.mul.Tensor and _is_number(node.args[1], 1):
        return node.args[0]
    if node.target is aten.add.Tensor and _is_number(node.args[1], 0):
        return node.args[0]
    return None


def _full_slice(node: fx.Node) -> Any:
    if node.target is aten.slice.Tensor and shape_of(node.args[0]) == shape_of(node):  # type: ignore[arg-type]
        return node.args[0]
    return None


def _single_cat(node: fx.Node) -> Any:
    return node.args[0][0] if node.target is aten.cat.default and len(node.args[0]) == 1 else None  # type: ignore[index,arg-type]


_IDENTITIES: dict[str, Callable[[fx.Node], Any]] = {
    "copy": _copy,
    "dropout": _dropout,
    "cast": _cast,
    "reshape": _reshape,
    "neutral": _neutral,
    "full slice": _full_slice,
    "single part": _single_cat,
}


def _is_number(value: Any, number: int) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == number


def _same_type(source: Any, node: fx.Node) -> bool:
    """Not so for int64 · 1.0, which is float32, or for a size plus 0."""
    before, after = source.meta["val"], node.meta["val"]
    tensors = isinstance(before, TensorType) and isinstance(after, TensorType)
    return tensors and before.dtype == after.dtype


def _is_chunk(value: Any) -> bool:
    """A split along an axis of known size."""
    if not isinstance(value, fx.Node) or op_name(value) not in ("chunk", "split") or value.kwargs:
        return False
    axis: Any = value.args[2] if len(value.args) > 2 else 0
    return all(isinstance(piece.shape[axis], int) for piece in value.meta["val"])


def _as_slice(program: Program, item: fx.Node) -> fx.Node:
    """getitem(chunk(x, n, dim), i) → slice(x, dim, start, stop)."""
    chunk: Any = item.args[0]
    source, axis = chunk.args[0], chunk.args[2] if len(chunk.args) > 2 else 0
    axis %= len(shape_of(source))
    sizes = [part.shape[axis] for part in chunk.meta["val"]]
    start = sum(sizes[: int(item.args[1])])  # type: ignore[arg-type]
    return program.call(aten.slice.Tensor, (source, axis, start, start + sizes[int(item.args[1])]), before=item)  # type: ignore[arg-type]


def _drop_empty_parts(node: fx.Node, report: PassReport) -> None:
    parts: Any = node.args[0]
    full = [p for p in parts if not any(size == 0 for size in shape_of(p) if isinstance(size, int))]
    if 0 < len(full) < len(parts):
        node.update_arg(0, full)
        report.applied["empty part"] += len(parts) - len(full)
