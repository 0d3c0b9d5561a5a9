"""Published Phi-3 shapes with seeded random weights, generated chunk by chunk: full size without a download."""

from __future__ import annotations

import zlib

import torch

from pocketphi.graph.checkpoint import Checkpoint, TensorInfo
from pocketphi.graph.config import LongRope, ModelConfig
from pocketphi.graph.errors import InputError

_ROWS = 64  # rows that share one seed, so that any range can be generated alone


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


class RandomWeights(Checkpoint):
    """`random:NAME` or `random:NAME@SEED`. Norm weights are near one, matrices N(0, 1/K): activations keep their size."""

    def __init__(self, spec: str, config: ModelConfig | None = None) -> None:
        """spec: the model's name; config: a shape of one's own instead of a published one."""
        name, _, seed = spec.removeprefix("random:").partition("@")
        if config is None and name not in PUBLISHED:
            raise InputError(f"{spec}: unknown shape {name!r}; expected one of {', '.join(PUBLISHED)}")
        if seed and not seed.isdigit():
            raise InputError(f"{spec}: the seed {seed!r} is not a whole number")
        self.label = spec
        self.config = config or PUBLISHED[name]
        self.tensors = {name: TensorInfo(shape, "bf16") for name, shape in self.config.tensors().items()}
        self._seed = int(seed or 0)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        info = self.tensors[name]
        if len(info.shape) == 1:
            return (1 + 0.1 * self._normal(name, 0, info.rows))[start:stop].bfloat16()
        first = start // _ROWS
        groups = [self._normal(name, group, _ROWS, info.columns) for group in range(first, -(-stop // _ROWS))]
        rows = torch.cat(groups)[start - first * _ROWS : stop - first * _ROWS]
        return (rows * info.columns**-0.5).bfloat16()

    def _normal(self, name: str, group: int, *shape: int) -> torch.Tensor:
        seed = zlib.crc32(f"{self._seed}/{name}/{group}".encode())
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
