"""What keys and values take in each target's cache: the one place that says so. Read without torch or a runtime."""

from __future__ import annotations

from collections.abc import Mapping

from pocketphi.graph.config import ModelConfig
from pocketphi.targets.tvm_arm.kv_cache import KV_CACHES

VALUE_BYTES: Mapping[str, int] = {"ort-mobile": 4, "coreml": 2}
"""Of a cached value: float32 for ONNX Runtime, float16 for Core ML. TVM has a choice: `--kv-cache`."""


def kv_cache_bytes(config: ModelConfig, target: str, kind: str = "fp16", tokens: int = 1) -> int:
    """Bytes of keys and values of `tokens` tokens over all layers, in a target's cache. kind: what `--kv-cache` said."""
    if target in VALUE_BYTES:
        return config.kv_cache_bytes(tokens, VALUE_BYTES[target])
    return KV_CACHES[kind].bytes(config, tokens)
