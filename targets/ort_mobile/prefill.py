"""How much of a prompt goes through the model at once."""

from __future__ import annotations

from pocketphi.graph.config import ModelConfig

_TOKENS = 128
"""As fast as any number from 64 up (MatMulNBits on x86), less attention to compute in vain, and a layer's values stay in a
core's cache: Phi-3-mini reads 2,000 tokens in 0.92 of the time and 0.7 GB less memory than at once."""


def chunk_of(config: ModelConfig, context: int) -> int | None:
    """Tokens of a chunk in a bundle for `context` tokens. None for whole prompts: where LongRoPE's factors change inside of
    one, its earlier chunks would be rotated with the short factors."""
    rope = config.long_rope
    return None if rope and rope.original_max_position < context else _TOKENS
