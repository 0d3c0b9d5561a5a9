"""What a package's `weight.bin` holds: which parts of which weights as which blobs, where, and how they are encoded.

    canonical                     blob                       bytes
    q, symmetric                  int4 [N, K]                packed ^ 0x88: nibble n stands for n - 8, in two's complement
    q, with zero or offset        uint4 [N, K]               packed
    zero                          uint4 [N, K/block]         repacked without the padding at the end of odd rows
    scale                         float16 [N, K/block]       exact, or a bug of the quantizer
    offset                        float16 [N, K/block]       offset - 8 · scale, the value of q = 0: exact, or bad input
    q8                            int8 [N, K]                q8 ^ 0x80: 128 lower, in two's complement
    index, of a palette           uint4 [N, K]               as it is
    lut                           float16 [N/R, 1, 16, 1]    exact, or a bug of the quantizer
    a float tensor                float16, same shape        rounded; a rotary table ends where the cache does

Example, a byte of a symmetric weight: 240 = (0 low, 15 high), that is (-8, 7); 240 ^ 0x88 = 0x78, in two's complement
low nibble 8 = -8, high nibble 7.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from pocketphi.artifacts.stream import Layout, Rows
from pocketphi.graph.errors import CompilerBug, InputError
from pocketphi.graph.forms import shape_of_parts
from pocketphi.graph.int4 import SYMMETRIC_ZERO, pack_nibbles, unpack_nibbles
from pocketphi.graph.palette import ENTRIES
from pocketphi.graph.program import Program, op_name, shape_of, split_target
from pocketphi.graph.recipe import PartSpec, Recipe
from pocketphi.targets.coreml.blob import ALIGN, Blob, BlobType
from pocketphi.targets.coreml.form import Form

PACKAGE = "model.mlpackage"

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

    weights:   name → canonical recipe of what is stored: float values are those that float16 has
    blobs:     a weight's target (`name:part`) or a constant's name → where it lies, in file order
    constants: name → value
    """

    weights: dict[str, Recipe]
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
    for name, recipe in weights.items():
        for part, spec in recipe.parts.items():
            wanted[f"{name}:{part}" if part else name] = _stored_as(part, spec, recipe.parts)
    constants = _constants(program, form)
    for name, value in constants.items():
        wanted[name] = (BlobType.INT32 if value.dtype == np.int32 else BlobType.FLOAT16, value.shape)
    blobs, end = {}, ALIGN  # the header
    for key, (kind, shape) in wanted.items():
        blob = Blob(kind, int(np.prod(shape)), -(-end // ALIGN) * ALIGN + ALIGN)
        blobs[key] = Stored(blob, shape)
        end = blob.offset + blob.nbytes
    return WeightFile(weights, blobs, constants, -(-end // ALIGN) * ALIGN)


def encode(name: str, rows: Rows) -> Rows:
    """Canonical rows of one weight as they are written."""
    stored = {}
    for part, tensor in rows.items():
        if part == "q":
            stored[part] = tensor if {"zero", "offset"} & set(rows) else tensor ^ 0x88
        elif part == "zero":
            zeros = unpack_nibbles(tensor, rows["scale"].shape[1])
            stored[part] = pack_nibbles(zeros.reshape(1, -1))
        elif part in ("scale", "lut"):
            stored[part] = _exact_half(
                tensor, f"{name}: a scale" if part == "scale" else f"{name}: a value", CompilerBug
            )
        elif part == "q8":
            stored[part] = tensor ^ 0x80
        elif part == "index":
            stored[part] = tensor
        elif part == "offset":
            stored[part] = _lowest(name, tensor, rows)
        else:
            stored[part] = tensor.half() if tensor.is_floating_point() else tensor
    return stored


def _lowest(name: str, offset: torch.Tensor, rows: Rows) -> torch.Tensor:
    """The value of q = 0 in each block. Raises InputError unless float16 has it, and the canonical offset comes back."""
    lowest = offset - SYMMETRIC_ZERO * rows["scale"]
    half = _exact_half(lowest, f"{name}: a block's smallest value", InputError)
    if not torch.equal(half.float() + SYMMETRIC_ZERO * rows["scale"], offset):
        raise InputError(f"{name}: offset - 8 · scale is not exact in float32; compile from the float checkpoint")
    return half


def _exact_half(values: torch.Tensor, what: str, error: type[CompilerBug | InputError]) -> torch.Tensor:
    half = values.half()
    wrong = half.float() != values
    if bool(wrong.any()):
        value = float(values[wrong][0])
        raise error(f"{what} is {value!r}, which float16 does not have")
    return half


def _stored_as(part: str, spec: PartSpec, parts: Mapping[str, PartSpec]) -> tuple[BlobType, tuple[int, ...]]:
    if {"zero", "offset"} <= set(parts):
        raise CompilerBug("a weight with zero points and offsets: no int4 operator of Core ML has both")
    if part == "q":
        symmetric = not {"zero", "offset"} & set(parts)
        return (BlobType.INT4 if symmetric else BlobType.UINT4), (spec.shape[0], 2 * spec.shape[1])
    if part == "zero":
        return BlobType.UINT4, parts["scale"].shape
    if part == "q8":
        return BlobType.INT8, spec.shape
    if part == "index":
        return BlobType.UINT4, shape_of_parts(parts)
    if part == "lut":
        return BlobType.FLOAT16, (spec.shape[0], 1, ENTRIES, 1)
    if not spec.dtype.is_floating_point:
        raise CompilerBug(f"no blob type for a weight of {spec.dtype}")
    return BlobType.FLOAT16, spec.shape


def _constants(program: Program, form: Form) -> dict[str, np.ndarray]:
    """Constants too large to lie in the model: positions, and the zeros that `linear` wants as a bias."""
    found: dict[str, np.ndarray] = {"const.positions": np.arange(form.positions, dtype=np.int32)}
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if op_name(node) in ("linear", "edge.matmul_nbits", "edge.matmul_int8", "edge.matmul_palette"):
            size = int(shape_of(node)[-1])
            found[f"const.zeros_{size}"] = np.zeros(size, np.float16)
        elif op_name(node) == "edge.attention":
            heads, kv_heads = node.args[6:8]
            for fold in sorted({1, heads // kv_heads}) if not form.flexible else []:
                found[f"const.steps_{fold}"] = steps(form.chunk, fold)
    return {name: value for name, value in found.items() if value.size >= INLINE}


def steps(length: int, fold: int) -> np.ndarray:
    """0 … length - 1, `fold` times over: int32 [fold · length]."""
    return np.tile(np.arange(length, dtype=np.int32), fold)


def stored_weights(program: Program, form: Form) -> dict[str, Recipe]:
    """Weights in the order in which the graph reads them, as the package can hold them."""
    tables = rotary_rows(program, form)
    found: dict[str, Recipe] = {}
    for name, recipe in program.weights_read().items():
        if "" in recipe.parts:
            rows = recipe.parts[""].shape[0]
            found[name] = AsHalf(recipe, name, min(rows, tables.get(name, rows)))
        else:
            odd = "zero" in recipe.parts and recipe.parts["scale"].shape[1] % 2
            found[name] = EvenChunks(recipe) if odd else recipe
    return found


def rotary_rows(program: Program, form: Form) -> dict[str, int]:
    """How many rows of each rotary table the positions of the cache need. Raises InputError where the table has fewer."""
    found = {}
    for node in program.graph.nodes:
        if op_name(node) == "edge.attention":
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

    recipe: Recipe = field(repr=False)
    name: str
    rows: int

    @property
    def parts(self) -> Mapping[str, PartSpec]:
        spec = self.recipe.parts[""]
        return {"": PartSpec((self.rows, *spec.shape[1:]), spec.dtype)}

    def chunks(self) -> Iterator[tuple[int, int]]:
        for start, stop in self.recipe.chunks():
            if start < self.rows:
                yield start, min(stop, self.rows)

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        rows = self.recipe.read(start, stop)[""]
        half = rows.half()
        if not bool(torch.isfinite(half).all()):
            value = float(rows[~torch.isfinite(half)][0])
            raise InputError(
                f"{self.name}: {value!r} is beyond the range of float16 (65504), in which Core ML computes"
            )
        return {"": half.to(rows.dtype)}

    def describe(self) -> str:
        return f"{self.recipe.describe()} → float16, {self.rows} rows"


@dataclass(frozen=True)
class EvenChunks:
    """A weight in chunks of an even number of rows, so that rows of half a byte more come out on whole bytes."""

    recipe: Recipe

    @property
    def parts(self) -> Mapping[str, PartSpec]:
        return self.recipe.parts

    def chunks(self) -> Iterator[tuple[int, int]]:
        total = next(iter(self.parts.values())).shape[0]
        start = 0
        for _, stop in self.recipe.chunks():
            even = stop if stop == total else stop - stop % 2
            if even > start:
                yield start, even
                start = even

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        return self.recipe.read(start, stop)

    def describe(self) -> str:
        return self.recipe.describe()
