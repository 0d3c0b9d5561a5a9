"""Core ML packages of tiny models, read back by coremltools' own readers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import target_files
import torch
from tiny_phi3 import quantized, quantized_by

from pocketphi.graph.config import EMBEDDING
from pocketphi.graph.formats import Int4, Palette, PartSpec, Tables
from pocketphi.graph.lazy_weights import Constant
from pocketphi.graph.options import declared
from pocketphi.graph.packing import pack_nibbles
from pocketphi.graph.program import Program
from pocketphi.passes.last_logits import LastLogits
from pocketphi.passes.quantizers import EightBits, KMeans
from pocketphi.targets.base import Packaged
from pocketphi.targets.coreml.options import CoreML

CONTEXT, CHUNK = 100, 16  # 7 chunks, the last one incomplete


def finished(variant: str = "tiny", block: int = 32, symmetric: bool = True) -> Program:
    """Quantized, logits of the last token."""
    program = quantized(variant, block, symmetric)
    LastLogits()(program)
    return program


def in_forms(variant: str = "tiny", form: type[Tables] = Palette) -> Program:
    """Palettes of 16 rows and an int8 embedding, logits of the last token."""
    kmeans = KMeans if form is Palette else KMeans.to(form)
    program = quantized_by(kmeans(16), variant, {EMBEDDING: EightBits(0)})
    LastLogits()(program)
    return program


def ignore(amount: int) -> None:
    pass


def package(program: Program, folder: Path, **options: Any) -> Packaged:
    """options: of Core ML, and of `Asked`."""
    asked = {name: options.pop(name) for name in [*options] if name not in declared(CoreML)}
    return target_files.package(program, CoreML(**{"chunk": CHUNK, **options}), folder, **{"context": CONTEXT, **asked})


@dataclass(frozen=True)
class Whole:
    """An int4 weight in memory as a weight, in chunks of an odd number of rows."""

    weight: Int4

    @property
    def parts(self) -> dict[str, PartSpec]:
        return {part: PartSpec(tuple(t.shape), t.dtype) for part, t in self.weight.tensors().items()}

    def chunks(self) -> Any:
        rows = self.weight.q.shape[0]
        return ((start, min(start + 7, rows)) for start in range(0, rows, 7))

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        return {part: tensor[start:stop] for part, tensor in self.weight.tensors().items()}

    def describe(self) -> str:
        return "in memory"


def with_offsets(program: Program) -> Program:
    """Every int4 weight replaced by one with a float minimum in each block, as a GGUF file of type Q4_1 has it."""
    made = {}
    for name, weight in program.weights.items():
        if "q" in weight.parts:
            generator = torch.Generator().manual_seed(len(made))
            q = torch.randint(0, 16, (weight.parts["q"].shape[0], 2 * weight.parts["q"].shape[1]), generator=generator)
            blocks = weight.parts["scale"].shape
            scale = (torch.rand(blocks, generator=generator) * 0.02 + 0.01).half().float()
            lowest = (-(torch.rand(blocks, generator=generator) * 2 + 6.5) * scale).half().float()
            made[name] = Whole(Int4(pack_nibbles(q), scale, None, lowest + 8 * scale))
    return replaced(program, made)


def replaced(program: Program, weights: dict[str, Any]) -> Program:
    """The program with other weights; nodes of parts that these add are put in."""
    for node in list(program.graph.nodes):
        if node.op == "call_function" and str(node.target).startswith("edge.") and "nbits" in str(node.target):
            name = str(node.args[1].target).partition(":")[0]
            parts = program.weight(name, weights.get(name, program.weights[name]), before=node)
            node.args = (node.args[0], *(parts.get(part) for part in ("q", "scale", "zero", "offset")))
    program.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return program


def constant(value: torch.Tensor) -> Constant:
    return Constant(value, "the test")


def spec(folder: Path) -> Any:
    """The model as coremltools reads it."""
    import coremltools

    return coremltools.utils.load_spec(str(folder / "model.mlpackage"))


def functions(model: Any) -> dict[str, Any]:
    """Function → its operations."""
    found = {}
    for name, function in model.mlProgram.functions.items():
        (block,) = function.block_specializations.values()
        found[name] = list(block.operations)
    return found


class Blobs:
    """Reads weight.bin with Apple's reader."""

    def __init__(self, folder: Path) -> None:
        from coremltools.libmilstoragepython import _BlobStorageReader

        path = folder / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
        self._reader = _BlobStorageReader(str(path))

    def read(self, value: Any) -> np.ndarray:
        """A value of the model that lies in the file, by its declared type and shape."""
        kind = value.type.tensorType
        shape = [d.constant.size for d in kind.dimensions]
        offset = value.blobFileValue.offset
        read = {
            10: lambda: np.array(self._reader.read_fp16_data(offset), np.uint16).view(np.float16),
            21: lambda: np.array(self._reader.read_int8_data(offset)),
            23: lambda: np.array(self._reader.read_int32_data(offset)),
            25: lambda: np.array(self._reader.read_int4_data(offset)),
            35: lambda: np.array(self._reader.read_uint4_data(offset)),
            36: lambda: np.array(self._reader.read_uint2_data(offset)),
            38: lambda: np.array(self._reader.read_uint6_data(offset)),
            39: lambda: np.array(self._reader.read_uint3_data(offset)),
        }
        return read[kind.dataType]().reshape(shape)


def saved_parts(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Value name → its blobs: data, scale and offset of blocks, indices and lut of a palette, `val` of a constant.

    Functions must agree.
    """
    blobs = Blobs(folder)
    found: dict[str, dict[str, np.ndarray]] = {}
    where: dict[str, dict[str, int]] = {}
    for operations in functions(spec(folder)).values():
        for op in operations:
            if op.type in ("constexpr_blockwise_shift_scale", "constexpr_lut_to_dense"):
                values = {key: argument.arguments[0].value for key, argument in op.inputs.items()}
            elif op.type == "const" and op.attributes["val"].WhichOneof("value") == "blobFileValue":
                values = {"val": op.attributes["val"]}
            else:
                continue
            name = op.outputs[0].name
            offsets = {key: value.blobFileValue.offset for key, value in values.items()}
            assert where.setdefault(name, offsets) == offsets, f"{name} lies in two places"
            found[name] = {key: blobs.read(value) for key, value in values.items()}
    return found
