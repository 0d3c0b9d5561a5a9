"""A Hugging Face folder: `config.json`, tokenizer files, and one or several safetensors shards.

The header of a shard is read here and its rows with `pread`, because safetensors' own reader maps the file: the mapped
pages of a 7.6 GB checkpoint would then count as resident memory of the compile.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pocketphi.graph.checkpoint import Checkpoint, TensorInfo, check_tensors
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.int4 import tensor_bytes
from pocketphi.graph.writing import read_into

_DTYPES = {"BF16": ("bf16", torch.bfloat16), "F16": ("fp16", torch.float16), "F32": ("fp32", torch.float32)}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "chat_template.jinja",
)
_AHEAD = 1 << 22
"""Bytes of a tensor that are asked for before they are read."""

_WILL_NEED, _DO_NOT_NEED = (getattr(os, f"POSIX_FADV_{name}", None) for name in ("WILLNEED", "DONTNEED"))


@dataclass(frozen=True)
class _Stored:
    """Where one tensor lies."""

    file: Path
    offset: int
    info: TensorInfo
    dtype: torch.dtype


class HfFolder(Checkpoint):
    """Reads `Phi3ForCausalLM` folders in bf16, fp16 or fp32; tied and untied embeddings."""

    def __init__(self, folder: Path) -> None:
        self.label = str(folder)
        self._folder = folder
        self.config = ModelConfig.from_hf(_read_json(folder / "config.json"), str(folder / "config.json"))
        self.config = replace(self.config, eos=self._end_tokens())
        self._stored = self._find_tensors()
        self.tensors = check_tensors(self.config, {n: s.info for n, s in self._stored.items()}, str(folder))
        self.files = sorted({stored.file for stored in self._stored.values()})
        self._descriptors: dict[tuple[int, Path], int] = {}
        self._lock = threading.Lock()
        self._forgets = False

    def forget_behind(self) -> None:
        self._forgets = True

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        stored = self._stored[name]
        row = stored.info.columns * stored.dtype.itemsize
        want = (stop - start) * row
        buffer = torch.empty(want, dtype=torch.uint8)
        descriptor = self._descriptor(stored.file)
        end = stored.offset + stored.info.rows * row
        at = stored.offset + start * row
        ahead = at + _AHEAD if start else at
        _advise(descriptor, ahead, min(at + want + _AHEAD, end) - ahead, _WILL_NEED)
        got = read_into(descriptor, tensor_bytes(buffer), at)
        if got != want:
            raise InputError(f"{stored.file}: ended while reading {name!r}: the file changed during the compile")
        if self._forgets and at + want == end:
            _advise(descriptor, stored.offset, end - stored.offset, _DO_NOT_NEED)
        shape = (stop - start, *stored.info.shape[1:])
        return buffer.view(stored.dtype).view(shape)

    def tokenizer_files(self) -> dict[str, bytes]:
        paths = (self._folder / name for name in TOKENIZER_FILES)
        return {path.name: path.read_bytes() for path in paths if path.is_file()}

    def _descriptor(self, path: Path) -> int:
        """Each process opens files for itself: the system reads ahead by descriptor, and two readers would confuse it."""
        key = os.getpid(), path
        with self._lock:
            if key not in self._descriptors:
                self._descriptors[key] = os.open(path, os.O_RDONLY)
            return self._descriptors[key]

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)

    def _end_tokens(self) -> tuple[int, ...]:
        """Those of config.json and of generation_config.json, where Phi-3's `<|end|>` stands."""
        path = self._folder / "generation_config.json"
        more = _read_json(path).get("eos_token_id") if path.is_file() else None
        more = more if isinstance(more, list) else [] if more is None else [more]
        if not all(isinstance(token, int) for token in more):
            raise InputError(f"{path}: eos_token_id is {more!r}, expected token numbers")
        return tuple(dict.fromkeys([*self.config.eos, *more]))

    def _find_tensors(self) -> dict[str, _Stored]:
        wanted = self.config.tensors()
        index = self._folder / "model.safetensors.index.json"
        single = self._folder / "model.safetensors"
        if index.is_file():
            weight_map = _read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise InputError(f"{index}: has no 'weight_map'")
            files = {tensor: file for tensor, file in weight_map.items() if tensor in wanted}
            for tensor, file in files.items():
                if not isinstance(file, str):
                    raise InputError(f"{index}: puts {tensor!r} into {file!r}, expected the name of a file")
            shards = {file: _read_header(self._folder / file, wanted) for file in sorted(set(files.values()))}
            for tensor, file in files.items():
                if tensor not in shards[file]:
                    raise InputError(f"{index}: puts {tensor!r} into {file}, which does not hold it")
            return {tensor: shards[file][tensor] for tensor, file in files.items()}
        if single.is_file():
            return _read_header(single, wanted)
        raise InputError(f"{self._folder}: no model.safetensors and no model.safetensors.index.json")


def _advise(descriptor: int, offset: int, size: int, advice: int | None) -> None:
    """Tell the system what will be read of a file, where it listens (not on macOS)."""
    if size > 0 and advice is not None:
        os.posix_fadvise(descriptor, offset, size, advice)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a Hugging Face folder holds one") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def _read_header(path: Path, wanted: Container[str]) -> dict[str, _Stored]:
    """Parse a safetensors header: u64 length, JSON, then the data (https://github.com/huggingface/safetensors#format).

    Tensors that nobody wants may be of any type.
    """
    if not path.is_file():
        raise InputError(f"{path}: this shard is missing; download the checkpoint again")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise InputError(f"{path}: truncated: {size} bytes, its header alone takes {8 + length}")
        try:
            header = json.loads(file.read(length))
            entries = {name: _parse_entry(entry) for name, entry in header.items() if name in wanted}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path}: not a safetensors file: its header is not valid") from None
    stored = {}
    for name, (dtype, shape, begin, end) in entries.items():
        if 8 + length + end > size:
            raise InputError(
                f"{path}: truncated: {size} bytes, but {name!r} ends at {8 + length + end}; download it again"
            )
        if dtype not in _DTYPES:
            raise InputError(f"{path}: {name!r} has dtype {dtype}, expected one of {', '.join(_DTYPES)}")
        label, torch_dtype = _DTYPES[dtype]
        if end - begin != torch.Size(shape).numel() * torch_dtype.itemsize:
            raise InputError(f"{path}: {name!r} takes {end - begin} bytes, its shape {list(shape)} says otherwise")
        stored[name] = _Stored(path, 8 + length + begin, TensorInfo(shape, label), torch_dtype)
    return stored


def _parse_entry(entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape, begin and end of one tensor. Raises ValueError, KeyError or TypeError for anything else."""
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end)):
        raise ValueError("expected whole numbers")
    return str(entry["dtype"]), shape, begin, end
