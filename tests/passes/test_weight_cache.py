"""The cache of int4 weights: computed once, found again, and never mistaken for another."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_phi3 import TINY

from pocketphi.graph.checkpoint import TensorInfo
from pocketphi.graph.errors import InputError
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.lazy_weights import FloatWeight, materialize
from pocketphi.graph.places import default_folder
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.graph.sealed import write_sealed
from pocketphi.passes.quantize_weights import QuantizedWeight
from pocketphi.passes.quantizers import Quantizer, RoundToNearest, ScaleSearch, Statistics
from pocketphi.passes.weight_cache import StoredWeight, WeightCache

HEAD = "lm_head.weight"


Counts = tuple[int, int]


def one(
    folder: Path, source: RandomWeights, quantizer: Quantizer, statistics: Statistics | None = None
) -> tuple[StoredWeight, Counts]:
    """Cache the head alone; returns it and (found, computed)."""
    hashed = HashedCheckpoint(source)
    cache = WeightCache(folder, hashed)
    stored = cache.quantized(QuantizedWeight(FloatWeight(hashed, HEAD), quantizer), statistics)
    return stored, (cache.found, cache.computed)


@pytest.mark.parametrize("symmetric", [True, False])
def test_stores_and_finds(tmp_path: Path, symmetric: bool) -> None:
    source = RandomWeights("random:tiny")
    weight = QuantizedWeight(FloatWeight(source, HEAD), RoundToNearest(32, symmetric))
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


def flip(path: Path, at: int) -> None:
    """Change a bit in place, so that whoever has the file open or mapped sees it."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))


class Repeated(RandomWeights):
    """Rows of the first 997, over and over: made in no time."""

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        return super().read(name, 0, 997)[torch.arange(start, stop) % 997]


def large(folder: Path) -> StoredWeight:
    """A weight of several chunks."""
    source = Repeated("random:tiny", replace(TINY, vocab_size=150_000, hidden_size=128))
    stored, _ = one(folder, source, RoundToNearest(32))
    assert len(list(stored.chunks())) > 2
    return stored


def test_any_rows_of_several_chunks(tmp_path: Path) -> None:
    stored = large(tmp_path)
    whole = materialize(stored)
    chunks = list(stored.chunks())
    across = (chunks[0][1] - 3, chunks[1][1] + 5)
    for start, stop in (across, (0, 1), (149_999, 150_000), (7, 7), (0, 150_000)):
        read = stored.read(start, stop)
        assert all(torch.equal(read[part], whole[part][start:stop]) for part in whole)
    tensors = load_file(stored.path)  # what it writes, other tools read
    assert all(torch.equal(tensors[part], whole[part]) for part in whole)


@pytest.mark.parametrize("part", ["q", "scale"])
def test_a_bit_that_changes_after_it_was_looked_up_is_found_by_whoever_reads_it(tmp_path: Path, part: str) -> None:
    stored = large(tmp_path)
    chunks = list(stored.chunks())
    row_bytes = stored.parts[part].bytes // 150_000
    flip(stored.path, stored.offsets[part] + (chunks[1][0] + 5) * row_bytes)
    assert stored.read(*chunks[0])
    message = (
        rf"{stored.path}: changed: rows {chunks[1][0]} to {chunks[1][1] - 1} are not what was computed; compile again"
    )
    with pytest.raises(InputError, match=message):
        stored.read(*chunks[1])
    with pytest.raises(InputError, match="not what was computed"):
        stored.read(chunks[1][0] + 7, chunks[1][0] + 8)  # of the same chunk, though not of the same row
    again = large(tmp_path)  # made again
    assert again.read(*chunks[1])


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_file_that_is_cut_after_it_was_looked_up(tmp_path: Path, size: int) -> None:
    stored, _ = one(tmp_path, RandomWeights("random:tiny"), RoundToNearest(32))
    os.truncate(stored.path, size if size >= 0 else stored.path.stat().st_size - 1)
    with pytest.raises(InputError, match="not what was computed"):
        materialize(stored)


def test_another_weight_in_its_place_is_not_taken_for_it(tmp_path: Path) -> None:
    """Whole, of the same shape, under the other's name: both as it is looked up and after."""
    first, _ = one(tmp_path, RandomWeights("random:tiny"), RoundToNearest(32))
    other, _ = one(tmp_path, RandomWeights("random:tiny@1"), RoundToNearest(32))
    first.path.write_bytes(other.path.read_bytes())
    with pytest.raises(InputError, match="not what was computed"):
        materialize(first)
    assert one(tmp_path, RandomWeights("random:tiny"), RoundToNearest(32))[1] == (0, 1)


