"""Which stored tensors of a GGUF file each tensor of a model is stacked from; the model's own file says which there may be.

blk.N.attn_qkv, or attn_q, attn_k, attn_v     →  model.layers.N.self_attn.qkv_proj
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pocketphi.graph.config import ModelConfig, layer_of
from pocketphi.graph.errors import InputError
from pocketphi.graph.gguf_header import GgufHeader
from pocketphi.graph.gguf_rope import ROPE_TENSORS
from pocketphi.graph.models.base import Piece
from pocketphi.graph.reading import show

_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def find_parts(config: ModelConfig, header: GgufHeader) -> dict[str, list[Piece]]:
    """The parts of each of our tensors, in order.

    Raises InputError for a tensor that is missing, has another shape, or that the model has no place for.
    """
    layer = header.gguf.layer(config)
    parts = {name: _parts(name, shape, layer, header) for name, shape in config.tensors().items()}
    used = {part.name for group in parts.values() for part in group}
    unused = sorted(header.tensors.keys() - used - set(ROPE_TENSORS))
    if unused:
        raise InputError(
            f"{header.path}: holds the tensor {show(unused[0])}, which has no place in {config.form.name}; "
            "it cannot be compiled"
        )
    return parts


def _parts(
    name: str, shape: tuple[int, ...], layer: Mapping[str, Sequence[Sequence[Piece]]], header: GgufHeader
) -> list[Piece]:
    number = layer_of(name)
    if number is None:
        chosen = [Piece(_OUTER[name], shape[0])]
    else:
        ours = name.removeprefix(f"model.layers.{number}.")
        stacks = [[replace(part, name=f"blk.{number}.{part.name}") for part in stack] for stack in layer[ours]]
        chosen = next((stack for stack in stacks if stack[0].name in header.tensors), stacks[-1])
    for stored in dict.fromkeys(part.name for part in chosen):
        rows = max(part.first + part.rows for part in chosen if part.name == stored)
        _check(stored, (rows, *shape[1:]), header)
    return chosen


def _check(name: str, shape: tuple[int, ...], header: GgufHeader) -> None:
    found = header.tensors.get(name)
    asks = f"the metadata asks for {list(shape)}; convert the model again"
    if found is None:
        raise InputError(f"{header.path}: tensor {name!r} is missing, {asks}")
    if found.shape != shape:
        raise InputError(f"{header.path}: {name!r} has shape {list(found.shape)}, {asks}")
