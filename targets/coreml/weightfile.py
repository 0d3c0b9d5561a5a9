"""What a package's `weight.bin` holds: which parts of which weights as which blobs, and where. `codecs.py` says how each format
is stored; a float tensor is float16 of the same shape, rounded, and a rotary table ends where the cache does."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from pocketphi.artifacts.stream import Layout, Rows
from pocketphi.graph.edge_ops import ATTENTIONS
from pocketphi.graph.errors import CompilerBug, InputError
from pocketphi.graph.formats import PartSpec, format_of
from pocketphi.graph.lazy_weights import Around, LazyWeight
from pocketphi.graph.program import Program, op_name, shape_of, split_target
from pocketphi.targets.coreml.blob import ALIGN, Blob, BlobType
from pocketphi.targets.coreml.codecs import CODECS, Blobs, held
from pocketphi.targets.coreml.form import Form

PACKAGE = "model.mlpackage"

_TYPES = {
    np.dtype(np.int32): BlobType.INT32,
    np.dtype(np.float16): BlobType.FLOAT16,
    np.dtype(np.int8): BlobType.INT8,
}
INLINE = 10
"""Constants of fewer elements lie in the model itself, as coremltools has it."""


@dataclass(frozen=True)
class Stored:
    """A blob and the shape that the model gives it."""

    blob: Blob
    shape: tuple[int, ...]

    @property
    def record_offset(self) -> int:
        """What the model refers to."""
        return self.blob.offset - ALIGN


@dataclass(frozen=True)
class WeightFile:
    """The plan of `weight.bin`.

    weights:   what is stored, by name, in canonical form: float values are those that float16 has
    blobs:     a weight's target (`name:part`) or a constant's name → where it lies, in file order
    constants: name → value
    """

    weights: dict[str, LazyWeight]
    blobs: dict[str, Stored]
    constants: dict[str, np.ndarray]
    size: int

    @property
    def layout(self) -> Layout:
        """Where the data of the weights lie."""
        return Layout({split_target(key): s.blob.offset for key, s in self.blobs.items()}, self.size)


def identifier(name: str) -> str:
    """A weight's name as MIL allows it: `model.norm.weight` → `model_norm_weight`."""
    return re.sub(r"\W", "_", name)


