"""The values of a model file: protobuf types and constants → `ValueType`, `Raw`, str and lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pocketphi.targets.coreml.blobfile import BlobFiles
from pocketphi.targets.coreml.proto import mil_pb2
from pocketphi.targets.coreml.raw import BITS, Raw, ValueType


class Name(str):
    """The name of a value, where a constant string might stand as well."""

    __slots__ = ()


Constant = Raw | str | list[Any]

_RENAMED = {"float16": "fp16", "float32": "fp32", "float64": "fp64"}
_NUMPY = {
    **{"fp16": np.float16, "fp32": np.float32, "fp64": np.float64, "bool": np.bool_},
    **{kind: np.dtype(kind).type for kind in BITS if kind.startswith(("int", "uint")) and BITS[kind] >= 8},
}


class Reader:
    """Reads types and constants. Raises ValueError saying what is not understood."""

    def __init__(self, blobs: BlobFiles) -> None:
        self.blobs = blobs
        enum = mil_pb2().DataType
        self._dtypes = {code: _RENAMED.get(name.lower(), name.lower()) for name, code in enum.items()}

    def type(self, message: Any) -> ValueType:
        """A tensor's type, or a state's."""
        which = message.WhichOneof("type")
        if which == "stateType":
            inner = self.type(message.stateType.wrappedType)
            return ValueType(inner.dtype, inner.shape, state=True)
        if which == "listType":
            return ValueType("list")
        if which == "dictionaryType":
            return ValueType("dictionary")
        if which != "tensorType":
            raise ValueError(f"a value of {which or 'no type'} is not understood")
        tensor = message.tensorType
        dtype = self._dtypes.get(tensor.dataType, f"data type {tensor.dataType}")
        if dtype not in BITS and dtype != "string":
            raise ValueError(f"a tensor of {dtype} is not understood")
        sizes = (d.constant.size if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions)
        return ValueType(dtype, tuple(sizes))

    def constant(self, value: Any) -> Constant:
        """A value that the model holds itself or that lies in a blob file."""
        if value.WhichOneof("value") == "blobFileValue":
            place = value.blobFileValue
            return self.blobs.read(place.fileName, place.offset, self.type(value.type))
        immediate = value.immediateValue
        which = immediate.WhichOneof("value")
        if which == "list":
            return [self.constant(item) for item in immediate.list.values]
        if which != "tensor":
            raise ValueError(f"a constant {which or 'without a value'} is not understood")
        return self._tensor(immediate.tensor, self.type(value.type))

    def _tensor(self, message: Any, kind: ValueType) -> Constant:
        which = message.WhichOneof("value")
        if which is None and kind.count:
            raise ValueError(f"a constant {kind} has no values")
        values = getattr(message, which).values if which else b""
        if which == "strings":
            texts = list(values)
            if len(texts) != kind.count:
                raise ValueError(f"a constant {kind} has {len(texts)} texts")
            return texts if kind.shape else str(texts[0])
        if which == "bytes" or not which:
            data = np.frombuffer(values, np.uint8).copy()
        else:
            data = np.array(values, dtype=_NUMPY[kind.dtype]).reshape(-1).view(np.uint8)
        wanted = -(-kind.count * BITS[kind.dtype] // 8)
        if data.nbytes != wanted:
            raise ValueError(f"a constant {kind} takes {wanted} bytes, {data.nbytes} are there")
        return Raw(kind.dtype, kind.fixed_shape, torch.from_numpy(data))
