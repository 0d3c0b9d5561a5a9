"""MLX, as `mlx.core.quantize` packs it: https://ml-explore.github.io/mlx (`mlx.nn.quantize`).

    weight: uint32 [N, K · bits/32], values of a row one after the other to the bit, the first in the lowest bits
    scales, biases: float16 or bfloat16 [N, K/group]

w = scale · q + bias. Example of 4 bits: the word 0x87654321 at the start of a row is scale · 1 + bias, then 2, 3, … 8.
Layers may have numbers of bits and groups of their own, under their names in the settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pocketphi.graph.errors import InputError
from pocketphi.graph.kept import Grouped
from pocketphi.graph.packed.base import PackedMatrix, Packing, Part, group_of, settings, words
from pocketphi.graph.reading import show

if TYPE_CHECKING:
    import torch

    from pocketphi.graph.safetensors_file import RowReader, Stored

_BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, kw_only=True)
class _Settings:
    bits: int
    group_size: int


_ONLY: dict[str, tuple[object, ...]] = {"mode": ("affine", None), "quant_method": ("mlx", None)}


class Mlx(Packing):
    tool = "MLX"
    marks = "scales"
    parts = frozenset({"weight", "scales", "biases"})

    def __init__(self, said: _Settings, layers: Mapping[str, _Settings | bool], where: str) -> None:
        self.said, self.layers, self.where = said, layers, where
        for one in (said, *(layer for layer in layers.values() if isinstance(layer, _Settings))):
            if one.bits not in _BITS:
                raise InputError(f"{where}: bits is {one.bits}, expected one of {', '.join(map(str, _BITS))}")

    @staticmethod
    def read(data: Mapping[str, Any], where: str) -> Mlx:
        layers: dict[str, _Settings | bool] = {}
        for name, value in data.items():
            if isinstance(value, bool):
                layers[name] = value
            elif isinstance(value, Mapping):
                layers[name] = settings(_Settings, value, f"{where}: {show(name)}", _ONLY, frozenset())
        rest = {name: value for name, value in data.items() if name not in layers}
        return Mlx(settings(_Settings, rest, where, _ONLY, frozenset()), layers, where)

    def in_float(self, module: str) -> bool:
        return self.layers.get(module) is False

    def matrix(self, module: str, shape: tuple[int, int], parts: Mapping[str, Stored], reader: RowReader) -> MlxMatrix:
        own = self.layers.get(module)
        said = own if isinstance(own, _Settings) else self.said
        group = group_of(said.group_size, shape[1], f"{self.where}: {module}")
        return MlxMatrix(module, shape, parts, reader, said.bits, group)

    def second(self, part: Part, row: int, shape: tuple[int, int]) -> torch.Tensor:
        import torch

        stored = part("weight")[row : row + 1][0].contiguous()
        bits = 32 * len(stored) // shape[1]
        text = int.from_bytes(stored.view(torch.uint8).numpy().tobytes(), "little")
        q = torch.tensor([text >> (bits * i) & (1 << bits) - 1 for i in range(shape[1])]).float()
        scale, bias = (part(name)[row : row + 1][0].float() for name in ("scales", "biases"))
        group = shape[1] // len(scale)
        return (q.view(-1, group) * scale[:, None] + bias[:, None]).flatten()


class MlxMatrix(PackedMatrix):
    def __init__(
        self,
        module: str,
        shape: tuple[int, int],
        parts: Mapping[str, Stored],
        reader: RowReader,
        bits: int,
        group: int,
    ) -> None:
        super().__init__(module, shape, parts, reader)
        self._bits, self.dtype = bits, f"mlx{bits}"
        rows, columns = shape
        self.needs("weight", (rows, columns * bits // 32), "U32")
        for part in ("scales", "biases"):
            self.needs(part, (rows, columns // group), "F16", "BF16", "F32")
        self.holds(bits, group, bias=True)

    def rows(self, start: int, stop: int) -> Grouped:
        q = words(self.read_rows("weight", start, stop), self._bits, self.shape[1])
        scale, bias = self.halves(start, stop)
        return Grouped(q, scale, self._bits, bias=bias)

    def halves(self, start: int, stop: int) -> list[torch.Tensor]:
        return [self.read_rows(part, start, stop).float() for part in ("scales", "biases")]


PACKING = Mlx
