"""The same checkpoint read by other people's code: rows of its tensors from safetensors' or gguf's own library.

Nothing of our readers is used here. Which file holds a tensor, where it lies, its type, and the names in a GGUF file are what
the libraries say; the order of its rows is computed in another way. It is slow, and meant for a few rows of each tensor.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open

from pocketphi.graph.config import ModelConfig, layer_of
from pocketphi.graph.models import find_gguf, find_model
from pocketphi.graph.models.apart import hf_apart
from pocketphi.graph.models.base import Piece
from pocketphi.graph.packed import read_packing
from pocketphi.graph.second_settings import gguf_settings_off, hf_settings_off
from pocketphi.graph.second_text import gguf_text_off


class BySafetensors:
    """Of the files that were chosen, whichever holds the tensor under its own name or without the prefix of the base model.
    What a tensor is stacked from, the model's file says, which `hf_agreement.py` compares with transformers' own class."""

    library = "safetensors"

    def __init__(self, folder: Path, files: Sequence[Path], config: ModelConfig) -> None:
        self._folder, self._files, self._config = folder, files, config
        self._holds: dict[str, Any] = {}
        for path in files:
            opened = safe_open(path, "pt")
            self._holds.update(dict.fromkeys(opened.keys(), opened))
        where = folder / "config.json"
        data = json.loads(where.read_bytes())
        model = find_model(data, str(where))
        self._pieces = model.pieces(config, self._holds)
        self._shapes = model.stored_shapes(config, self._holds)
        self._packing = read_packing(data, str(where))

    def off(self, text: Mapping[str, bytes]) -> list[str]:
        return hf_settings_off(self._folder, self._files, self._holds, self._config)

    def rows(self, name: str, numbers: Sequence[int]) -> torch.Tensor:
        return torch.stack([self._row(*_row_of(self._pieces[name], number)) for number in numbers]).float()

    def _row(self, name: str, number: int) -> torch.Tensor:
        for spelled in (name, name.removeprefix("model."), f"model.{name}"):
            module, packing = spelled.removesuffix(".weight"), self._packing
            if packing and f"{module}.{packing.marks}" in self._holds:
                rows, columns = self._shapes[name]
                return packing.second(functools.partial(self._part, module), number, (rows, columns))
            if spelled in self._holds:
                stored = self._holds[spelled].get_slice(spelled)
                block, number = divmod(number, stored.get_shape()[1]) if len(stored.get_shape()) > 2 else (None, number)
                row: torch.Tensor = stored[number] if block is None else stored[block, number]
                return row.float()
        raise LookupError(name)

    def _part(self, module: str, part: str) -> Any:
        name = f"{module}.{part}"
        if name not in self._holds:
            raise LookupError(name)
        return self._holds[name].get_slice(name)


def _row_of(pieces: Sequence[Piece], number: int) -> tuple[str, int]:
    """Which stored tensor holds a row of a stacked one, and which of its rows it is."""
    for piece in pieces:
        if number < piece.rows:
            order = np.arange(piece.rows)
            if piece.head_dim:
                order = order.reshape(-1, piece.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
            return piece.name, piece.first + piece.step * int(order[number])
        number -= piece.rows
    raise LookupError(number)


class ByGguf:
    """Names from the library's own table, rows of q and k in the order that llama.cpp's converter gave them."""

    library = "gguf"

    def __init__(self, files: Sequence[Path], config: ModelConfig) -> None:
        self._config = config
        self._stored: dict[str, Any] = {}
        readers = [gguf.GGUFReader(path) for path in files]
        for reader in readers:
            self._stored.update({tensor.name: tensor for tensor in reader.tensors})
        self._fields = {key: field.contents() for key, field in readers[0].fields.items()}
        architecture = self._fields["general.architecture"]
        kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
        self._names = gguf.get_tensor_name_map(kind, config.layers)
        self._apart = hf_apart(config, find_gguf(architecture, str(files[0]))[1].in_pairs)

    def off(self, text: Mapping[str, bytes]) -> list[str]:
        shapes = {name: [int(size) for size in reversed(stored.shape)] for name, stored in self._stored.items()}
        rope = {
            name: _vector(stored)
            for name, stored in self._stored.items()
            if name.startswith("rope_") and len(stored.shape) == 1
        }
        return [
            *gguf_settings_off(self._fields, {**shapes, **rope}, self._config),
            *gguf_text_off(text, self._fields),
        ]

    def rows(self, name: str, numbers: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(np.stack([self._row(name, number) for number in numbers]))

    def _row(self, name: str, number: int) -> Any:
        """The library's table has the names of modules that lie apart, and of those that are packed."""
        module = f"model.layers.{layer_of(name)}."
        parts = [replace(part, name=module + part.name) for part in self._apart.get(name.removeprefix(module), ())]
        whole = self._find(name)
        if whole is not None and parts and int(whole.shape[1]) != sum(part.rows for part in parts):
            whole = None  # the table has one name for a packed projection and for its last part
        if whole is None and not parts:
            raise LookupError(name)
        if whole is not None:
            starts = itertools.accumulate((part.rows for part in parts), initial=0)
            parts = [replace(part, name=name, first=first) for part, first in zip(parts, starts)]
        stored, row = _row_of(parts, number) if parts else (name, number)
        found = self._find(stored)
        if found is None:
            raise LookupError(stored)
        if len(found.shape) == 1:
            return _vector(found)[row]
        return gguf.quants.dequantize(found.data[row : row + 1], found.tensor_type)[0]

    def _find(self, name: str) -> Any:
        known = self._names.get_name(name.removesuffix(".weight"))
        return self._stored.get(f"{known}.weight") if known else None


def _vector(stored: Any) -> Any:
    return gguf.quants.dequantize(stored.data[None], stored.tensor_type).reshape(-1)


SecondReading = BySafetensors | ByGguf
"""library: who reads.

off:  what else was read otherwise than the files say it: a line each. text: the tokenizer files that were made
rows: of a tensor of `ModelConfig.tensors()` as float32 [n, …]. Raises LookupError where the library finds none
"""


def second_reading(label: str, files: Sequence[Path], config: ModelConfig) -> SecondReading | None:
    """The library that can read these files, None where a checkpoint has none. label: of the checkpoint."""
    if not files:
        return None
    return ByGguf(files, config) if files[0].suffix == ".gguf" else BySafetensors(Path(label), files, config)
