"""HashedCheckpoint: the digest is of the bytes, however they were read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from blake3 import blake3
from tiny_phi3 import TINY

from pocketphi.graph.checkpoint import TensorInfo
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


def test_passes_the_rest_on() -> None:
    hashed = HashedCheckpoint(RandomWeights("random:tiny"))
    assert (hashed.label, hashed.config) == ("random:tiny", TINY)
    assert hashed.tokenizer_files() == {}
    assert hashed.int4_kind(HEAD) is None
