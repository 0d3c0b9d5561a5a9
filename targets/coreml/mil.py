"""Between this product and coremltools: a function under construction, whose large constants are placeholders, and its proto.

coremltools' own way holds every weight in memory and writes the file three times. Here a constant is an array of stride zero
that takes no memory and whose name says where its bytes will lie (`WeightFile`); `package.py` streams them there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pocketphi.graph.errors import CompilerBug
from pocketphi.targets.coreml.blob import BlobType
from pocketphi.targets.coreml.coremltools_parts import Builder as mb  # noqa: N813 - its usual name
from pocketphi.targets.coreml.coremltools_parts import (
    Function,
    Program,
    Var,
    ct,
    export,
    file_value,
    immediate_value,
    types,
)
from pocketphi.targets.coreml.releases import OLDEST, RELEASES, Release
from pocketphi.targets.coreml.weightfile import INLINE, Stored, WeightFile, identifier

WEIGHT_PATH = "@model_path/weights/weight.bin"
_TYPES = {"int32": types.int32, "fp16": types.fp16}
_NUMPY = {
    BlobType.FLOAT16: np.dtype(np.float16),
    BlobType.INT32: np.dtype(np.int32),
    BlobType.INT8: np.dtype(np.int8),
    BlobType.UINT8: np.dtype(np.uint8),
    BlobType.INT4: types.np_int4_dtype,
    BlobType.UINT2: types.np_uint2_dtype,
    BlobType.UINT3: types.np_uint3_dtype,
    BlobType.UINT4: types.np_uint4_dtype,
    BlobType.UINT6: types.np_uint6_dtype,
}


@dataclass(frozen=True)
class Input:
    """An input of a function, or a state. A size that is a pair may be anything from the first to the second."""

    shape: tuple[int | tuple[int, int], ...]
    type: str
    state: bool = False

    def placeholder(self, features: list[Any], name: str) -> Any:
        """For coremltools, which wants the ranges of a flexible input a second time, in `features`."""
        dtype = _TYPES[self.type]
        if self.state:
            return mb.state_tensor_placeholder(self.shape, dtype)
        if all(isinstance(size, int) for size in self.shape):
            return mb.placeholder(self.shape, dtype)
        ranges = [ct.RangeDim(*size) if isinstance(size, tuple) else size for size in self.shape]
        features.append(ct.TensorType(name, tuple(ranges), dtype=dtype))
        return mb.placeholder(features[-1].shape.symbolic_shape, dtype)


class FunctionBuilder:
    """A function under construction: operators and constants with names of their own."""

    def __init__(self, file: WeightFile, inputs: dict[str, Input], ios: int = OLDEST) -> None:
        self.file = file
        features: list[Any] = []
        placeholders = {name: kind.placeholder(features, name) for name, kind in inputs.items()}
        self.function = Function(placeholders, getattr(ct.target, f"iOS{ios}"))
        self.function.set_input_types(tuple(features))
        self.inputs: dict[str, Var] = dict(self.function.inputs)
        self.made: dict[Any, Any] = {}
        self._constants: dict[str, Var] = {}
        self._names = set(inputs)

    def op(self, kind: str, name: str, **arguments: Any) -> Var:
        """Add an operator. Its value, or its first value with a number behind, is called `name`."""
        return getattr(mb, kind)(**arguments, name=self._new(name))

    def weight(self, target: str, name: str) -> Var:
        """A constant whose bytes lie in the weight file."""
        stored = self.file.blobs.get(target)
        if stored is None:
            raise CompilerBug(f"{target} was not planned in the weight file")
        zero = np.zeros((), _NUMPY[stored.blob.type])
        value = mb.const(val=np.broadcast_to(zero, stored.shape), name=self._new(name))
        value.op.weight_id = target
        return value

    def constant(self, name: str, value: np.ndarray) -> Var:
        """A constant of the plan under its name there, or a small one that lies in the model."""
        if name not in self._constants:
            if value.size < INLINE:
                self._constants[name] = mb.const(val=value, name=self._new(identifier(name)))
            else:
                planned = self.file.constants.get(name)
                if planned is None or not np.array_equal(planned, value):
                    raise CompilerBug(f"constant {name} was not planned in the weight file, or otherwise")
                self._constants[name] = self.weight(name, identifier(name))
        return self._constants[name]

    def _new(self, name: str) -> str:
        if name in self._names:
            raise CompilerBug(f"two values of a function are called {name}")
        self._names.add(name)
        return name


def to_proto(
    functions: dict[str, Any], default: str, blobs: dict[str, Stored], release: Release = RELEASES[OLDEST]
) -> Any:
    """The `Model` message of finished functions. More than one, or one not called `main`, make a multifunction model."""
    program = Program()
    for name, function in functions.items():
        program.add_function(name, function)
    program.default_function_name = default
    program.export_as_multifunction = list(functions) != ["main"]

    def value_of(var: Var) -> Any:
        if var.op.weight_id is None:
            if var.val is not None and np.size(var.val) >= INLINE:
                raise CompilerBug(f"{var.name}: a constant of {np.size(var.val)} values was not planned")
            return immediate_value(var)
        stored = blobs[var.op.weight_id]
        return file_value(var, WEIGHT_PATH, stored.record_offset, stored.shape)

    return export(program, release.specification, value_of)
