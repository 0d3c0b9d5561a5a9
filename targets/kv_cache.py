"""What keys and values take in each target's cache: the one place that says so. Read without torch or a runtime."""

from __future__ import annotations

from collections.abc import Mapping

from pocketphi.graph.config import ModelConfig

VALUE_BYTES: Mapping[str, int] = {"ort-mobile": 4, "coreml": 2, "tvm-arm": 2}
"""Of a cached value: float32 for ONNX Runtime, float16 for the others."""


def kv_cache_bytes(config: ModelConfig, target: str, tokens: int = 1) -> int:
    """Bytes of keys and values of `tokens` tokens over all layers, in a target's cache."""
    return config.kv_cache_bytes(tokens, VALUE_BYTES[target])
