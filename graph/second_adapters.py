"""Adapters merged a second time, in another way: rows from safetensors' own library, in numpy, found by their names alone.

Of our reader, only the lengths of the columns of an embedding under DoRA are taken over: they need a pass over all of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from pocketphi.graph.config import HEAD, ModelConfig
from pocketphi.graph.lora.adapter import Adapter
from pocketphi.graph.lora.changes import OfEmbedding

Row = npt.NDArray[np.float64]
_TIED = ("model.embed_tokens", "lm_head")


def merged_row(adapters: Sequence[Adapter], config: ModelConfig, name: str, row: int, own: Row) -> tuple[Row, float]:
    """A row of a tensor with all adapters, and the largest number on the way. own: the row of the base; config: of that."""
    now, largest = own.copy(), float(abs(own).max())
    for adapter in adapters:
        settings = json.loads(adapter.lora.files[0].read_bytes())
        before = own
        with safe_open(adapter.lora.files[1], "pt") as file:
            read = _Reader(file)
            for module, number in _names(name, row, config):
                held = read.parts(module)
                pair = _TIED[1 - _TIED.index(module)] if module in _TIED and config.tied_embeddings else ""
                for path in (module, pair) if pair and f"{module}.base_layer.weight" not in read.names else (module,):
                    if f"{path}.base_layer.weight" in read.names:
                        before = now = read.row(f"{path}.base_layer.weight", number)
                if "weight" in held:
                    before = now = read.row(f"{module}.weight", number)
                if "lora_A.weight" in held or "lora_embedding_A" in held:
                    delta = read.delta(module, number) * _scaling(settings, module) * adapter.lora.weight
                    largest = max(largest, float(abs(delta).max()))
                    now = now + delta
                    if "lora_A.weight" in held and (magnitude := read.magnitude(module)) is not None:
                        now = now * (magnitude[number] / np.sqrt(((before + delta) ** 2).sum()))
                    elif (magnitude := read.magnitude(module)) is not None:
                        (ours,) = (one for one in adapter.changes[module] if isinstance(one, OfEmbedding))
                        assert ours.norms is not None
                        now = now * (magnitude / ours.norms().numpy())
                for path in (module, pair) if pair else (module,):
                    tokens = settings.get("trainable_token_indices") or []
                    tokens = tokens if isinstance(tokens, list) else tokens.get(path.split(".")[-1], [])
                    if f"{path}.token_adapter.trainable_tokens_delta" in read.names and number in tokens:
                        now = read.row(f"{path}.token_adapter.trainable_tokens_delta", tokens.index(number))
                        break
        largest = max(largest, float(abs(now).max()))
    return now, largest


class _Reader:
    """One adapter's file. names: of its tensors, without what PEFT puts before them, and with `model.` → as they are stored."""

    def __init__(self, file: Any) -> None:
        self._file = file
        short = {name.removeprefix("base_model.model."): name for name in file.keys()}  # noqa: SIM118 - not a dict
        own = any(name.startswith(("model.", "lm_head.")) for name in short)
        self.names = {name if own else f"model.{name}": stored for name, stored in short.items()}

    def parts(self, module: str) -> set[str]:
        return {name.removeprefix(f"{module}.") for name in self.names if name.startswith(f"{module}.")}

    def row(self, name: str, number: int) -> Row:
        return _float64(self._file.get_slice(self.names[name])[number])

    def whole(self, name: str) -> Row:
        return _float64(self._file.get_tensor(self.names[name]))

    def delta(self, module: str, number: int) -> Row:
        """Row of B·A, or of (B·A)ᵀ."""
        if f"{module}.lora_A.weight" in self.names:
            return np.einsum(
                "r,rk->k", self.row(f"{module}.lora_B.weight", number), self.whole(f"{module}.lora_A.weight")
            )
        a, b = self.whole(f"{module}.lora_embedding_A"), self.whole(f"{module}.lora_embedding_B")
        return np.einsum("kr,r->k", b, a[:, number])

    def magnitude(self, module: str) -> Row | None:
        ends = (f"{module}.lora_magnitude_vector", f"{module}.lora_magnitude_vector.weight")
        return next((self.whole(name) for name in ends if name in self.names), None)


def _names(name: str, row: int, config: ModelConfig) -> list[tuple[str, int]]:
    """The modules that a row of a tensor may be of, and which row of them it is."""
    module = name.removesuffix(".weight")
    found = [(module, row)]
    q, kv, inner = config.heads * config.head_dim, config.kv_heads * config.head_dim, config.intermediate_size
    for packed, parts in (
        ("self_attn.qkv_proj", (("q_proj", 0, q), ("k_proj", q, kv), ("v_proj", q + kv, kv))),
        ("mlp.gate_up_proj", (("gate_proj", 0, inner), ("up_proj", inner, inner))),
    ):
        if module.endswith(packed):
            at = module.rpartition(".")[0]
            found += [(f"{at}.{part}", row - first) for part, first, rows in parts if first <= row < first + rows]
    return [(HEAD.removesuffix(".weight"), row)] if name == HEAD else found


def _scaling(settings: Mapping[str, Any], module: str) -> float:
    def chosen(key: str, default: str, otherwise: float) -> float:
        for pattern, value in (settings.get(key) or {}).items():
            if re.search(rf"(^|\.)({pattern})$", module):
                return float(value)
        return float(settings.get(default, otherwise))

    alpha, rank = chosen("alpha_pattern", "lora_alpha", 8), chosen("rank_pattern", "r", 8)
    return float(alpha / (rank**0.5 if settings.get("use_rslora") else rank))


def _float64(value: Any) -> Row:
    return np.asarray(value.float(), dtype=np.float64)
