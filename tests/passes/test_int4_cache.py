"""The cache of int4 weights: computed once, found again, and never mistaken for another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_phi3 import TINY

from pocketphi.graph.checkpoint import TensorInfo
from pocketphi.graph.errors import InputError
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.graph.recipe import FloatWeight, materialize
from pocketphi.passes.int4_cache import Int4Cache, StoredInt4, default_folder
from pocketphi.passes.quantize_weights import Int4Weight
from pocketphi.passes.quantizers import Quantizer, RoundToNearest, ScaleSearch, Statistics

HEAD = "lm_head.weight"


Counts = tuple[int, int]


def one(
    folder: Path, source: RandomWeights, quantizer: Quantizer, statistics: Statistics | None = None
) -> tuple[StoredInt4, Counts]:
    """Cache the head alone; returns it and (found, computed)."""
    hashed = HashedCheckpoint(source)
    cache = Int4Cache(folder, hashed)
    stored = cache.quantized(Int4Weight(FloatWeight(hashed, HEAD), quantizer), statistics)
    return stored, (cache.found, cache.computed)


@pytest.mark.parametrize("symmetric", [True, False])
def test_stores_and_finds(tmp_path: Path, symmetric: bool) -> None:
    source = RandomWeights("random:tiny")
    weight = Int4Weight(FloatWeight(source, HEAD), RoundToNearest(32, symmetric))
    want = materialize(weight)
    for counts in ((0, 1), (1, 0)):
        stored, came = one(tmp_path, source, RoundToNearest(32, symmetric))
        assert came == counts
        assert stored.describe() == weight.describe()
        got = materialize(stored)
        assert set(got) == set(want)
        assert all(torch.equal(want[part], got[part]) for part in want)
        assert torch.equal(stored.read(7, 9)["q"], want["q"][7:9])
    assert list(tmp_path.glob("*.partial")) == []


CHANGES = {
    "seed": lambda p: one(p, RandomWeights("random:tiny@1"), RoundToNearest(32)),
    "block": lambda p: one(p, RandomWeights("random:tiny"), RoundToNearest(16)),
    "asymmetric": lambda p: one(p, RandomWeights("random:tiny"), RoundToNearest(32, False)),
    "algorithm": lambda p: one(p, RandomWeights("random:tiny"), ScaleSearch(32)),
    "statistics": lambda p: one(p, RandomWeights("random:tiny"), RoundToNearest(32), Statistics(torch.eye(64))),
    "drift": lambda p: one(
        p, RandomWeights("random:tiny"), RoundToNearest(32), Statistics(torch.eye(64), torch.eye(64))
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_anything_else_is_another_weight(tmp_path: Path, change: str) -> None:
    one(tmp_path, RandomWeights("random:tiny"), RoundToNearest(32))
    assert CHANGES[change](tmp_path)[1] == (0, 1)
    assert CHANGES[change](tmp_path)[1] == (1, 0)
    assert one(tmp_path, RandomWeights("random:tiny"), RoundToNearest(32))[1] == (1, 0)
    assert len(list(tmp_path.iterdir())) == 2


def test_another_version_or_other_statistics(tmp_path: Path) -> None:
    class Newer(RoundToNearest):
        version = RoundToNearest.version + 1

    source = RandomWeights("random:tiny")
    measured = [Statistics(torch.eye(64)), Statistics(2 * torch.eye(64)), Statistics(torch.eye(64), torch.eye(64))]
    made = [(RoundToNearest(32), None), (Newer(32), None), *((Newer(32), statistics) for statistics in measured)]
    assert [one(tmp_path, source, *arguments)[1] for arguments in made] == [(0, 1)] * 5


def test_the_same_bytes_under_another_shape_or_type(tmp_path: Path) -> None:
    class Zeros(RandomWeights):
        def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
            super().__init__("random:zeros", replace(TINY, vocab_size=shape[0]))
            self.tensors = {HEAD: TensorInfo(shape, str(dtype))}
            self.dtype = dtype

        def read(self, name: str, start: int, stop: int) -> torch.Tensor:
            return torch.full((stop - start, self.tensors[name].columns), 0x4000, dtype=torch.int16).view(self.dtype)

    sources = [Zeros((64, 64), torch.bfloat16), Zeros((32, 128), torch.bfloat16), Zeros((64, 64), torch.float16)]
    made = [one(tmp_path, source, RoundToNearest(32)) for source in sources]
    assert [counts for _, counts in made] == [(0, 1)] * 3
    shapes = [tuple(materialize(stored)["q"].shape) for stored, _ in made]
    assert shapes == [(64, 32), (32, 64), (64, 32)]


def flip_last_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


DAMAGES = [lambda content: b"", lambda content: b"not a safetensors file", lambda content: content[:-1], flip_last_bit]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    source = RandomWeights("random:tiny")
    one(tmp_path, source, RoundToNearest(32))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert one(tmp_path, source, RoundToNearest(32))[1] == (0, 1)
    assert path.read_bytes() == whole


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    class Broken(RandomWeights):
        def read(self, name: str, start: int, stop: int) -> torch.Tensor:
            return super().read(name, start, stop) * float("nan")

    with pytest.raises(InputError, match=r"lm_head.weight: row 0 holds a value that is not finite"):
        one(tmp_path, Broken("random:tiny"), RoundToNearest(32))
    assert list(tmp_path.iterdir()) == []


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETPHI_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert default_folder() == Path("/a")
    monkeypatch.delenv("POCKETPHI_CACHE")
    assert default_folder() == Path("/b/pocketphi")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "pocketphi"
