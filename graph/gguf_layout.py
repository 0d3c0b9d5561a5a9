"""Which stored tensors of a GGUF file each tensor of a Phi-3 is stacked from.

    blk.N.attn_qkv, or attn_q, attn_k, attn_v     →  model.layers.N.self_attn.qkv_proj
    blk.N.ffn_gate, ffn_up, or in phi3 ffn_up     →  model.layers.N.mlp.gate_up_proj

In a llama, llama.cpp's converter has reordered the rows of q and k, which is undone on the fly: each head's rows were stored as
(dim/2, 2), pairs next to each other, and are read back as (2, dim/2), half after half. Row r of a head of d rows lies at
2·(r mod d/2) + r div d/2. A phi3 keeps the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pocketphi.graph.config import ModelConfig, layer_of
from pocketphi.graph.errors import InputError
from pocketphi.graph.gguf_header import GgufHeader, StoredTensor
from pocketphi.graph.gguf_rope import ROPE_TENSORS
from pocketphi.graph.reading import show

_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class Part:
    """Rows of a stored tensor that are rows of one of ours.

    first, rows: which ones, of the stored tensor
    head_dim:    rows of a head, where they are in llama.cpp's order; else 0
    """

    stored: StoredTensor
    first: int
    rows: int
    head_dim: int = 0


def find_parts(config: ModelConfig, header: GgufHeader) -> dict[str, list[Part]]:
    """The parts of each of our tensors, in order.

    Raises InputError for a tensor that is missing, has another shape, or that Phi-3 has no place for.
    """
    finder = _Finder(config, header)
    parts = {name: finder.parts(name, shape) for name, shape in config.tensors().items()}
    used = {part.stored.name for group in parts.values() for part in group}
    unused = sorted(header.tensors.keys() - used - set(ROPE_TENSORS))
    if unused:
        raise InputError(
            f"{header.path}: holds the tensor {show(unused[0])}, which has no place in Phi-3; it cannot be compiled"
        )
    return parts


@dataclass(frozen=True)
class _Finder:
    config: ModelConfig
    header: GgufHeader

    def parts(self, name: str, shape: tuple[int, ...]) -> list[Part]:
        layer, stem = layer_of(name), name.removesuffix(".weight")
        if layer is None:
            return self._stack([_OUTER[stem]], shape, [shape[0]])
        block, kind = f"blk.{layer}", stem.removeprefix(f"model.layers.{layer}.")
        if kind == "self_attn.qkv_proj":
            return self._attention(block, shape)
        if kind == "mlp.gate_up_proj":
            return self._gated(block, shape)
        return self._stack([f"{block}.{_LAYER[kind]}"], shape, [shape[0]])

    def _attention(self, block: str, shape: tuple[int, ...]) -> list[Part]:
        config, llama = self.config, self.header.architecture == "llama"
        rows = [heads * config.head_dim for heads in (config.heads, config.kv_heads, config.kv_heads)]
        fused = self._has(f"{block}.attn_qkv") or not (llama or self._has(f"{block}.attn_q"))
        names = [f"{block}.attn_qkv"] if fused else [f"{block}.attn_{kind}" for kind in "qkv"]
        reordered = [config.head_dim, config.head_dim, 0] if llama else [0, 0, 0]
        return self._stack(names, shape, rows, reordered)

    def _gated(self, block: str, shape: tuple[int, ...]) -> list[Part]:
        apart = self.header.architecture == "llama" or self._has(f"{block}.ffn_gate")
        names = [f"{block}.ffn_gate", f"{block}.ffn_up"] if apart else [f"{block}.ffn_up"]
        return self._stack(names, shape, [self.config.intermediate_size] * 2)

    def _has(self, stem: str) -> bool:
        return f"{stem}.weight" in self.header.tensors

    def _stack(
        self, names: Sequence[str], shape: tuple[int, ...], rows: Sequence[int], head_dims: Sequence[int] = (0, 0)
    ) -> list[Part]:
        """Parts of so many rows each: a stored tensor for each of them, or one that holds them all."""
        if len(names) == len(rows):
            stored = [self._pick(name, (count, *shape[1:])) for name, count in zip(names, rows)]
            return [Part(one, 0, count, head_dim) for one, count, head_dim in zip(stored, rows, head_dims)]
        whole = self._pick(names[0], shape)
        if not any(head_dims):
            return [Part(whole, 0, shape[0])]
        starts = [sum(rows[:i]) for i in range(len(rows))]
        return [Part(whole, first, count, head_dim) for first, count, head_dim in zip(starts, rows, head_dims)]

    def _pick(self, stem: str, shape: tuple[int, ...]) -> StoredTensor:
        name = f"{stem}.weight"
        found = self.header.tensors.get(name)
        asks = f"the metadata asks for {list(shape)}; convert the model again"
        if found is None:
            raise InputError(f"{self.header.path}: tensor {name!r} is missing, {asks}")
        if found.shape != shape:
            raise InputError(f"{self.header.path}: {name!r} has shape {list(found.shape)}, {asks}")
        return found
