"""The types that a K/V cache may have, what each takes, and how many rows it has. Plain data: it is read without TVM."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.packing import rounded_up

CHUNK = 256
"""Tokens of a prefill call at most: activations of that many, int8, stay in a core's cache."""

KEYS = 16
"""Positions of a block of keys; a cache holds a multiple of them."""


@dataclass(frozen=True)
class KvCache:
    """A type of cache. `kernels/cache.py` says where each value lies.

    dtype: of its tensors; bits: of a value; scale_bytes: of a scale, 0 where there is none; group: dimensions of a head's key
    of a token that share one, and of its value as well; None for all of them
    """

    dtype: str
    bits: int
    scale_bytes: int = 0
    group: int | None = None

    @property
    def centred(self) -> bool:
        """Whether a mean that a calibration text gives is taken off keys."""
        return self.group is not None

    @property
    def rounds(self) -> bool:
        """Whether it holds whole numbers and scales."""
        return bool(self.scale_bytes)

    def row_bytes(self, dim: int) -> int:
        """What a head's key of one token takes, or its value."""
        return dim * self.bits // 8 + self.scale_bytes * (dim // self.group if self.group else 1)

    def row(self, dim: int) -> int:
        """The same in elements of the tensors."""
        return self.row_bytes(dim) * 8 // max(self.bits, 8)

    def bytes(self, config: ModelConfig, tokens: int) -> int:
        """What keys and values of `tokens` tokens take over all layers."""
        return 2 * config.layers * config.kv_heads * self.row_bytes(config.head_dim) * tokens


GROUP = 32
"""Dimensions that share a scale in int4."""

KV_CACHES = {
    "fp16": KvCache("float16", 16),
    "int8": KvCache("int8", 8, 4),
    "int4": KvCache("uint8", 4, 1, GROUP),
}
"""What `--kv-cache` offers; the first is the default."""

EXACT_CACHE = KvCache("float32", 32)
"""That of exact functions."""


def ring_rows(config: ModelConfig) -> int | None:
    """Rows of a cache that keeps the newest tokens alone, as a ring; None where the model has no window.

    The first query of a chunk sees the window before it, and the chunk is in the cache by then.
    """
    return rounded_up(config.sliding_window + CHUNK - 1, KEYS) if config.sliding_window else None


def cache_rows(config: ModelConfig, tokens: int) -> int:
    """Rows of a cache for a text of so many tokens."""
    return min(rounded_up(tokens, KEYS), ring_rows(config) or sys.maxsize)


def centre_name(layer: int) -> str:
    """Of the mean of a layer's keys in the file, where a cache has it."""
    return f"model.layers.{layer}.self_attn.{CENTRE}"


CENTRE = "key_centre"


def kv_cache_of(dtype: str) -> str:
    """The name of a cache by its tensors' type, as model.json gives it."""
    return next(name for name, cache in KV_CACHES.items() if cache.dtype == dtype)
