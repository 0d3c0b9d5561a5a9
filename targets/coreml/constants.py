"""Constants of a function: `const` and `constexpr_…` operations → weights that decode themselves, texts, lists."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pocketphi.targets.coreml.mlpackage import Operation, constant_parts
from pocketphi.targets.coreml.raw import FLOATS, Raw
from pocketphi.targets.coreml.weights import (
    Blockwise,
    Lut,
    Stored,
    Weight,
    affine,
    bits_of,
    palette,
    sparse,
    still_sparse,
)

KINDS = frozenset(
    {
        "const",
        "constexpr_affine_dequantize",
        "constexpr_blockwise_shift_scale",
        "constexpr_cast",
        "constexpr_lut_to_dense",
        "constexpr_lut_to_sparse",
        "constexpr_sparse_blockwise_shift_scale",
        "constexpr_sparse_to_dense",
    }
)


def build(op: Operation, constants: Mapping[str, Operation], half: bool) -> Weight | str | list[Any]:
    """What a constant operation stands for. half: decode what is declared fp16 to float16.

    Raises ValueError where parts do not fit each other or the declared type, or the operator is not understood.
    """
    parts = constant_parts(op, constants)
    name, declared = op.outputs[0]
    if op.kind == "const":
        value = parts[""]
        if isinstance(value, Raw) and (value.shape, value.dtype) != (declared.shape, declared.dtype):
            raise ValueError(f"{name} is {value.dtype} {list(value.shape)}, declared is {declared}")
        return Stored(value) if isinstance(value, Raw) else value
    made = _compressed(op.kind, parts, constants, declared.dtype, half)
    if made.shape != declared.shape:
        raise ValueError(f"{name} ({op.kind}) decodes to {list(made.shape)}, declared is {declared}")
    if made.dtype in FLOATS and made.dtype != declared.dtype:
        raise ValueError(f"{name} ({op.kind}) decodes to {made.dtype}, declared is {declared}")
    return made


def _compressed(
    kind: str, parts: Mapping[str, Any], constants: Mapping[str, Operation], dtype: str, half: bool
) -> Weight:
    def part(parameter: str) -> Any:
        if parameter not in parts:
            raise ValueError(f"{kind}: the parameter {parameter} is missing")
        return parts[parameter]

    def raw(parameter: str) -> Raw:
        value = part(parameter)
        if not isinstance(value, Raw):
            raise ValueError(f"{kind}: {parameter} is no stored tensor")
        return value

    def weight(parameter: str) -> Weight:
        value = part(parameter)
        made = build(value, constants, half) if isinstance(value, Operation) else Stored(value)
        if not isinstance(made, Weight):
            raise ValueError(f"{kind}: {parameter} is no tensor")
        return made

    if kind == "constexpr_blockwise_shift_scale":
        return Blockwise(weight("data"), weight("scale"), weight("offset") if "offset" in parts else None, dtype, half)
    if kind == "constexpr_affine_dequantize":
        axis = int(weight("axis").dense())
        return affine(weight("quantized_data"), weight("scale"), weight("zero_point"), axis, dtype, half)
    if kind == "constexpr_cast":
        return Stored(raw("source_val"), dtype)
    if kind == "constexpr_lut_to_dense" and "shape" in parts:
        return palette(raw("indices"), weight("lut"), weight("shape").dense().tolist(), dtype)
    if kind == "constexpr_lut_to_dense":
        axis = int(weight("vector_axis").dense()) if "vector_axis" in parts else -1
        return Lut(weight("indices"), weight("lut"), axis, dtype)
    if kind == "constexpr_sparse_to_dense":
        if "shape" not in parts:
            mask = weight("mask")
            return sparse(weight("nonzero_data"), mask.dense(), mask.shape, dtype)
        shape = [int(size) for size in weight("shape").dense()]
        return sparse(weight("nonzero_data"), bits_of(raw("mask"), math.prod(shape)), shape, dtype)
    if kind == "constexpr_lut_to_sparse":
        axis = int(weight("vector_axis").dense()) if "vector_axis" in parts else -1
        mask, lut, picked = weight("indices_mask"), weight("lut"), weight("indices_nonzero_data")
        indices = sparse(picked, mask.dense(), mask.shape, picked.dtype)
        return still_sparse(Lut(indices, lut, axis, lut.dtype), mask, dtype, axis, lut.shape[-1])
    if kind == "constexpr_sparse_blockwise_shift_scale":
        mask, picked, scale = weight("data_mask"), weight("nonzero_data"), weight("scale")
        data = sparse(picked, mask.dense(), mask.shape, picked.dtype)
        offset = weight("offset") if "offset" in parts else None
        return still_sparse(Blockwise(data, scale, offset, scale.dtype, half), mask, dtype)
    raise ValueError(f"{kind} is not understood")
