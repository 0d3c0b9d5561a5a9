"""Remove what changes no value, and give one spelling to what has several.

Before: `mul(to(alias(x), float32), 1.0)`, `getitem(chunk(x, 2, -1), 1)`.  After: `x`, `slice(x, 2, K/2, K)`.
"""

from __future__ import annotations

import operator
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
_NEUTRAL: dict[Any, int] = {aten.mul.Tensor: 1, aten.add.Tensor: 0}
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
                node.replace_all_uses_with(_as_slice(program, node))
                report.applied["chunk"] += 1
            elif node.target is aten.cat.default:
                _drop_empty_parts(node, report)
            if (found := _identity(node)) is not None:
                rule, source = found
                node.replace_all_uses_with(source)
                report.applied[rule] += 1


def _identity(node: fx.Node) -> tuple[str, fx.Node] | None:
    """The rule by which a node gives one of its arguments as it is, and that argument; None where it does not."""
    target: Any = node.target
    args: Any = node.args
    if target in _COPIES:
        return "copy", args[0]
    if target is aten.dropout.default and (args[1] == 0.0 or args[2] is False):
        return "dropout", args[0]
    if target in _CASTS and args[0].meta["val"].dtype == node.meta["val"].dtype:
        return "cast", args[0]
    if target in _RESHAPES and shape_of(args[0]) == shape_of(node):
        return "reshape", args[0]
    if target in _NEUTRAL and _is_number(args[1], _NEUTRAL[target]) and _same_type(args[0], node):
        return "neutral", args[0]
    if target is aten.slice.Tensor and shape_of(args[0]) == shape_of(node):
        return "full slice", args[0]
    if target is aten.cat.default and len(args[0]) == 1:
        return "single part", args[0][0]
    return None


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
