"""model.json: what a bundle's library and parameters are, as one typed value. The C runtime reads the same file."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import PartSpec, specs
from pocketphi.graph.program import split_target
from pocketphi.graph.reading import file_inside, read_json, show, typed
from pocketphi.targets.tvm_arm.codecs import CODECS
from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.isa import TRIPLES, Isa, find_isa
from pocketphi.targets.tvm_arm.kv_cache import KV_CACHES
from pocketphi.targets.tvm_arm.platform import Platform
from pocketphi.targets.tvm_arm.toolchain import ARCHIVE, LIBRARY

FORMAT = 1
DESCRIPTION = "model.json"
PARAMS_FILE = "model.params"
FILES = (DESCRIPTION, PARAMS_FILE, "tuning.jsonl")
"""What each bundle has, beside the library."""
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8, "int8": torch.int8}
_MOST = 1 << 40


@dataclass(frozen=True)
class Made:
    """What the library was made for; see `Platform`."""

    os: str
    arch: str
    isa: str
    cpu: str | None
    features: tuple[str, ...]


@dataclass(frozen=True)
class Tensor:
    """A tensor of model.params. shape: as a kernel takes it; offset: bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def spec(self) -> PartSpec:
        return PartSpec(self.shape, _DTYPES[self.dtype])


@dataclass(frozen=True)
class Matrix:
    """A quantized weight: rows × columns, block: values that share a scale; format: a name of CODECS."""

    rows: int
    columns: int
    block: int
    format: str = "int4"

    def parts(self, held: Collection[str]) -> dict[str, PartSpec]:
        """Its canonical parts. held: names of its parts in the file."""
        return specs(CODECS[self.format].layout(self, held))


@dataclass(frozen=True)
class Cache:
    """dtype: of keys and values, by mode (`saved`, `exact`)."""

    dtype: dict[str, str]


@dataclass(frozen=True)
class Adapted:
    """A weight that may have an adapter."""

    weight: str
    rows: int
    columns: int


@dataclass(frozen=True)
class Description:
    """vocab, context: tokens; params: in the order in which functions take them; matrices: by name; library: its file;
    adapters: weights that may have some, in the order in which functions take their factors."""

    format: int
    target: Made
    vocab: int
    context: int
    cache: Cache
    params: tuple[Tensor, ...]
    matrices: dict[str, Matrix]
    library: str = LIBRARY
    params_digest: str = ""
    adapters: tuple[Adapted, ...] = ()

    @property
    def isa(self) -> Isa:
        return find_isa(self.target.isa)

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of each weight, by part."""
        found: dict[str, dict[str, Tensor]] = {}
        for tensor in self.params:
            name, part = split_target(tensor.name)
            found.setdefault(name, {})[part] = tensor
        return found


def read_description(folder: Path) -> Description:
    """Raises InputError where model.json is not as it should be, or names bytes that model.params lacks."""
    path = file_inside(folder, DESCRIPTION, str(folder))
    made = typed(Description, read_json(path, "copy or compile it again"), str(path))
    problem = _problem(made, file_inside(folder, PARAMS_FILE, str(folder)))
    if problem:
        raise InputError(f"{path}: {problem}; copy or compile it again")
    return made


def _problem(made: Description, params: Path) -> str | None:
    """The first thing that cannot be; None for a good one."""
    if made.format != FORMAT:
        return f"format is {show(made.format)}, this pocketphi reads {FORMAT}"
    if (made.target.os, made.isa.arch) not in TRIPLES:
        return f"target.os is {show(made.target.os)}, which no {made.isa.arch} library is for"
    if made.library not in (LIBRARY, ARCHIVE):
        return f"library is {show(made.library)}, expected {LIBRARY} or {ARCHIVE}"
    if made.cache.dtype.get("saved") not in [kind.dtype for kind in KV_CACHES.values()]:
        return f"cache.dtype.saved is {show(made.cache.dtype.get('saved'))}"
    if not params.is_file():
        return f"{PARAMS_FILE} is missing"
    size = params.stat().st_size
    for tensor in made.params:
        where = f"params: {show(tensor.name)}"
        if tensor.dtype not in _DTYPES:
            return f"{where} is of type {show(tensor.dtype)}, expected one of {', '.join(_DTYPES)}"
        if not tensor.shape or not all(0 < count < _MOST for count in tensor.shape) or not 0 <= tensor.offset < _MOST:
            return f"{where} has the shape {show(tensor.shape)} at {show(tensor.offset)}"
        if tensor.offset + tensor.spec.bytes > size:
            return f"{where} ends beyond the {size} bytes of {PARAMS_FILE}"
    parts = made.parts()
    for name in parts:
        if name not in made.matrices and len({tensor.shape[0] for tensor in parts[name].values()}) != 1:
            return f"params: {show(name)} has parts of different lengths, and is not one of the matrices"
    for name, matrix in made.matrices.items():
        problem = _matrix_problem(matrix, parts.get(name, {}), made.isa)
        if problem:
            return f"matrices: {show(name)} {problem}"
    return None


def _matrix_problem(matrix: Matrix, held: dict[str, Tensor], isa: Isa) -> str | None:
    sizes = (matrix.rows, matrix.columns, matrix.block)
    if not all(0 < size < _MOST for size in sizes) or matrix.block % 16 or matrix.columns % matrix.block:
        return f"has {show(sizes)} rows, columns and values in a block"
    if matrix.format not in CODECS:
        return f"is of format {show(matrix.format)}, expected one of {', '.join(CODECS)}"
    form = CODECS[matrix.format].format
    names, optional = form.part_names(), form.optional()
    if not set(names) - optional <= set(held) <= set(names):
        return f"has the parts {show(sorted(held))}, expected {' and '.join(n for n in names if n not in optional)}"
    parts = matrix.parts(held)
    wanted = Interleaved.of(parts, isa).specs(parts)
    for part, spec in wanted.items():
        if held[part].spec != PartSpec((math.prod(spec.shape),), spec.dtype):
            return f"has {show(held[part].shape)} values of {held[part].dtype} in its part {part}"
    return None


def described_text(described: Mapping[str, Any]) -> str:
    """model.json as it is written."""
    return json.dumps(described, indent=1) + "\n"


def details(
    platform: Platform, config: ModelConfig, context: int, kv_cache: str, about: Mapping[str, Any]
) -> dict[str, Any]:
    """What a manifest says of a bundle's files. about: the library's entries in model.json."""
    return {
        "platform": platform.described(),
        "context": context,
        "kv_cache": kv_cache,
        "kv_cache_bytes_per_token": KV_CACHES[kv_cache].bytes(config, 1),
        **about,
    }
