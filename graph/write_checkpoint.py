"""Write any checkpoint as a Hugging Face folder that other tools read; streamed, tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from pocketphi.graph import safetensors_file
from pocketphi.graph.as_stored import as_stored
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import PartSpec
from pocketphi.graph.packing import tensor_bytes
from pocketphi.graph.safetensors_file import header_of
from pocketphi.graph.writing import write_files

SHARD_BYTES = 4_000_000_000
DTYPES = dict(safetensors_file.DTYPES.values())


def write_checkpoint(
    source: Checkpoint, folder: Path, dtype: str = "bf16", progress: Callable[[int], None] | None = None
) -> None:
    """config.json, tokenizer files, and safetensors shards of at most SHARD_BYTES with an index where there are several.

    dtype: one of DTYPES; progress: called with the bytes just written.

    Raises InputError for a value that the dtype cannot hold, and for settings that transformers reads otherwise.
    """
    source.check_settings()
    source = as_stored(source)
    specs = {name: PartSpec(info.shape, DTYPES[dtype]) for name, info in source.tensors.items()}
    settings = {**source.config.to_hf(), "torch_dtype": str(DTYPES[dtype]).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(settings, indent=1))
    write_files(folder, source.tokenizer_files())
    shards = _shards(specs)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        places |= dict.fromkeys(shard, file)
        with (folder / file).open("wb") as opened:
            opened.write(header_of(shard, {"format": "pt"})[0])
            for name in shard:
                _write_tensor(opened, source, name, dtype, progress or (lambda amount: None))
    if len(shards) > 1:
        data = {"metadata": {"total_size": sum(spec.bytes for spec in specs.values())}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(data, indent=1))


def _shards(specs: Mapping[str, PartSpec]) -> list[dict[str, PartSpec]]:
    shards: list[dict[str, PartSpec]] = [{}]
    size = 0
    for name, spec in specs.items():
        size += spec.bytes
        if shards[-1] and size > SHARD_BYTES:
            shards.append({})
            size = spec.bytes
        shards[-1][name] = spec
    return shards


def _write_tensor(file: BinaryIO, source: Checkpoint, name: str, dtype: str, progress: Callable[[int], None]) -> None:
    for start, stop in source.chunks(name):
        rows = source.read(name, start, stop).to(DTYPES[dtype])
        if not bool(rows.isfinite().all()):
            raise InputError(
                f"{source.label}: {name}, rows {start} to {stop}: holds a value that is not finite in {dtype}; "
                f"the largest of {dtype} is {torch.finfo(DTYPES[dtype]).max:.3g}, that of bf16 and fp32 3.4e+38"
            )
        progress(file.write(tensor_bytes(rows)))
