"""What a GGUF file says of itself: its metadata, and where its tensors lie, over all of its parts."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType

from pocketphi.graph.errors import InputError
from pocketphi.graph.gguf_parse import ParsedHeader, TensorRecord, parse_header
from pocketphi.graph.gguf_parts import check_part, declared_tensors, part_paths
from pocketphi.graph.models import find_gguf
from pocketphi.graph.models.base import Gguf, Model
from pocketphi.graph.reading import show


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies, row after row. shape: rows first; part: which of the header's `paths` holds it."""

    name: str
    offset: int
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    part: int = 0

    @property
    def row_bytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return int(self.shape[-1] // block * size)

    @property
    def bytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True)
class GgufHeader:
    """A parsed header; nothing of the file stays open.

    paths:   the file, and its other parts where it has several
    fields:  metadata of the first part, see `ParsedHeader`
    tensors: name → where it lies
    """

    paths: tuple[Path, ...]
    fields: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def path(self) -> Path:
        return self.paths[0]

    @staticmethod
    def read(path: Path) -> GgufHeader:
        """Raises InputError for a file that is not GGUF, damaged, cut short, of a tensor type nobody can read, or that lacks
        one of its parts."""
        first = parse_header(path)
        paths = part_paths(path, first.fields)
        tensors: dict[str, StoredTensor] = {}
        for number, part_path in enumerate(paths):
            part = parse_header(part_path) if number else first
            if number:
                check_part(part_path, part.fields, number, first.fields)
            found = _place(part_path, part, number)
            twice = sorted(tensors.keys() & found.keys())
            if twice:
                raise InputError(f"{part_path}: holds {show(twice[0])}, which another part holds too")
            tensors |= found
        if len(paths) > 1 and (declared := declared_tensors(path, first.fields)) not in (None, len(tensors)):
            raise InputError(
                f"{path}: its {len(paths)} parts hold {len(tensors)} tensors, expected {declared} "
                "(split.tensors.count); download them again"
            )
        return GgufHeader(paths, first.fields, tensors)

    @property
    def model(self) -> Model:
        """Raises InputError for one that nobody knows."""
        return find_gguf(self.fields.get("general.architecture"), str(self.path))[0]

    @property
    def gguf(self) -> Gguf:
        """How its files have that model."""
        return find_gguf(self.fields.get("general.architecture"), str(self.path))[1]


def _place(path: Path, header: ParsedHeader, part: int) -> dict[str, StoredTensor]:
    """Where the tensors of one file lie. Raises InputError for one that lies beyond its end, or over another."""
    stored = [_stored(path, header, tensor, part) for tensor in header.tensors]
    end = max((tensor.offset + tensor.bytes for tensor in stored), default=header.data)
    if end > header.size:
        raise InputError(f"{path}: truncated: {header.size} bytes, expected {end} or more; download it again")
    for before, tensor in itertools.pairwise(sorted(stored, key=lambda one: one.offset)):
        if tensor.offset < before.offset + before.bytes:
            raise InputError(f"{path}: {show(tensor.name)} lies over {show(before.name)}; download it again")
    return {tensor.name: tensor for tensor in stored}


def _stored(path: Path, header: ParsedHeader, tensor: TensorRecord, part: int) -> StoredTensor:
    if not _can_read(tensor.type):
        known = {int(kind): kind.name for kind in GGMLQuantizationType}
        raise InputError(
            f"{path}: {show(tensor.name)} has the unknown quantization type {known.get(tensor.type, tensor.type)}; "
            "expected one that the gguf library reads, such as F16, Q8_0, Q4_0 or Q4_K"
        )
    kind = GGMLQuantizationType(tensor.type)
    block = gguf.GGML_QUANT_SIZES[kind][0]
    if tensor.shape[-1] % block:
        raise InputError(
            f"{path}: {show(tensor.name)} has rows of {tensor.shape[-1]} values, expected a multiple of {block} "
            f"({kind.name}); download it again"
        )
    if tensor.offset % header.alignment:
        raise InputError(
            f"{path}: {show(tensor.name)} lies at {tensor.offset}, expected a multiple of {header.alignment}; "
            "download it again"
        )
    return StoredTensor(tensor.name, header.data + tensor.offset, tensor.shape, kind, part)


@functools.cache
def _can_read(number: int) -> bool:
    try:
        kind = GGMLQuantizationType(number)
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (ValueError, NotImplementedError):
        return False
    return True
