"""Published shapes with seeded random weights, generated chunk by chunk: full size without a download."""

from __future__ import annotations

import zlib

import torch

from pocketphi.graph.checkpoint import Checkpoint, TensorInfo
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.published import PUBLISHED

_ROWS = 64  # rows that share one seed, so that any range can be generated alone


class RandomWeights(Checkpoint):
    """`random:NAME` or `random:NAME@SEED`. Norm weights are near one, biases near zero, matrices N(0, 1/K): activations keep
    their size."""

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
            middle = 0 if name.endswith(".bias") else 1
            return (middle + 0.1 * self._normal(name, 0, info.rows))[start:stop].bfloat16()
        first = start // _ROWS
        groups = [self._normal(name, group, _ROWS, info.columns) for group in range(first, -(-stop // _ROWS))]
        rows = torch.cat(groups)[start - first * _ROWS : stop - first * _ROWS]
        return (rows * info.columns**-0.5).bfloat16()

    def _normal(self, name: str, group: int, *shape: int) -> torch.Tensor:
        seed = zlib.crc32(f"{self._seed}/{name}/{group}".encode())
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