def plan_weights(program: Program, form: Form) -> WeightFile:
    """Lay out every weight that the graph reads, in that order, then the constants. Nothing is computed."""
    weights = stored_weights(program, form)
    wanted: dict[str, tuple[BlobType, tuple[int, ...]]] = {}
    for name, weight in weights.items():
        for part, stored in _blobs(weight.parts).items():
            wanted[f"{name}:{part}" if part else name] = stored
    constants = _constants(program, form, weights)
    for name, value in constants.items():
        wanted[name] = (_TYPES[value.dtype], value.shape)
    blobs, end = {}, ALIGN  # the header
    for key, (kind, shape) in wanted.items():
        blob = Blob(kind, int(np.prod(shape)), -(-end // ALIGN) * ALIGN + ALIGN)
        blobs[key] = Stored(blob, shape)
        end = blob.offset + blob.nbytes
    return WeightFile(weights, blobs, constants, -(-end // ALIGN) * ALIGN)


def encode(name: str, rows: Rows) -> Rows:
    """Canonical rows of one weight as they are written."""
    form = format_of(rows)
    if form:
        return CODECS[form.name].encode(name, rows)
    return {part: tensor.half() if tensor.is_floating_point() else tensor for part, tensor in rows.items()}


def _blobs(parts: Mapping[str, PartSpec]) -> Blobs:
    form = format_of(parts)
    if form:
        return CODECS[form.name].blobs(parts)
    if not parts[""].dtype.is_floating_point:
        raise CompilerBug(f"no blob type for a weight of {parts[''].dtype}")
    return {"": (BlobType.FLOAT16, parts[""].shape)}


def _constants(program: Program, form: Form, weights: Mapping[str, LazyWeight]) -> dict[str, np.ndarray]:
    """Constants too large to lie in the model: positions, the zeros that `linear` wants as a bias, what a format has for all of
    its weights."""
    found: dict[str, np.ndarray] = {"const.positions": np.arange(form.keys, dtype=np.int32)}
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if op_name(node) == "linear" or op_name(node).startswith("edge.matmul_"):
            size = int(shape_of(node)[-1])
            found[f"const.zeros_{size}"] = np.zeros(size, np.float16)
        elif op_name(node) in ATTENTIONS and not form.flexible:
            heads, kv_heads = node.args[6:8]
            folds = {1, heads // kv_heads} if op_name(node) == "edge.attention" else {1}
            for fold in sorted(folds):
                found[f"const.steps_{fold}"] = steps(form.chunk, fold)
    for one in filter(None, (format_of(weight.parts) for weight in weights.values())):
        found |= CODECS[one.name].constants()
    return {name: value for name, value in found.items() if value.size >= INLINE}


def steps(length: int, fold: int) -> np.ndarray:
    """0 … length - 1, `fold` times over: int32 [fold · length]."""
    return np.tile(np.arange(length, dtype=np.int32), fold)


def stored_weights(program: Program, form: Form) -> dict[str, LazyWeight]:
    """Weights in the order in which the graph reads them, as the package can hold them."""
    tables = rotary_rows(program, form)
    found: dict[str, LazyWeight] = {}
    for name, weight in program.weights_read().items():
        if "" in weight.parts:
            rows = weight.parts[""].shape[0]
            found[name] = AsHalf(weight, name, min(rows, tables.get(name, rows)))
        else:
            kept = Held(weight, form.ios)
            halves = any(kind.bits * math.prod(shape[1:]) % 8 for kind, shape in _blobs(kept.parts).values())
            found[name] = EvenChunks(kept) if halves else kept
    return found


def rotary_rows(program: Program, form: Form) -> dict[str, int]:
    """How many rows of each rotary table the positions of the cache need. Raises InputError where the table has fewer."""
    found = {}
    for node in program.graph.nodes:
        if op_name(node) in ATTENTIONS:
            long_after = node.args[10]
            for table in node.args[4:6]:
                rows = int(shape_of(table)[0])
                if rows - long_after < form.context:
                    raise InputError(
                        f"coreml: a context of {form.context} tokens, but rotary tables for {rows - long_after}; "
                        f"compile with --context {form.context}"
                    )
                short = form.positions <= long_after
                found[str(table.target)] = form.positions if short else long_after + form.positions
    return found


@dataclass(frozen=True)
class AsHalf:
    """The first rows of a float weight, as float32 of the values that float16 has."""

    weight: LazyWeight = field(repr=False)
    name: str
    rows: int

    @property
    def parts(self) -> Mapping[str, PartSpec]:
        spec = self.weight.parts[""]
        return {"": PartSpec((self.rows, *spec.shape[1:]), spec.dtype)}

    def chunks(self) -> Iterator[tuple[int, int]]:
        for start, stop in self.weight.chunks():
            if start < self.rows:
                yield start, min(stop, self.rows)

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        rows = self.weight.read(start, stop)[""]
        half = rows.half()
        if not bool(torch.isfinite(half).all()):
            value = float(rows[~torch.isfinite(half)][0])
            raise InputError(
                f"{self.name}: {value!r} is beyond the range of float16 (65504), in which Core ML computes"
            )
        return {"": half.to(rows.dtype)}

    def describe(self) -> str:
        return f"{self.weight.describe()} → float16, {self.rows} rows"


@dataclass(frozen=True)
class Held(Around):
    """A quantized weight without the parts that packages for a release have no use for."""

    ios: int

    @property
    def parts(self) -> Mapping[str, PartSpec]:
        return held(self.weight.parts, self.ios)

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        return held(self.weight.read(start, stop), self.ios)


class EvenChunks(Around):
    """A weight in chunks of an even number of rows, so that rows of half a byte more come out on whole bytes."""

    def chunks(self) -> Iterator[tuple[int, int]]:
        total = next(iter(self.parts.values())).shape[0]
        start = 0
        for _, stop in self.weight.chunks():
            even = stop if stop == total else stop - stop % 2
            if even > start:
                yield start, even
                start = even
