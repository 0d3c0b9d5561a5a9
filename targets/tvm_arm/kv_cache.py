"""The types that a K/V cache may have, and what each takes. Plain data: it is read without TVM."""

from __future__ import annotations

from dataclasses import dataclass

from pocketphi.graph.config import ModelConfig


@dataclass(frozen=True)
class KvCache:
    """A type of cache. `kernels/cache.py` says where each value lies.

    dtype: of its tensors; value_bytes: of a value; scale_bytes: of the scale that a head's key of a token has of its own, and
    its value as well
    """

    dtype: str
    value_bytes: int
    scale_bytes: int = 0

    def row(self, dim: int) -> int:
        """How many elements a head's key of one token takes, or its value."""
        return dim + self.scale_bytes // self.value_bytes

    def bytes(self, config: ModelConfig, tokens: int) -> int:
        """What keys and values of `tokens` tokens take over all layers."""
        return config.kv_cache_bytes(tokens, self.value_bytes, self.scale_bytes)


KV_CACHES = {"fp16": KvCache("float16", 2), "int8": KvCache("int8", 1, 4)}
"""What `--kv-cache` offers; the first is the default."""

EXACT_CACHE = KvCache("float32", 4)
"""That of exact functions."""


def kv_cache_of(dtype: str) -> str:
    """The name of a cache by its tensors' type, as model.json gives it."""
    return next(name for name, cache in KV_CACHES.items() if cache.dtype == dtype)
