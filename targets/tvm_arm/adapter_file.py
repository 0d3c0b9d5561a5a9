"""An adapter's file, which the runtime maps: a header, and the factors of each weight that may have some.

    16 bytes     MAGIC
    8 bytes      how long the header is, little-endian
    the header   JSON: the digest of model.params that the adapter is for; the rank of each weight of `adapters` in model.json
    from there   at multiples of 64: A [r, K], then B [r, N], float32, of each weight whose rank is above 0. r is the rank
                 rounded up to a multiple of RANK_STEP; what is beyond the rank is 0

The runtime reads it in `adapter.cc`. Importing this loads nothing of TVM.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pocketphi.graph.adapters import Factors, input_names, shape_of, weight_of_input
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.packing import rounded_up
from pocketphi.graph.program import Program
from pocketphi.graph.reading import parse_object, read_whole, show, typed

MAGIC = b"POCKETPHI LORA 1"
RANK_STEP, RANK_MOST = 4, 2048
"""Rows of a factor that a kernel takes at once, and at most."""
_ALIGNED, _AGAIN, _LARGEST = 64, "copy or compile it again", 1 << 34


@dataclass(frozen=True)
class Header:
    """params_digest: of the model.params that the adapter is for; ranks: in the order of model.json, 0 where it has nothing."""

    params_digest: str
    ranks: tuple[int, ...]


def carried(program: Program) -> list[str]:
    """The weights of a program that may have an adapter, in the order in which functions take their factors."""
    names = (str(node.target) for node in program.inputs)
    return [weight for name in names if (weight := weight_of_input(name)) and name == input_names(weight)[0]]


def padded(rank: int) -> int:
    """Rows of a factor in the file."""
    return rounded_up(rank, RANK_STEP)


def write_adapter(path: Path, factors: Factors, weights: Sequence[str], params_digest: str) -> None:
    """weights: that may have an adapter, see `carried`."""
    ranks = [factors.ranks.get(weight, 0) for weight in weights]
    header = json.dumps({"params_digest": params_digest, "ranks": ranks}).encode()
    with path.open("wb") as file:
        file.write(MAGIC + len(header).to_bytes(8, "little") + header)
        for weight in (weight for weight in weights if weight in factors.ranks):
            a, b = factors.read(weight)
            for factor in (a.T, b):
                file.write(bytes(-file.tell() % _ALIGNED))
                held = torch.zeros(padded(len(factor)), factor.shape[1])
                held[: len(factor)] = factor
                file.write(held.numpy().tobytes())


@dataclass(frozen=True)
class SavedFactors:
    """Factors in a file. ranks: by weight; places: of A and B in `content`, with their shapes there."""

    ranks: Mapping[str, int]
    places: Mapping[str, tuple[tuple[int, tuple[int, int]], ...]]
    content: bytes

    def read(self, weight: str) -> tuple[torch.Tensor, torch.Tensor]:
        rank = self.ranks[weight]
        a, b = (self._factor(*place)[:rank] for place in self.places[weight])
        return a.T.contiguous(), b.clone()

    def _factor(self, offset: int, shape: tuple[int, int]) -> torch.Tensor:
        held = np.frombuffer(self.content, np.float32, shape[0] * shape[1], offset)
        return torch.from_numpy(held.copy()).view(shape)


def read_adapter(path: Path, config: ModelConfig, weights: Sequence[str], params_digest: str) -> SavedFactors:
    """Raises InputError for a file that is not one, or is for other weights."""
    content = read_whole(path, _AGAIN, _LARGEST)
    size = int.from_bytes(content[16:24], "little")
    if content[:16] != MAGIC or len(content) < 24 + size:
        raise InputError(f"{path}: is no adapter, or is cut; {_AGAIN}")
    header = typed(Header, parse_object(content[24 : 24 + size], str(path)), str(path))
    if header.params_digest != params_digest or len(header.ranks) != len(weights):
        raise InputError(f"{path}: is for the weights of another bundle; {_AGAIN}")
    if odd := [rank for rank in header.ranks if not 0 <= rank <= RANK_MOST]:
        raise InputError(f"{path}: a rank is {show(odd[0])}, expected 0 to {RANK_MOST}; {_AGAIN}")
    ranks = {weight: rank for weight, rank in zip(weights, header.ranks, strict=True) if rank}
    places, end = {}, 24 + size
    for weight, rank in ranks.items():
        found = list(_places(config, weight, rank, end))
        places[weight], end = tuple(place for place, _ in found), found[-1][1]
    if len(content) != end or any(
        _beyond(content, place, ranks[weight]) for weight in ranks for place in places[weight]
    ):
        raise InputError(f"{path}: holds other than {len(ranks)} pairs of factors; {_AGAIN}")
    return SavedFactors(ranks, places, content)


def _places(
    config: ModelConfig, weight: str, rank: int, start: int
) -> Iterator[tuple[tuple[int, tuple[int, int]], int]]:
    """((offset, shape), end) of both factors of a weight. start: where what is before them ends."""
    rows, columns = shape_of(config, weight)
    for width in (columns, rows):
        offset = rounded_up(start, _ALIGNED)
        start = offset + 4 * padded(rank) * width
        yield (offset, (padded(rank), width)), start


def _beyond(content: bytes, place: tuple[int, tuple[int, int]], rank: int) -> bool:
    """Whether anything but zeros follows the rank's rows of a factor."""
    offset, (rows, width) = place
    return any(content[offset + 4 * rank * width : offset + 4 * rows * width])
