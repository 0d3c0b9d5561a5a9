"""The types that ONNX Runtime's K/V cache may have here, on CPUs. Plain data: it is read without onnx.

`GroupQueryAttention` (onnxruntime 1.32, found by running it) keeps `q = clamp(round(x · (1/s)))`, halves to even, of
-2^(bits-1) … 2^(bits-1) - 1, keys after rotary; of four bits two to a byte, the first in the lower half, q + 8. s is fixed: one
float32 for each channel of each head, `k_scale` and `v_scale` [KV, D]. Queries see what the cache holds, in a prompt as in a
decode, and all else is float32. Keys and values are of one kind: there is none with scales for keys alone.

With `sliding_window_cache` a cache of C ≥ W rows, W being the window, holds the newest positions from its first row on. When it
is full, C - W + 1 of them make room at once. A step may have any number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from pocketphi.graph.config import ModelConfig
from pocketphi.targets.ort_mobile.prefill import chunk_of


@dataclass(frozen=True)
class KvCache:
    """bits: of a value, 32 in float32; dtype: of its tensors, as numpy and torch call it."""

    bits: int
    dtype: str

    @property
    def rounds(self) -> bool:
        """Whether it holds whole numbers, which need scales."""
        return self.bits < 32

    def row(self, dim: int) -> int:
        """How many elements a head's key of one token takes."""
        return dim // 2 if self.bits == 4 else dim

    def bytes(self, config: ModelConfig) -> int:
        """What keys and values of a token take over all layers."""
        return config.kv_cache_bytes(1, 4) * self.bits // 32


KV_CACHES = {"fp32": KvCache(32, "float32"), "int8": KvCache(8, "int8"), "int4": KvCache(4, "uint8")}
"""What `--kv-cache` offers; the first is the default."""


_SLACK = 16
"""Rows beyond the window that onnxruntime-genai 0.18 allocates where a prompt does not come in chunks."""


def windowed_rows(config: ModelConfig, context: int) -> int | None:
    """Rows of a windowed cache, as onnxruntime-genai allocates it; None where the model has no window that is shorter than a
    text, or LongRoPE's factors change within one: everything is computed again there, and the beginning has to be at hand."""
    window, rope = config.sliding_window, config.long_rope
    if window is None or (rope and rope.original_max_position < context):
        return None
    rows = window + max((chunk_of(config, context) or 1) - 1, _SLACK)
    return rows if rows < context else None


def scale_names(layer: int) -> tuple[str, str]:
    """Of the scales of a layer's keys and values in the file."""
    at = f"model.layers.{layer}.self_attn"
    return f"{at}.key_cache_scale", f"{at}.value_cache_scale"
