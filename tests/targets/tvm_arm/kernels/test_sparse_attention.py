"""The attention kernel of block-sparse layers against the reference of `edge.sparse_attention`, and how many keys it reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tvm_kernels import here

tvm = pytest.importorskip("tvm")

from pocketphi.graph import edge_ops  # noqa: E402 - only where TVM is installed
from pocketphi.targets.tvm_arm.isa import Isa  # noqa: E402
from pocketphi.targets.tvm_arm.kernels.attention import AttentionForm, attention  # noqa: E402
from pocketphi.targets.tvm_arm.kv_cache import EXACT_CACHE, KV_CACHES, KvCache  # noqa: E402

CAPACITY, HEADS, KV, DIM = 320, 6, 2, 32
PATTERNS = {
    "heads apart": (16, 2, 4, 1),
    "one pattern": (32, 1, 3, 0),
    "steps": (16, 3, 7, 2),
    "near only": (16, 2, 99, 1),
}
ROUNDING = 40 * 16 * torch.finfo(torch.float32).eps
"""Scores up to 40 in float32, of which e^x takes an absolute error as a relative one."""


class Both:
    """The kernels for prompts and for one token over one cache, and the reference with its own."""

    def __init__(self, isa: Isa, sparse: tuple[int, int, int, int], cache: KvCache = EXACT_CACHE) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tables = [torch.randn(CAPACITY, DIM // 2, generator=generator) for _ in range(2)]
        self.kernels = []
        for single in (False, True):
            form = AttentionForm(HEADS, KV, DIM, DIM, CAPACITY, 0.125, 0, 0, cache, single, sparse)
            target = tvm.target.Target(isa.target())
            self.kernels.append(tvm.compile(tvm.IRModule({"f": attention("f", isa, form)}), target=target)["f"])
        self.cache = [tvm.runtime.tensor(np.zeros((KV, CAPACITY, cache.row(DIM)), cache.dtype)) for _ in range(2)]
        self.reference = (torch.zeros(1, KV, 0, DIM), torch.zeros(1, KV, 0, DIM))
        self.arguments = (HEADS, KV, 0.125, 0, 0, *sparse)
        self.past = 0

    def run(self, qkv: torch.Tensor) -> torch.Tensor:
        position = tvm.runtime.tensor(np.array([self.past], np.int32))
        out = tvm.runtime.tensor(np.full((len(qkv), HEADS * DIM), np.nan, np.float32))
        tables = [tvm.runtime.tensor(table.numpy()) for table in self.tables]
        self.kernels[len(qkv) == 1](tvm.runtime.tensor(qkv.numpy()), *self.cache, *tables, position, out)
        self.past += len(qkv)
        return torch.from_numpy(out.numpy())

    def step(self, count: int) -> float:
        qkv = torch.randn(count, (HEADS + 2 * KV) * DIM, generator=torch.Generator().manual_seed(self.past))
        at = torch.arange(self.past, self.past + count)[None]
        want, *self.reference = edge_ops.sparse_attention(qkv[None], *self.reference, at, *self.tables, *self.arguments)
        return float((self.run(qkv) - want[0]).abs().max())


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("pattern", PATTERNS)
def test_prompts_and_steps_see_the_blocks_of_each_head(isa: Isa, pattern: str) -> None:
    """Tiles of four queries that lie in two blocks, steps at a block's first and last token, a longer prompt."""
    both = Both(isa, PATTERNS[pattern])
    steps = [both.step(count) for count in (30, 1, 1, 1, 1, 14, 1, 77, 1, 1, 63, 1, 100, 1)]
    assert both.past == 293
    assert max(steps) <= ROUNDING


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_rounded_caches(isa: Isa, name: str) -> None:
    both = Both(isa, PATTERNS["heads apart"], KV_CACHES[name])
    steps = [both.step(count) for count in (150, 1, 60, 1)]
    assert 0 < max(steps) <= 40 * (2**-11 if name == "fp16" else 1 / 127)


@pytest.mark.parametrize("isa", here())
@pytest.mark.parametrize("count", [1, 5])
def test_what_no_head_sees_is_not_read(isa: Isa, count: int) -> None:
    """Values that are no numbers, wherever neither a near block nor a column of any head lies, reach nothing."""
    sparse = (16, 2, 8, 1)
    both = Both(isa, sparse)
    both.step(250)
    keys, values = (tensor.numpy().copy() for tensor in both.cache)
    seen = edge_ops.block_sparse(torch.arange(250, 250 + count)[None], torch.arange(250), HEADS, *sparse)[0]
    for kv in range(KV):
        unseen = ~seen[kv * 3 : kv * 3 + 3].any(0).any(0).numpy()
        assert 90 < unseen.sum() <= 160
        values[kv, :250][unseen] = np.nan
        for block in np.flatnonzero(unseen[:240].reshape(-1, 16).all(1)):
            keys[kv].reshape(-1, DIM * 16)[block] = np.nan
    both.cache = [tvm.runtime.tensor(keys), tvm.runtime.tensor(values)]
    assert both.step(count) <= ROUNDING