def test_a_cache_that_is_emptied_meanwhile(tmp_path: Path) -> None:
    """What is gone is named as such; what is still to be written is written to a new folder."""
    folder = tmp_path / "cache"
    hashed = HashedCheckpoint(RandomWeights("random:tiny"))
    cache = WeightCache(folder, hashed)
    stored = cache.quantized(QuantizedWeight(FloatWeight(hashed, HEAD), RoundToNearest(32)), None)
    shutil.rmtree(folder)
    with pytest.raises(
        InputError, match=r"gone: another process empties the cache; compile again, with a --cache that"
    ):
        materialize(stored)
    again = cache.quantized(QuantizedWeight(FloatWeight(hashed, HEAD), RoundToNearest(32)), None)
    assert materialize(again).keys() == {"q", "scale"}
    shutil.rmtree(folder)
    cache.remember("run", {HEAD: again})  # cannot, and need not


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """By a limit on the size of files, in a process of its own."""
    code = f"""
import resource, signal
from pathlib import Path
from pocketphi.graph.errors import InputError
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.graph.lazy_weights import FloatWeight
from pocketphi.graph.sealed import write_sealed
from pocketphi.passes.weight_cache import WeightCache
from pocketphi.passes.quantize_weights import QuantizedWeight
from pocketphi.passes.quantizers import RoundToNearest
hashed = HashedCheckpoint(RandomWeights("random:tiny"))
cache = WeightCache(Path({str(tmp_path)!r}), hashed)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    cache.quantized(QuantizedWeight(FloatWeight(hashed, {HEAD!r}), RoundToNearest(32)), None)
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"{tmp_path}: the cache cannot be written: File too large; make room there, or choose another --cache\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "0a1b.4321.partial").write_bytes(b"of an older version")
    (tmp_path / f".0a1b.safetensors.{'0' * 16}.partial").write_bytes(b"half")
    one(tmp_path, RandomWeights("random:tiny"), RoundToNearest(32))
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


@pytest.mark.parametrize("names", [None, [], {}, {HEAD: 3}, {HEAD: "nowhere.safetensors"}, {HEAD: "../x"}])
def test_a_run_that_does_not_name_its_weights_is_none(tmp_path: Path, names: object) -> None:
    hashed = HashedCheckpoint(RandomWeights("random:tiny"))
    cache = WeightCache(tmp_path, hashed)
    weight = QuantizedWeight(FloatWeight(hashed, HEAD), RoundToNearest(32))
    stored = cache.quantized(weight, None)
    cache.remember("run", {HEAD: stored})
    assert cache.recall("run", {HEAD: weight}) == {HEAD: stored}
    write_sealed(tmp_path / "run.run", names)
    assert cache.recall("run", {HEAD: weight}) is None


def test_a_run_that_names_the_file_of_another_weight_is_none(tmp_path: Path) -> None:
    """Whole, sealed, and of the same shape."""
    hashed = HashedCheckpoint(RandomWeights("random:tiny"))
    cache = WeightCache(tmp_path, hashed)
    names = ["model.embed_tokens.weight", HEAD]
    weights = {name: QuantizedWeight(FloatWeight(hashed, name), RoundToNearest(32)) for name in names}
    stored = {name: cache.quantized(weight, None) for name, weight in weights.items()}
    assert len({str(dict(one.parts)) for one in stored.values()}) == 1
    cache.remember("run", stored)
    assert cache.recall("run", weights) == stored
    cache.remember("run", dict(zip(names, reversed(stored.values()))))
    assert cache.recall("run", weights) is None
    other = {HEAD: QuantizedWeight(FloatWeight(hashed, HEAD), ScaleSearch(32))}  # the same weight, rounded otherwise
    cache.remember("run", {HEAD: stored[HEAD]})
    assert cache.recall("run", other) is None


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETPHI_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert default_folder() == Path("/a")
    monkeypatch.delenv("POCKETPHI_CACHE")
    assert default_folder() == Path("/b/pocketphi")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "pocketphi"


def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "POCKETPHI_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # a container's user that nobody has heard of
    with pytest.raises(
        InputError, match="there is no home folder for the cache: set HOME or POCKETPHI_CACHE, or choose"
    ):
        default_folder()
    monkeypatch.setenv("POCKETPHI_CACHE", "~nobody-has-this-name/cache")
    with pytest.raises(
        InputError, match="POCKETPHI_CACHE is ~nobody-has-this-name/cache: there is no such user's home"
    ):
        default_folder()
