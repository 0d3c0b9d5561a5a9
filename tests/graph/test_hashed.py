"""HashedCheckpoint: the digest is of the bytes, however they were read."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from tiny_phi3 import TINY

from pocketphi.graph.checkpoint import TensorInfo
from pocketphi.graph.errors import InputError
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.processes import CAN_FORK, in_processes
from pocketphi.graph.random_weights import RandomWeights

HEAD = "lm_head.weight"


class Counted(RandomWeights):
    """Notes what is read."""

    def __init__(self, spec: str = "random:tiny") -> None:
        super().__init__(spec, replace(TINY, vocab_size=20_000))
        self.asked: list[tuple[int, int]] = []

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        self.asked.append((start, stop))
        return super().read(name, start, stop)


def want(name: str) -> str:
    source = Counted()
    return blake3(source.read(name, 0, source.tensors[name].rows).view(torch.uint8).numpy().tobytes()).hexdigest()


def test_digest_of_what_was_never_read() -> None:
    hashed = HashedCheckpoint(Counted())
    assert hashed.digest(HEAD) == want(HEAD)
    assert hashed.digest("model.norm.weight") == want("model.norm.weight")


def test_what_was_read_is_not_read_again() -> None:
    source = Counted()
    hashed = HashedCheckpoint(source)
    chunks = list(hashed.chunks(HEAD))
    assert len(chunks) > 2
    rows = torch.cat([hashed.read(HEAD, *chunk) for chunk in chunks])
    assert torch.equal(rows, Counted().read(HEAD, 0, 20_000))
    assert hashed.digest(HEAD) == hashed.digest(HEAD) == want(HEAD)
    assert source.asked == chunks


def test_rows_that_were_looked_at_before_do_not_have_all_read_again() -> None:
    source = Counted()
    hashed = HashedCheckpoint(source)
    hashed.read(HEAD, 0, 64)
    chunks = list(hashed.chunks(HEAD))
    for chunk in chunks:
        hashed.read(HEAD, *chunk)
    assert hashed.digest(HEAD) == want(HEAD)
    assert source.asked == [(0, 64), *chunks]


def test_rows_out_of_order_or_twice_do_not_count() -> None:
    source = Counted()
    hashed = HashedCheckpoint(source)
    chunks = list(hashed.chunks(HEAD))
    for chunk in (chunks[1], chunks[0], chunks[0], *chunks[2:]):
        hashed.read(HEAD, *chunk)
    assert hashed.digest(HEAD) == want(HEAD)
    assert source.asked[len(chunks) + 1 :] == chunks[1:]


def test_reads_that_end_elsewhere_than_chunks() -> None:
    hashed = HashedCheckpoint(Counted())
    hashed.read(HEAD, 0, 5)
    assert hashed.digest(HEAD) == want(HEAD)


def test_the_whole() -> None:
    source = RandomWeights("random:tiny")
    first = HashedCheckpoint(source).digest_all()
    assert HashedCheckpoint(RandomWeights("random:tiny@0")).digest_all() == first
    assert HashedCheckpoint(RandomWeights("random:tiny@1")).digest_all() != first
    fewer = RandomWeights("random:tiny")
    fewer.tensors = {"renamed" if n == HEAD else n: TensorInfo(i.shape, i.dtype) for n, i in source.tensors.items()}
    assert HashedCheckpoint(fewer).digest_all() != first


@pytest.mark.skipif(not CAN_FORK, reason="forked workers are for Linux")
def test_a_digest_made_in_another_process_counts() -> None:
    source = Counted()
    hashed = HashedCheckpoint(source)

    def read(name: str, progress: object) -> None:
        for chunk in hashed.chunks(name):
            hashed.read(name, *chunk)

    in_processes([HEAD], read, lambda amount: None)
    assert hashed.digest(HEAD) == want(HEAD)
    assert source.asked == []


class Filed(Counted):
    """Lies in a file, so to speak."""

    def __init__(self, path: Path, odd: str = "") -> None:
        super().__init__()
        path.write_bytes(bytes(1000))
        self.files, self.odd = [path], odd
        self.forgets = False

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        if name == self.odd:
            raise InputError("odd")
        return super().read(name, start, stop)

    def forget_behind(self) -> None:
        self.forgets = True


def ahead(hashed: HashedCheckpoint, limit: int) -> int:
    """Let the other process come to its end; how many digests are known."""
    before = set(multiprocessing.active_children())
    with hashed.ahead(limit):
        for process in set(multiprocessing.active_children()) - before:
            process.join(60)
    return sum(hashed._is_done(name) for name in hashed.tensors)


@pytest.mark.skipif(not CAN_FORK, reason="forked workers are for Linux")
def test_digests_taken_ahead(tmp_path: Path) -> None:
    source = Filed(tmp_path / "weights")
    hashed = HashedCheckpoint(source)
    assert ahead(hashed, 1000) == len(hashed.tensors)
    assert hashed.digest(HEAD) == want(HEAD)
    assert source.asked == []  # here: another process has read
    rows = torch.cat([hashed.read(HEAD, *chunk) for chunk in hashed.chunks(HEAD)])
    assert torch.equal(rows, Counted().read(HEAD, 0, 20_000))
    assert hashed.digest_all() == HashedCheckpoint(Counted()).digest_all()


@pytest.mark.skipif(not CAN_FORK, reason="forked workers are for Linux")
@pytest.mark.parametrize("limit", [0, 400, 900])
def test_no_more_is_read_ahead_than_fits(tmp_path: Path, limit: int) -> None:
    """limit is of the file's 1000 bytes: that share of the values, whole tensors in order."""
    hashed = HashedCheckpoint(Filed(tmp_path / "weights"))
    sizes = [info.rows * info.columns for info in hashed.tensors.values()]
    fitting = sum(total * 1000 <= limit * sum(sizes) for total in itertools.accumulate(sizes))
    assert ahead(hashed, limit) == fitting < len(sizes)


@pytest.mark.skipif(not CAN_FORK, reason="forked workers are for Linux")
def test_what_is_wrong_is_found_when_it_is_read_for_good(tmp_path: Path) -> None:
    hashed = HashedCheckpoint(Filed(tmp_path / "weights", odd=HEAD))
    assert 0 < ahead(hashed, 1000) < len(hashed.tensors)
    with pytest.raises(InputError, match=r"^odd$"):
        hashed.digest(HEAD)


def test_generated_weights_are_not_made_ahead() -> None:
    assert ahead(HashedCheckpoint(Counted()), 1 << 40) == 0


@pytest.mark.parametrize("change", [lambda p: p.write_bytes(bytes(1001)), lambda p: os.utime(p, (0, 0)), Path.unlink])
def test_a_file_that_changed_is_refused(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "weights"
    hashed = HashedCheckpoint(Filed(path))
    change(path)
    with pytest.raises(
        InputError, match=rf"^{path}: changed during the compile; start again when nothing writes to it$"
    ):
        hashed.digest_all()


def test_passes_the_rest_on() -> None:
    hashed = HashedCheckpoint(RandomWeights("random:tiny"))
    assert (hashed.label, hashed.config) == ("random:tiny", TINY)
    assert hashed.tokenizer_files() == {}
    assert hashed.kept(HEAD) is None
    assert (list(hashed.files), hashed.file_bytes) == ([], 0)


def test_passes_on_that_the_past_may_be_forgotten(tmp_path: Path) -> None:
    source = Filed(tmp_path / "weights")
    hashed = HashedCheckpoint(source)
    hashed.forget_behind()
    assert source.forgets
    assert (hashed.files, hashed.file_bytes) == (source.files, 1000)
