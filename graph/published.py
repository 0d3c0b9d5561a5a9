"""The published shapes of the Phi-3 family. Their weights are not here: `random_weights.py` makes some."""

from __future__ import annotations

from pocketphi.graph.config import LongRope, ModelConfig


def _ramp(start: float, stop: float, count: int) -> tuple[float, ...]:
    """Factors of the published magnitude: the true ones come with the checkpoint's own config."""
    return tuple(start + (stop - start) * i / (count - 1) for i in range(count))


def _phi3(**changes: object) -> ModelConfig:
    base: dict[str, object] = {
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "layers": 32,
        "heads": 32,
        "kv_heads": 32,
        "head_dim": 96,
        "max_position": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rotary_dim": 96,
        "long_rope": None,
        "sliding_window": 2047,
        "tied_embeddings": False,
        "bos": 1,
        "eos": (32000,),
        "pad": 32000,
    }
    return ModelConfig(**{**base, **changes})  # type: ignore[arg-type]


PUBLISHED = {
    "phi-3-mini-4k": _phi3(),
    "phi-3-mini-128k": _phi3(
        max_position=131072,
        sliding_window=262144,
        long_rope=LongRope(_ramp(1.05, 2.9, 48), _ramp(1.03, 64.0, 48), 4096),
    ),
    "phi-3.5-mini": _phi3(
        max_position=131072,
        sliding_window=262144,
        long_rope=LongRope(_ramp(1.0, 1.03, 48), _ramp(1.08, 64.5, 48), 4096),
    ),
    "phi-3-medium-4k": _phi3(
        hidden_size=5120, intermediate_size=17920, layers=40, heads=40, kv_heads=10, head_dim=128, rotary_dim=128
    ),
    "phi-4-mini": _phi3(
        vocab_size=200064,
        layers=32,
        heads=24,
        kv_heads=8,
        head_dim=128,
        rotary_dim=96,
        max_position=131072,
        sliding_window=262144,
        tied_embeddings=True,
        bos=199999,
        eos=(200020, 199999),
        pad=199999,
        long_rope=LongRope(_ramp(1.0, 1.0, 48), _ramp(1.0, 47.8, 48), 4096),
    ),
    # small enough to compile in a second, with everything the family has: grouped heads, a window, untied embeddings
    "tiny": _phi3(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        layers=3,
        heads=4,
        kv_heads=2,
        head_dim=16,
        rotary_dim=16,
        max_position=256,
        sliding_window=48,
        eos=(2,),
        pad=0,
    ),
}
