"""Write any checkpoint as a Hugging Face folder that other tools read; streamed, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch

from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.errors import InputError
from pocketphi.graph.packing import tensor_bytes

SHARD_BYTES = 4_000_000_000
DTYPES = {"bf16": (torch.bfloat16, "BF16"), "fp16": (torch.float16, "F16"), "fp32": (torch.float32, "F32")}


def write_checkpoint(
    source: Checkpoint, folder: Path, dtype: str = "bf16", progress: Callable[[int], None] | None = None
) -> None:
    """config.json, tokenizer files, and safetensors shards of at most SHARD_BYTES with an index where there are several.

    dtype: one of DTYPES; progress: called with the bytes just written.

    Raises InputError for a value that the dtype cannot hold, and for settings that transformers reads otherwise.
    """
    source.check_settings()
    torch_dtype, _ = DTYPES[dtype]
    (folder / "config.json").write_text(json.dumps({**source.config.to_hf(), "torch_dtype": _hf_name(dtype)}, indent=1))
    for name, content in source.tokenizer_files().items():
        (folder / name).write_bytes(content)
    shards = _shards(source, torch_dtype.itemsize)
    names = [_shard_name(i, len(shards)) for i in range(len(shards))]
    for name, tensors in zip(names, shards):
        with (folder / name).open("wb") as file:
            _write_shard(file, source, tensors, dtype, progress or (lambda amount: None))
    if len(shards) > 1:
        index = {tensor: name for name, tensors in zip(names, shards) for tensor in tensors}
        total = sum(_bytes(source, t, torch_dtype.itemsize) for t in source.tensors)
        data = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(data, indent=1))


def _shards(source: Checkpoint, itemsize: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name in source.tensors:
        size += _bytes(source, name, itemsize)
        if shards[-1] and size > SHARD_BYTES:
            shards.append([])
            size = _bytes(source, name, itemsize)
        shards[-1].append(name)
    return shards


def _shard_name(index: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _write_shard(
    file: BinaryIO, source: Checkpoint, tensors: list[str], dtype: str, progress: Callable[[int], None]
) -> None:
    """u64 header length, JSON header, data (https://github.com/huggingface/safetensors#format)."""
    torch_dtype, label = DTYPES[dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in tensors:
        begin, end = end, end + _bytes(source, name, torch_dtype.itemsize)
        header[name] = {"dtype": label, "shape": list(source.tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in tensors:
        for start, stop in source.chunks(name):
            rows = source.read(name, start, stop).to(torch_dtype)
            if not bool(rows.isfinite().all()):
                raise InputError(
                    f"{source.label}: {name}, rows {start} to {stop}: holds a value that is not finite in {dtype}; "
                    f"the largest of {dtype} is {torch.finfo(torch_dtype).max:.3g}, that of bf16 and fp32 3.4e+38"
                )
            progress(file.write(tensor_bytes(rows)))


def _bytes(source: Checkpoint, name: str, itemsize: int) -> int:
    return torch.Size(source.tensors[name].shape).numel() * itemsize


def _hf_name(dtype: str) -> str:
    return str(DTYPES[dtype][0]).removeprefix("torch.")
