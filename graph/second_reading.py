"""The same checkpoint read by other people's code: rows of its tensors from safetensors' or gguf's own library.

Nothing of our readers is used here. Which file holds a tensor, where it lies, its type, and the names in a GGUF file are what
the libraries say; the order of its rows is computed in another way. It is slow, and meant for a few rows of each tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.second_settings import gguf_settings_off, hf_settings_off
from pocketphi.graph.second_text import gguf_text_off


class SecondReading(ABC):
    """library: who reads."""

    library: str

    @abstractmethod
    def off(self, text: Mapping[str, bytes]) -> list[str]:
        """What else was read otherwise than the files say it: a line each. text: the tokenizer files that were made."""

    @abstractmethod
    def rows(self, name: str, numbers: Sequence[int]) -> torch.Tensor:
        """Rows of a tensor of `ModelConfig.tensors()` as float32 [n, …]. Raises LookupError where the library finds none."""


class BySafetensors(SecondReading):
    """Of the files that were chosen, whichever holds the tensor under its own name or without the prefix of the base model."""

    library = "safetensors"

    def __init__(self, folder: Path, files: Sequence[Path], config: ModelConfig) -> None:
        from safetensors import safe_open

        self._folder, self._files, self._config = folder, files, config
        self._holds: dict[str, Any] = {}
        for path in files:
            opened = safe_open(path, "pt")
            self._holds.update(dict.fromkeys(opened.keys(), opened))

    def off(self, text: Mapping[str, bytes]) -> list[str]:
        return hf_settings_off(self._folder, self._files, self._holds, self._config)

    def rows(self, name: str, numbers: Sequence[int]) -> torch.Tensor:
        bare = name.removeprefix("model.")
        for spelled in (name, bare, f"model.{name}"):
            if spelled in self._holds:
                tensor = self._holds[spelled].get_slice(spelled)
                return torch.stack([tensor[number] for number in numbers]).float()
        raise LookupError(name)


class ByGguf(SecondReading):
    """Names from the library's own table, rows of q and k in the order that llama.cpp's converter gave them."""

    library = "gguf"

    def __init__(self, files: Sequence[Path], config: ModelConfig) -> None:
        import gguf

        self._config = config
        self._stored: dict[str, Any] = {}
        readers = [gguf.GGUFReader(path) for path in files]
        for reader in readers:
            self._stored.update({tensor.name: tensor for tensor in reader.tensors})
        self._fields = {key: field.contents() for key, field in readers[0].fields.items()}
        self._llama = self._fields["general.architecture"] == "llama"
        kind = gguf.MODEL_ARCH.LLAMA if self._llama else gguf.MODEL_ARCH.PHI3
        self._names = gguf.get_tensor_name_map(kind, config.layers)

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
        found = [self._row(name, number) for number in numbers]
        return torch.from_numpy(np.stack(found))

    def _row(self, name: str, number: int) -> Any:
        stem = name.removesuffix(".weight")
        heads, kv, dim = self._config.heads, self._config.kv_heads, self._config.head_dim
        split = {
            "qkv_proj": (("q_proj", heads * dim), ("k_proj", kv * dim), ("v_proj", kv * dim)),
            "gate_up_proj": (
                ("gate_proj", self._config.intermediate_size),
                ("up_proj", self._config.intermediate_size),
            ),
        }
        module, _, last = stem.rpartition(".")
        parts = split.get(last, ())
        whole = self._find(stem)
        if whole is not None and parts and int(whole.shape[1]) != sum(rows for _, rows in parts):
            whole = None  # the table has one name for a packed projection and for its last part
        at = number
        for part, rows in parts:
            if at < rows:
                stored = whole or self._need(f"{module}.{part}")
                first = number - at if whole else 0
                order = np.arange(rows)
                if self._llama and part in ("q_proj", "k_proj"):
                    order = order.reshape(-1, dim // 2, 2).swapaxes(1, 2).reshape(-1)
                return _dequantized(stored, first + int(order[at]))
            at -= rows
        return _dequantized(whole or self._need(stem), number)

    def _find(self, stem: str) -> Any:
        name = self._names.get_name(stem)
        return self._stored.get(f"{name}.weight") if name else None

    def _need(self, stem: str) -> Any:
        found = self._find(stem)
        if found is None:
            raise LookupError(stem)
        return found


def _dequantized(stored: Any, row: int) -> Any:
    import gguf

    if len(stored.shape) == 1:
        return _vector(stored)[row]
    return gguf.quants.dequantize(stored.data[row : row + 1], stored.tensor_type)[0]


def _vector(stored: Any) -> Any:
    import gguf

    return gguf.quants.dequantize(stored.data[None], stored.tensor_type).reshape(-1)


def second_reading(label: str, files: Sequence[Path], config: ModelConfig) -> SecondReading | None:
    """The library that can read these files, None where a checkpoint has none. label: of the checkpoint."""
    if not files:
        return None
    return ByGguf(files, config) if files[0].suffix == ".gguf" else BySafetensors(Path(label), files, config)
